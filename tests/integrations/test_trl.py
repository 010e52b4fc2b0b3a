"""TRL: rewards that its trainer gets are the environment's scores, and its GRPO learns. Needs trl."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest

pytest.importorskip("trl")

from load_example import load_example, run_page
from small_task import letters

import textgen_env  # noqa: F401
from textgen_env.integrations.trl import RewardFunction, config_arguments, prompt_dataset, trainer_arguments
from textgen_env.scorers import ScorerError

pytestmark = pytest.mark.heavy


class TwoParts:
    name, part_names = "two", ("long", "polite")

    def parts(self, completions: list[str], *, finish_reasons: list[str], **_: Any) -> dict[str, list[float]]:
        return {"long": letters(completions), "polite": [float(reason == "eos") for reason in finish_reasons]}

    def __call__(self, completions: list[str], **columns: Any) -> list[float]:
        return [sum(values) for values in zip(*self.parts(completions, **columns).values(), strict=True)]


def test_reward_function_hands_over_texts_tokens_references_and_further_columns() -> None:
    seen: dict[str, Any] = {}

    def scorer(completions: list[str], **columns: Any) -> list[float]:
        seen.update(columns, completions=completions)
        return [1.0, 2.0]

    reward = RewardFunction(scorer, eos_token_ids=[2])
    chats = [[{"role": "user", "content": "p"}], [{"role": "user", "content": "q"}]]
    answers = [[{"role": "assistant", "content": "a"}], [{"role": "assistant", "content": "b"}]]
    columns = {"references": [["r"], []], "topic": ["x", "y"], "trainer_state": object(), "log_extra": print}
    assert reward(chats, answers, [[5, 2], [5]], **columns) == [1.0, 2.0]
    assert seen == {
        "completions": ["a", "b"],
        "prompts": ["p", "q"],
        "references": [["r"], []],
        "completion_ids": [[5, 2], [5]],
        "finish_reasons": ["eos", "length"],
        "topic": ["x", "y"],
    }
    assert reward.__name__ == "scorer"


def test_scorers_get_conversations_whole() -> None:
    seen: dict[str, Any] = {}
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "p"}]
    reward = RewardFunction(lambda completions, **columns: seen.update(columns) or [0.0] * len(completions))
    reward([chat, "plain"], ["a", "b"], [[5], [5]])
    assert seen["prompts"] == ["p", "plain"]
    assert seen["messages"] == [chat, None]


@pytest.mark.parametrize(
    ("conversation", "text"),
    [
        ("plain", "plain"),
        ([{"role": "assistant", "content": "said"}], "said"),
        ([{"role": "user", "content": "first"}, {"role": "assistant", "content": "last"}], "last"),
        ([{"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}], ""),
        ([{"role": "assistant", "tool_calls": []}], ""),
        ([{"role": "assistant", "content": ""}], ""),
        ([{"role": "assistant", "content": []}], ""),
        (
            [{"role": "assistant", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]}],
            "one two",
        ),
        ([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it?"}]}], "what is it?"),
        ([{"role": "user", "content": [{"type": "text", "text": None}, "bare"]}], "bare"),
        ({"role": "assistant", "content": "alone"}, "alone"),
        ([], ""),
    ],
)
def test_the_text_of_a_conversation(conversation: Any, text: str) -> None:
    seen: list[str] = []

    def scorer(completions: list[str], prompts: list[str]) -> list[float]:
        seen.extend([*prompts, *completions])
        return [0.0 for _ in completions]

    RewardFunction(scorer)([conversation], [conversation], [[1]])
    assert seen == [text, text]


@pytest.mark.parametrize("value", [None, 3, ["a", "b"], [["a"]], b"bytes"])
def test_what_is_no_conversation_is_named(value: Any) -> None:
    with pytest.raises(TypeError, match=r"completions\[1\] must be a text or a list of messages"):
        RewardFunction(letters)(["p", "p"], ["fine", value], [[1], [1]])


def test_none_is_left_to_trl() -> None:
    class Parts:
        part_names = ("a", "b")

        def parts(self, completions: list[str], **_: Any) -> dict[str, list[float | None]]:
            return {"a": [1.0, None, None], "b": [None, 2.0, None]}

        def __call__(self, completions: list[str], **_: Any) -> list[float | None]:
            return [1.0, 2.0, None]

    async def maybe(prompts: list[str], completions: list[str], **_: Any) -> list[float | None]:
        return [1.0, None, 3.0]

    logged: dict[str, float] = {}
    columns = {"prompts": ["p"] * 3, "completions": ["c"] * 3, "completion_ids": [[1]] * 3}
    assert RewardFunction(Parts())(**columns, log_metric=logged.__setitem__) == [1.0, 2.0, None]
    assert logged == {"reward_parts/a": 1.0, "reward_parts/b": 2.0}
    assert RewardFunction(maybe)(**columns) == [1.0, None, 3.0]


def test_named_parts_are_summed_and_logged() -> None:
    logged: dict[str, float] = {}
    reward = RewardFunction(TwoParts(), eos_token_ids=[2])
    assert reward(["p", "p"], ["abc", "d"], [[7, 2], [7]], log_metric=logged.__setitem__) == [4.0, 1.0]
    assert logged == {"reward_parts/long": 2.0, "reward_parts/polite": 0.5}


def test_a_scorer_that_fails_is_named() -> None:
    def broken(completions: list[str], **_: Any) -> list[float]:
        return [1 / 0]

    with pytest.raises(ScorerError, match="'broken' raised ZeroDivisionError"):
        RewardFunction(broken)(["p"], ["c"], [[1]])


def test_dataset_has_prompts_references_and_extra_columns() -> None:
    data = prompt_dataset([{"prompt": "a", "references": ["b"], "topic": "c"}, {"prompt": "d", "topic": "e"}])
    assert data.to_dict() == {"topic": ["c", "e"], "prompt": ["a", "d"], "references": [["b"], []]}


def test_rules_that_trl_cannot_keep_are_refused(byte_model: str) -> None:
    task = {"model": byte_model, "prompts": ["hello"], "scorer": letters}
    env = gym.make("textgen/TextGen-v0", min_new_tokens=2, **task)
    with pytest.raises(ValueError, match="min_new_tokens"):
        config_arguments(env)
    env = gym.make("textgen/TextGen-v0", max_prompt_tokens=3, **task)
    with pytest.raises(ValueError, match=r"prompts\[0\] has 6 tokens, more than max_prompt_tokens=3"):
        trainer_arguments(env)


def test_rewards_in_the_trainer_are_scores_of_the_environment(byte_model: str, tmp_path: Any) -> None:
    import trl

    env = gym.make(
        "textgen/TextGen-v0", model=byte_model, prompts=["one", "two"], scorer=letters, max_new_tokens=6, kl_coef=0.05
    )
    arguments = trainer_arguments(env)
    calls: list[Any] = []

    def spy(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **columns: Any) -> list[float]:
        rewards = reward(prompts, completions, completion_ids, **columns)
        calls.extend(zip(prompts, completion_ids, rewards, strict=True))
        return rewards

    reward, arguments["reward_funcs"] = arguments["reward_funcs"], spy
    settings = trl.GRPOConfig(
        str(tmp_path),
        **config_arguments(env),
        num_generations=8,
        per_device_train_batch_size=16,
        max_steps=1,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
    )
    assert (settings.max_completion_length, settings.beta, settings.top_k) == (6, 0.05, 0)
    trl.GRPOTrainer(**arguments, args=settings).train()
    assert len(calls) == 16
    for prompt, token_ids, score in calls:
        env.reset(options={"prompt": prompt})
        for token in token_ids:
            _, _, terminated, _, info = env.step(token)
        assert terminated
        assert info["score"] == score


@pytest.mark.parametrize("seed", range(3))
def test_grpo_learns(seed: int) -> None:
    before, after = load_example("trl_grpo").main(seed=seed)
    assert after > before + 0.15


def test_the_page_in_the_docs_runs(tmp_path: Any) -> None:
    run_page("integrations_trl", tmp_path)
