"""A responder as TRL's environment: by hand, and in GRPO's own loop of tool calls. Needs trl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch

pytest.importorskip("trl")

from small_task import letters
from transformers import LlamaForCausalLM

import textgen_env
from textgen_env.integrations.trl_environment import environment_factory
from textgen_env.responders import Reply

pytestmark = pytest.mark.heavy


class Doors:
    """Behind which of three doors the seed has hidden a goat."""

    def __init__(self) -> None:
        self.goat: dict[int, int] = {}
        self.begun: list[tuple[str, Any]] = []

    def reset(self, slots: Any, prompts: Any, seeds: Any) -> list[str]:
        self.goat |= {slot: seed % 3 for slot, seed in zip(slots, seeds, strict=True)}
        self.begun += [(prompt.text, prompt.extra.get("level")) for prompt in prompts]
        return [" Three doors."] * len(slots)

    def respond(self, slots: Any, texts: Any) -> list[Any]:
        return [self.opened(slot, text) for slot, text in zip(slots, texts, strict=True)]

    def opened(self, slot: int, text: str) -> Any:
        if text == "burn":
            return TimeoutError("no answer")
        if text == "leave":
            return None
        return Reply("A goat!", 1.0, terminated=True) if text == str(self.goat[slot]) else Reply("Nothing.", -0.25)


def task(byte_model: str, responder: Any, **more: Any) -> gym.Env:
    return gym.make("textgen/TextGen-v0", model=byte_model, prompts=["p"], scorer=letters, responder=responder, **more)


def test_a_dialogue_by_hand(byte_model: str) -> None:
    responder = Doors()
    make = environment_factory(task(byte_model, responder, max_turns=3))
    first, second = make(), make()
    assert first.say("0") == "The episode is over."
    assert first.reset(prompt=[{"role": "user", "content": "Where?"}], level=2, seed=7) == " Three doors."
    second.reset(seed=5)
    assert responder.begun == [("Where?", 2), ("", None)]
    assert [first.say("0"), second.say("0"), first.say("1"), first.say("2")] == [
        "Nothing.",
        "Nothing.",
        "A goat!",
        "The episode is over.",
    ]
    assert (first.get_reward(), second.get_reward()) == (0.75, -0.25)
    assert [second.say("1"), second.say("0"), second.say("2")] == ["Nothing.", "Nothing.", "The episode is over."]
    assert second.get_reward() == -0.75
    second.reset()
    assert second.say("leave") == "The episode is over."
    assert second.get_reward() == 0.0
    second.reset()
    assert second.say("burn") == "The environment failed: TimeoutError."
    assert second.get_reward() is None


def test_seeds_are_the_same_every_time(byte_model: str) -> None:
    found = []
    for _ in range(2):
        responder = Doors()
        env = environment_factory(task(byte_model, responder), seed=3)()
        for _ in range(8):
            env.reset(prompt="p")
            found.append(responder.goat[0])
    assert found[:8] == found[8:]
    assert len(set(found)) == 3


def test_a_task_without_a_responder_needs_none(byte_model: str) -> None:
    env = gym.make("textgen/TextGen-v0", model=byte_model, prompts=["p"], scorer=letters)
    with pytest.raises(ValueError, match="is for a task with a responder"):
        environment_factory(env)


class Scripted(LlamaForCausalLM):
    """Generates what a script says, call by call; its log-probabilities are its own."""

    script: Any = None

    def generate(self, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:  # type: ignore[override]
        rows = next(self.script)
        longest = max(map(len, rows))
        padded = [row + [self.config.pad_token_id] * (longest - len(row)) for row in rows[: len(input_ids)]]
        return torch.cat([input_ids, torch.tensor(padded)], dim=1)


def test_grpo_plays_it(byte_model: str, tmp_path: Path) -> None:
    """Four rollouts call the tool once, and say something; TRL gets the rewards that the responder paid."""
    import datasets
    import trl

    model = Scripted.from_pretrained(byte_model)
    model.config.max_position_embeddings = 8192
    tokenizer = textgen_env.LanguageModel(byte_model).tokenizer
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()

    def ids(text: str) -> list[int]:
        return [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]

    call = '<tool_call>\n{"name": "say", "arguments": {"text": "%d"}}\n</tool_call>'
    model.script = iter([[ids(call % (row % 3)) for row in range(4)], [ids("done")] * 4])
    responder = Doors()
    env = task(byte_model, responder)
    question = [{"role": "user", "content": "Where is the goat?"}]
    data = datasets.Dataset.from_list([{"prompt": question, "seed": 1, "level": 4}])
    settings = trl.GRPOConfig(
        str(tmp_path),
        num_generations=4,
        per_device_train_batch_size=4,
        max_completion_length=512,
        max_steps=1,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
    )
    trainer = trl.GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=data,
        args=settings,
        environment_factory=environment_factory(env),
    )
    trainer.train()
    assert responder.begun == [("Where is the goat?", 4)] * 4
    logged = [line for line in trainer.state.log_history if "reward" in line]
    assert logged[0]["reward"] == pytest.approx((1.0 - 0.25 * 3) / 4)  # doors 0, 1, 2, 0; the goat is behind 1
    assert json.dumps(logged[0]["tools/call_frequency"]) == "1.0"
