"""Rollouts against the environment's own record: exactly B whole trajectories, told the right way round."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch

from textgen_env.agents.rollout import collect
from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.log_probs import unpack
from textgen_env.lm.sampling import SamplingParams
from textgen_env.wrappers import VectorLMFeatures, VectorScoredCutsEnd, VectorTopKActions, env_attribute

MakeVenv = Callable[..., gym.vector.VectorEnv]


def play(venv: gym.vector.VectorEnv, word_model: Path, episodes: int = 10, seed: int = 0, **options: Any):
    venv.unwrapped.delegate_kl(report_ref_logprob=False)
    venv.reset(seed=7)
    generator = torch.Generator().manual_seed(seed)
    return collect(venv, LanguageModel(word_model), episodes, generator=generator, **options)


@pytest.mark.parametrize("episodes", [4, 5, 11])
def test_exactly_so_many_whole_trajectories(make_venv: MakeVenv, word_model: Path, episodes):
    rollout = play(make_venv(), word_model, episodes)
    model = LanguageModel(word_model)
    assert len(rollout.texts) == len(rollout.prompts) == rollout.input_ids.shape[0] == episodes
    assert (rollout.terminated | rollout.truncated).all()
    for row in range(episodes):
        response = rollout.input_ids[row][rollout.response_mask[row].bool()].tolist()
        prompt = rollout.input_ids[row][(rollout.attention_mask - rollout.response_mask)[row].bool()].tolist()
        assert model.continuation(prompt, response) == rollout.texts[row]
        assert prompt == model.encode(rollout.prompts[row])
        assert (response[-1] == 0) == (rollout.finish_reasons[row] == "eos")
        assert 0 not in response[:-1]
        assert len(response) <= 6
        words = rollout.texts[row].split()
        score = words.count("a") / max(1, len(words))
        assert rollout.scores[row].item() == pytest.approx(score)
        assert rollout.rewards[row].sum().item() == pytest.approx(score)
        assert rollout.rewards[row, int(rollout.attention_mask[row].sum()) - 1].item() == pytest.approx(score)
    assert rollout.attention_mask[:, -1].any(), "padded to the longest, not to the limit"


def test_sampled_log_probs_are_those_of_the_model(make_venv: MakeVenv, word_model: Path):
    """One sequence at a time, by plain forwards of the library's model."""
    rollout = play(make_venv(temperature=1.0), word_model, sampling=SamplingParams(0.6))
    model = LanguageModel(word_model).model
    for row in range(len(rollout.texts)):
        for t in rollout.response_mask[row].nonzero().flatten().tolist():
            with torch.no_grad():
                logits = model(rollout.input_ids[row : row + 1, :t]).logits[0, -1] / 0.6
            expected = logits.log_softmax(-1)[rollout.input_ids[row, t]].item()
            assert rollout.sampled_log_probs[row, t].item() == pytest.approx(expected, abs=1e-4)


def test_the_same_seed_gives_the_same_trajectories(make_venv: MakeVenv, word_model: Path):
    first, second = (play(make_venv(), word_model) for _ in range(2))
    assert torch.equal(first.input_ids, second.input_ids)
    torch.testing.assert_close(first.sampled_log_probs, second.sampled_log_probs)  # of two copies of the weights
    assert not torch.equal(first.input_ids, play(make_venv(), word_model, seed=1).input_ids)


def test_groups_share_a_prompt(make_venv: MakeVenv, word_model: Path):
    wanted = ["a b", "a b", "f", "f", "c d e", "c d e"]
    rollout = play(make_venv(), word_model, 6, prompts=wanted)
    assert rollout.prompts == wanted
    assert play(make_venv(), word_model, 6, prompts=[0, 0, 2, 2, 1, 1]).prompts == wanted


def test_greedy_is_the_argmax_of_plain_forwards(make_venv: MakeVenv, word_model: Path):
    rollout = play(make_venv(), word_model, 4, greedy=True)
    model = LanguageModel(word_model).model
    for row in range(4):
        for t in rollout.response_mask[row].nonzero().flatten().tolist():
            with torch.no_grad():
                assert model(rollout.input_ids[row : row + 1, :t]).logits[0, -1].argmax() == rollout.input_ids[row, t]


RESTRICTIONS: dict[str, dict[str, Any]] = {
    "few kinds of masks": {"min_new_tokens": 2, "forbidden_tokens": ["<pad>", "b"]},
    "another mask at each prefix": {"reference_top_p": 0.7, "min_new_tokens": 1},
    "another k tokens at each prefix": {"reference_top_k": 6},
}


@pytest.mark.parametrize("restriction", RESTRICTIONS)
def test_masks_are_those_of_the_environment_at_each_token(make_venv: MakeVenv, word_model: Path, restriction):
    """Each trajectory once more in an environment of its own, which is asked for its mask before every token."""
    options = RESTRICTIONS[restriction]
    rollout = play(make_venv(**options), word_model, 11)
    limits = {"max_prompt_tokens": 8, "max_new_tokens": 6}
    scorer = {"name": "length", "target": 3}
    env = gym.make(
        "textgen/TextGen-v0", model=str(word_model), prompts=rollout.prompts, scorer=scorer, **limits, **options
    )
    env.unwrapped.delegate_kl(report_ref_logprob=False)
    dense = []  # one list of masks a trajectory
    for row, prompt in enumerate(rollout.prompts):
        env.reset(options={"prompt": prompt})
        dense.append([])
        for token in rollout.input_ids[row][rollout.response_mask[row].bool()].tolist():
            dense[-1].append(env.unwrapped.action_masks().tolist())
            env.step(token)
    for rows in ([3, 1], [10], list(range(11)), [2, 7, 0]):
        masks = rollout.to(torch.device("cpu")).masks(torch.tensor(rows))
        assert masks is not None
        assert masks.tolist() == [mask for row in rows for mask in dense[row]]
    kinds = {tuple(mask) for masks in dense for mask in masks}
    assert (len(kinds) > 10) == ("another" in restriction)
    assert rollout.action_masks is not None
    assert len(rollout.action_masks.distinct) <= len(kinds) + 1


class Narrowed(gym.vector.VectorWrapper):
    """Anybody's wrapper that forbids one more token where the prompt's last token is even."""

    def reset(self, **options: Any) -> Any:
        self.observation, infos = self.env.reset(**options)
        return self.observation, infos

    def step(self, actions: Any) -> Any:
        self.observation, *rest = self.env.step(actions)
        return self.observation, *rest

    def action_masks(self, slots: Any = None) -> Any:
        masks = env_attribute(self.env, "action_masks")(slots)
        lengths = (self.observation["attention_mask"] - self.observation["response_mask"]).sum(axis=1)
        last = self.observation["input_ids"][range(self.num_envs), lengths - 1]
        masks[(last if slots is None else last[slots]) % 2 == 0, 3] = False
        return masks


@pytest.mark.parametrize("options", [{}, {"min_new_tokens": 2}], ids=["free inside", "masked inside"])
def test_masks_are_those_of_the_outermost_wrapper(make_venv: MakeVenv, word_model: Path, options: dict[str, Any]):
    """Never drawn, left out of the distribution, and told to whoever scores the rollout again."""
    rollout = play(VectorScoredCutsEnd(Narrowed(make_venv(**options))), word_model, 40, sampling=SamplingParams(5.0))
    model = LanguageModel(word_model).model
    narrowed = 0
    for row, length in enumerate((rollout.attention_mask - rollout.response_mask).sum(dim=1).tolist()):
        even = rollout.input_ids[row, length - 1].item() % 2 == 0
        narrowed += even
        masks = rollout.masks(torch.tensor([row]))
        assert masks is not None
        for t in range(int(rollout.lengths[row])):
            allowed = torch.tensor([not ((even and k == 3) or (options and t < 2 and k == 0)) for k in range(16)])
            assert masks[t].tolist() == allowed.tolist()
            with torch.no_grad():
                logits = model(rollout.input_ids[row : row + 1, : length + t]).logits[0, -1] / 5.0
            expected = logits.masked_fill(~allowed, -torch.inf).log_softmax(-1)[rollout.input_ids[row, length + t]]
            assert rollout.sampled_log_probs[row, length + t].item() == pytest.approx(expected.item(), abs=1e-4)
    assert 0 < narrowed < 40


def test_wrappers_of_other_spaces_are_refused(make_venv: MakeVenv, word_model: Path):
    with pytest.raises(ValueError, match=r"actions Discrete\(4\); a language model chooses one of its 16 tokens"):
        play(VectorTopKActions(make_venv(), 4), word_model)
    with pytest.raises(ValueError, match=r"observes Box.*; a language model reads tokens"):
        play(VectorLMFeatures(make_venv()), word_model)


def test_masks_of_a_free_environment_are_none(make_venv: MakeVenv, word_model: Path):
    rollout = play(make_venv(), word_model)
    assert rollout.action_masks is None
    assert rollout.masks(torch.tensor([0])) is None


def test_the_memory_of_masks_does_not_grow_with_the_tokens(make_venv: MakeVenv, word_model: Path):
    """Two kinds of 16 bits, whether 10 episodes are played or 60."""
    for episodes in (10, 60):
        masks = play(make_venv(min_new_tokens=2), word_model, episodes).action_masks
        assert masks is not None
        assert masks.distinct.nbytes == 2 * 2


def test_per_token_values_find_their_places(make_venv: MakeVenv, word_model: Path):
    rollout = play(make_venv(), word_model)
    numbers = torch.arange(1.0, float(rollout.lengths.sum()) + 1)
    grid = unpack(numbers, rollout.response_mask)
    assert torch.equal(grid[rollout.response_mask.bool()], numbers)
    assert grid[rollout.response_mask == 0].eq(0).all()


def test_errors_name_the_argument(make_venv: MakeVenv, word_model: Path):
    with pytest.raises(ValueError, match="episodes=3 must be at least the 4 slots"):
        play(make_venv(), word_model, 3)
    with pytest.raises(ValueError, match="prompts has 2 entries"):
        play(make_venv(), word_model, 4, prompts=["a", "b"])
    same_step = gym.make_vec("textgen/TextGen-v0", num_envs=1, model=str(word_model), prompts=["a"], scorer="bleu")
    with pytest.raises(ValueError, match="autoreset_mode=AutoresetMode"):
        play(same_step, word_model, 1)


def test_responses_that_are_begun_go_on(make_venv: MakeVenv, word_model: Path):
    """On slots that are filled again, each with its own beginning; what was given is no choice of the agent's."""
    model, begun = LanguageModel(word_model), [[3, 4], None, "c d e", [5], None, [6, 7, 8], [9], [10, 11]]
    prompts, generator = [0, 1, 2, 0, 1, 2, 0, 1], torch.Generator().manual_seed(0)
    play = partial(collect, make_venv(), model, 8, generator=generator, prompts=prompts, with_states=True)
    rollout = play(responses=begun)
    texts = {0: "a b", 1: "c d e", 2: "f"}
    assert rollout.prompts == [texts[prompt] for prompt in prompts]
    log_probs, states = rollout.per_response(rollout.sampled_log_probs), rollout.states
    assert states is not None
    assert rollout.begun is not None
    assert len(states) == rollout.response_mask.sum()
    for row, given in enumerate(begun):
        ids = [] if given is None else model.encode(given) if isinstance(given, str) else given
        before = len(model.encode(rollout.prompts[row]))
        whole = rollout.input_ids[row, before : int(rollout.attention_mask[row].sum())].tolist()
        assert whole[: len(ids)] == ids
        assert model.decode(whole).split() == rollout.texts[row].split()
        assert int(rollout.begun[row]) == len(ids)
        own = rollout.response_mask[row, before:]
        assert own[: len(whole)].tolist() == [0] * len(ids) + [1] * (len(whole) - len(ids))
        assert int(rollout.lengths[row]) == len(whole) - len(ids) > 0
        assert log_probs[row].lt(0).all()
        assert rollout.sampled_log_probs[row, : before + len(ids)].eq(0).all()
        assert len(whole) <= 6
    assert play().begun is None
    with pytest.raises(ValueError, match="responses has 1 entries; it needs one for each of the 8"):
        collect(make_venv(), model, 8, generator=generator, prompts=prompts, responses=[None])
    with pytest.raises(ValueError, match="responses needs prompts beside it"):
        collect(make_venv(), model, 8, generator=generator, responses=begun)
