"""Recorded episodes: what is read is what was played, for us, for Minari and for the environment itself."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from small_run import write_prompts
from test_on_policy import Failing

pytest.importorskip("minari")
pytest.importorskip("h5py")

import minari

from textgen_env.agents import minari_data, record
from textgen_env.agents.minari_data import RecordedEpisodes, read, write
from textgen_env.agents.policy import ActorConfig, ActorCritic, frozen_reference
from textgen_env.agents.record import Recorder, RecordSettings
from textgen_env.agents.rollout import Rollout, collect
from textgen_env.agents.sft import SFT, SFTConfig, best, make_run, recorded_examples
from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.sampling import SamplingParams

WARPED = SamplingParams(temperature=0.7, top_p=0.8)
SCORER = {"sum": {"brevity": {"name": "length", "target": 3}, "variety": [0.5, "distinct"]}}
PLAIN_TASK: dict[str, Any] = {"scorer": "distinct", "max_new_tokens": 5}
TASKS: dict[str, dict[str, Any]] = {
    "plain": PLAIN_TASK,
    "masked": {**PLAIN_TASK, "forbidden_tokens": ["b", "c", "d"], "min_new_tokens": 2},
    "dialogue": {**PLAIN_TASK, "responder": "echo", "turn_strings": [" a"], "max_turns": 3, "max_new_tokens": 12},
}


def spec_of(model: Path, prompts: Path, arguments: dict[str, Any]) -> Any:
    spec = copy.copy(gym.spec("textgen/TextGen-v0"))
    spec.kwargs = {**spec.kwargs, "model": str(model), "prompts": str(prompts), "temperature": 0.7, **arguments}
    return spec


def played(model: Path, folder: Path, arguments: dict[str, Any], wrap: Any = None) -> tuple[Any, RecordedEpisodes]:
    """Ten episodes of ten of the sixteen prompts."""
    spec = spec_of(model, write_prompts(folder / "prompts.jsonl"), arguments)
    venv = gym.make_vec(spec, num_envs=4, autoreset_mode=AutoresetMode.DISABLED)
    env: Any = venv.unwrapped
    policy = ActorCritic(env.language_model, ActorConfig())
    reference = frozen_reference(env.reference.model, env.reference.vocab_size)
    venv = wrap(venv) if wrap else venv
    return venv, record.record(venv, spec, policy, reference, list(range(3, 13)), sampling=WARPED, seed=5, note="é")


def written(recorded: RecordedEpisodes, venv: Any, path: Path) -> RecordedEpisodes:
    write(recorded, path, venv.single_observation_space, venv.unwrapped.language_model.pad_token_id)
    return read(path)


def assert_same(found: Rollout, rollout: Rollout) -> None:
    """Everything of a rollout but the masks' numbers, which count them in the order in which they are met."""
    for name, value in vars(rollout).items():
        other = getattr(found, name)
        if name == "tokens":
            assert all(torch.equal(a, b) for a, b in zip(other, value, strict=True)), name
        elif name == "action_masks":
            assert (other is None) == (value is None)
        elif name == "reward_parts":
            assert other.keys() == value.keys()
            for part in value:
                torch.testing.assert_close(other[part], value[part], rtol=0, atol=1e-6)
        elif isinstance(value, torch.Tensor):
            assert torch.equal(torch.nan_to_num(other, 9.0), torch.nan_to_num(value, 9.0)), name
            assert other.dtype == value.dtype, name
        else:
            assert other == value, name
    rows = torch.arange(len(rollout.texts))
    if rollout.action_masks is not None:
        assert torch.equal(found.masks(rows), rollout.masks(rows))


@pytest.mark.parametrize("task", TASKS)
def test_what_is_read_is_what_was_played(task: str, word_model: Path, tmp_path: Path):
    venv, recorded = played(word_model, tmp_path, TASKS[task])
    found = written(recorded, venv, tmp_path / "words-v0")
    assert_same(found.rollout, recorded.rollout)
    assert torch.equal(found.ref_log_probs, recorded.ref_log_probs)
    assert found.parts.keys() == recorded.parts.keys()
    assert all(torch.equal(found.parts[name], recorded.parts[name]) for name in recorded.parts)
    assert (found.seeds, found.sampling, found.facts) == (recorded.seeds, WARPED, recorded.facts)
    assert found.facts["note"] == "é"
    assert found.fingerprint == recorded.fingerprint
    mask = recorded.rollout.response_mask
    gaps = (mask.diff(dim=1) == 1).sum(dim=1)  # how often a turn begins
    assert bool((gaps > 1).any()) == (task == "dialogue")
    assert (recorded.rollout.action_masks is not None) == (task == "masked")


def test_listening_changes_nothing(word_model: Path, tmp_path: Path):
    """The rollout is the one that `collect` plays by itself."""
    venv, recorded = played(word_model, tmp_path, PLAIN_TASK)
    generator = torch.Generator().manual_seed(5)
    model = venv.unwrapped.language_model
    alone = collect(venv, model, 10, generator=generator, sampling=WARPED, prompts=list(range(3, 13)))
    assert_same(recorded.rollout, alone)


@pytest.mark.parametrize("task", ["plain", "masked"])
def test_log_probs_are_of_the_distribution_that_was_sampled(task: str, word_model: Path, tmp_path: Path):
    """By transformers' own forward of each prefix and a nucleus made by hand; of the reference, at the temperature."""
    _, recorded = played(word_model, tmp_path, TASKS[task])
    rollout, model = recorded.rollout, LanguageModel(word_model)
    truncated = False
    for row in range(len(rollout.texts)):
        for t in rollout.response_mask[row].nonzero().flatten().tolist():
            with torch.no_grad():
                logits = model.model(rollout.input_ids[row : row + 1, :t]).logits[0, -1] / 0.7
            if rollout.action_masks is not None:
                allowed = rollout.masks(torch.tensor([row]))
                assert allowed is not None
                at = int(rollout.response_mask[row, :t].sum())
                logits = logits.masked_fill(~allowed[at], -torch.inf)
            token = int(rollout.input_ids[row, t])
            reference, kept, total = logits.log_softmax(0), [], 0.0
            for candidate in reference.argsort(descending=True).tolist():
                if total < 0.8:
                    kept.append(candidate)
                    total += reference[candidate].exp().item()
            truncated |= len(kept) < int(logits.isfinite().sum())
            assert token in kept
            expected = reference[token] - reference[kept].logsumexp(0)
            assert rollout.sampled_log_probs[row, t].item() == pytest.approx(expected.item(), abs=2e-5)
            assert recorded.ref_log_probs[row, t].item() == pytest.approx(reference[token].item(), abs=2e-5)
    assert truncated, "the nucleus must have left something out"


def test_minari_loads_it_and_makes_the_environment_again(
    word_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Each episode is played once more, by its seed, its options and its actions alone."""
    venv, recorded = played(word_model, tmp_path, {**PLAIN_TASK, "scorer": SCORER})
    written(recorded, venv, tmp_path / "sets" / "words-v0")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    dataset = minari.load_dataset("words-v0")
    assert list(minari.list_local_datasets()) == ["words-v0"]
    assert (dataset.total_episodes, dataset.total_steps) == (10, int(recorded.rollout.lengths.sum()))
    env, told = dataset.recover_environment(), list(dataset.storage.get_episode_metadata(range(10)))
    assert env.observation_space == dataset.observation_space
    assert env.action_space == dataset.action_space
    for row, (episode, facts) in enumerate(zip(dataset.iterate_episodes(), told, strict=True)):
        length = len(episode.actions)
        assert episode.id == row
        assert len(episode.rewards) == length == len(episode.infos["log_prob"]) - 1
        observation, _ = env.reset(seed=int(facts["seed"]), options={"prompt": int(facts["options"]["prompt"])})
        for t in range(length + 1):
            shown = {name: values[t] for name, values in episode.observations.items()}
            assert dataset.observation_space.contains(shown)
            assert all(np.array_equal(shown[name], observation[name]) for name in shown)
            if t < length:
                assert dataset.action_space.contains(episode.actions[t])
                observation, reward, terminated, truncated, info = env.step(episode.actions[t])
                assert reward == pytest.approx(episode.rewards[t])
                assert (terminated, truncated) == (episode.terminations[t], episode.truncations[t])
                for name in ("brevity", "variety"):
                    assert info["reward_parts"][name] == pytest.approx(episode.infos["reward_parts"][name][t + 1])
        assert info["text"] == episode.infos["text"][-1].decode()
        assert info["finish_reason"] == episode.infos["finish_reason"][-1].decode()


def test_a_part_of_a_data_set_is_read_too(word_model: Path, tmp_path: Path):
    venv, recorded = played(word_model, tmp_path, PLAIN_TASK)
    written(recorded, venv, tmp_path / "words-v0")
    whole = minari.MinariDataset(tmp_path / "words-v0" / "data")
    part = read(whole.filter_episodes(lambda episode: episode.rewards.sum() >= np.median(recorded.rollout.scores)))
    assert 0 < len(part.seeds) < 10
    kept = recorded.rollout.scores >= recorded.rollout.scores.median()
    assert set(part.rollout.texts) <= {text for text, keep in zip(recorded.rollout.texts, kept, strict=True) if keep}


@pytest.mark.filterwarnings("ignore:.*max_new_tokens:UserWarning")
def test_failed_episodes_are_left_out_and_counted(word_model: Path, tmp_path: Path):
    failing: list[Failing] = []

    def wrap(venv: Any) -> Failing:
        failing.append(Failing(venv, lambda number: number % 3 == 1))
        return failing[0]

    venv, recorded = played(word_model, tmp_path, {**PLAIN_TASK, "min_new_tokens": 2}, wrap)
    found = written(recorded, venv, tmp_path / "words-v0")
    assert found.facts["failed_episodes"] == len(failing[0].failed_prompts) >= 3
    assert "failed" not in found.rollout.finish_reasons
    assert found.rollout.chosen_prompts == list(range(3, 13))
    totals = sum(values.sum(dim=1) for values in found.parts.values())
    assert isinstance(totals, torch.Tensor)
    torch.testing.assert_close(totals.float(), found.rollout.scores, msg="nothing of what failed was counted")
    assert len(set(found.seeds)) == 10


def test_it_is_written_as_a_whole_or_not_at_all(word_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    venv, recorded = played(word_model, tmp_path, PLAIN_TASK)
    before = sorted(path.name for path in tmp_path.iterdir())
    infos, calls = minari_data._infos, []

    def full(*arguments: Any) -> Any:
        calls.append(0)
        if len(calls) == 7:
            raise OSError("No space left on device")
        return infos(*arguments)

    monkeypatch.setattr(minari_data, "_infos", full)
    with pytest.raises(OSError, match="No space left"):
        written(recorded, venv, tmp_path / "words-v0")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def settings(model: Path, folder: Path, **more: Any) -> RecordSettings:
    prompts = write_prompts(folder / "prompts.jsonl")
    given: dict[str, Any] = {"env": "textgen/TextGen-v0", "model": str(model), "prompts": str(prompts), "num_envs": 4}
    given |= {"scorer": '{"name": "distinct"}', "max_new_tokens": 5, "eval_prompts": 4, "episodes": 24}
    return RecordSettings(**{**given, "output": str(folder / "words-v0"), **more})


def test_the_command_plays_training_prompts_alone(word_model: Path, tmp_path: Path):
    recorded = Recorder(settings(word_model, tmp_path, responses=2)).execute()
    assert_same(read(tmp_path / "words-v0").rollout, recorded.rollout)
    assert len(set(recorded.rollout.prompts)) == 12
    assert recorded.rollout.prompts[0::2] == recorded.rollout.prompts[1::2]
    again = Recorder(settings(word_model, tmp_path, responses=2, output=str(tmp_path / "words-v1"))).execute()
    assert again.fingerprint == recorded.fingerprint


def test_a_relative_path_will_do(word_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    given = settings(word_model, tmp_path, output="sets/words-v0")
    monkeypatch.chdir(tmp_path)
    recorded = Recorder(given).execute()
    assert read("sets/words-v0").fingerprint == recorded.fingerprint
    assert len(minari.MinariDataset("sets/words-v0/data")) == 24
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prompts.jsonl", "sets"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"output": None}, "output=None: name the folder"),
        ({"output": "words.v"}, "must end in the id of a data set"),
        ({"episodes": 0}, "episodes=0 must be a whole number"),
        ({"top_p": 0.0}, "top_p=0.0 must be"),
        ({"policy": "nowhere"}, "nowhere"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_played(
    more: dict[str, Any], said: str, word_model: Path, tmp_path: Path
):
    with pytest.raises((ValueError, OSError), match=said):
        Recorder(settings(word_model, tmp_path, **more))
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]


def test_what_is_there_is_left_alone(word_model: Path, tmp_path: Path):
    (tmp_path / "words-v0").mkdir()
    with pytest.raises(FileExistsError, match="exists already"):
        Recorder(settings(word_model, tmp_path))
    with pytest.raises(ValueError, match="is no data set of Minari's"):
        read(tmp_path / "words-v0")


# --- behaviour cloning ------------------------------------------------------------------------------------------------


def test_the_best_share():
    scores = torch.tensor([0.1, 0.9, float("nan"), 0.5, 0.9, 0.2])
    assert best(scores, 1.0) == [0, 1, 2, 3, 4, 5]
    assert best(scores, 1 / 3) == [1, 4]
    assert best(scores, 0.5) == [1, 3, 4]
    assert best(scores, 5 / 6) == [0, 1, 3, 4, 5], "one without a score comes last"
    assert best(scores, 0.5, [7, 7, 7, 2, 2, 2]) == [0, 1, 3, 4]


def test_the_likelihood_is_of_what_the_agent_wrote(word_model: Path, tmp_path: Path):
    """Replies of the environment, between the turns, are read and not learned: by the library's own loss."""
    _, recorded = played(word_model, tmp_path, TASKS["dialogue"])
    trainer = SFT(
        ActorCritic(LanguageModel(word_model), ActorConfig()),
        SFTConfig(minibatch_size=10, micro_batch_size=10),
        recorded_examples(recorded),
    )
    loss, _ = trainer.loss(trainer.batch(trainer.examples), torch.arange(10))
    rollout = recorded.rollout
    labels = rollout.input_ids.masked_fill(rollout.response_mask == 0, -100)
    model = LanguageModel(word_model).model
    theirs = model(input_ids=rollout.input_ids, attention_mask=rollout.attention_mask, labels=labels).loss
    assert loss.item() == pytest.approx(theirs.item(), abs=1e-5)


def clone(model: Path, folder: Path, *more: str) -> list[str]:
    values = ["--env", "textgen/TextGen-v0", "--model", str(model), "--prompts", str(folder / "prompts.jsonl")]
    values += ["--scorer", "distinct", "--max-new-tokens", "5", "--eval-prompts", "4", "--updates", "2"]
    return [*values, "--dataset", str(folder / "words-v0"), "--output", str(folder / "run"), *more]


@pytest.mark.heavy
def test_the_command_learns_the_best_share_and_refuses_what_is_held_out(word_model: Path, tmp_path: Path):
    Recorder(settings(word_model, tmp_path)).execute()
    run = make_run(clone(word_model, tmp_path, "--best-share", "0.25"))
    texts = {example.response for example in run.trainer.examples}
    assert len(run.trainer.examples) == 6
    assert texts <= set(read(tmp_path / "words-v0").rollout.texts)
    assert (run.execute() / "last" / "model.safetensors").exists()
    with pytest.raises(ValueError, match="held-out prompts"):
        make_run(clone(word_model, tmp_path, "--eval-prompts", "8", "--output", str(tmp_path / "other")))
    with pytest.raises(ValueError, match="was recorded in 'textgen/TextGen-v0'"):
        make_run(clone(word_model, tmp_path, "--env", "textgen/Summarize-v0", "--output", str(tmp_path / "other")))
    assert not (tmp_path / "other").exists()
