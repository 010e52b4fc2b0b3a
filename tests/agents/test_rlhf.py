"""The pipeline from labels to a policy: what each stage gets, and that a killed one ends with the same numbers."""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import as_flags, write_completions
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from textgen_env.agents import rlhf
from textgen_env.agents.preferences.labellers import SyntheticLabeller, agreement
from textgen_env.agents.preferences.loop import label_schedule
from textgen_env.agents.preferences.pairs import Pair, read_pairs, write_pairs
from textgen_env.agents.preferences.source import JudgeConfig, split_pairs
from textgen_env.agents.preferences.stages import stages_table
from textgen_env.agents.preferences.store import PreferenceStore
from textgen_env.agents.rlhf import RLHF, main, make_run
from textgen_env.agents.training.checkpoint import latest_checkpoint, read_state
from textgen_env.agents.training.evaluate import EvalReport
from textgen_env.agents.training.metrics_log import read_metrics

LOOP = ["--rounds", "2", "--sft-updates", "1", "--select", "disagreement", "--reward-model.members", "2"]
LOOP += ["--label-temperature", "0.5", "--initial-share", "0.5", "--sft.minibatch-size", "4"]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_completions(tmp_path_factory.mktemp("prompts") / "prompts.jsonl")


def flags(output: Path, model: Path, prompts: Path, *more: str) -> list[str]:
    """A pipeline of seconds."""
    values: dict[str, Any] = {
        "env": "textgen/TextGen-v0",
        "model": model,
        "prompts": prompts,
        "scorer": "test_rlhf:judge",
        "max-new-tokens": 4,
        "max-prompt-tokens": 4,
        "num-envs": 4,
        "eval-prompts": 4,
        "labels": 12,
        "held-out-pairs": 2,
        "reward-updates": 2,
        "ppo-updates": 4,
        "eval-every": 2,
        "save-every": 1,
        "output": output,
        "reward-model.minibatch-size": 4,
        "responses": 2,
        "ppo.episodes": 8,
    }
    values |= dict.fromkeys(("sft.micro-batch-size", "reward-model.micro-batch-size", "ppo.micro-batch-size"), 4)
    values |= {"sft.minibatch-size": 4, "ppo.minibatch-size": 4, "reward-model.warmup-updates": 0, "ppo.lr": 0.01}
    return as_flags(values, *more)


ASKED: list[str] = []
"""Every text that the judge was asked about, in this process."""


def judge(completions: list[str], **_: Any) -> list[float]:
    """Likes "a" and length."""
    ASKED.extend(completions)
    return [text.split().count("a") + len(text.split()) / 4 for text in completions]


@pytest.fixture(scope="module")
def loop(word_model: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rounds that were never stopped."""
    folder = tmp_path_factory.mktemp("runs") / "loop"
    main(flags(folder, word_model, prompts, *LOOP))
    return folder


@pytest.fixture(scope="module")
def pipeline(word_model: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One round that was never stopped."""
    folder = tmp_path_factory.mktemp("runs") / "pipeline"
    main(flags(folder, word_model, prompts))
    return folder


# --- what a pipeline is -----------------------------------------------------------------------------------------------


def test_one_round_leaves_run_folders_pairs_and_the_measured_stages(pipeline: Path):
    names = {path.name for path in pipeline.iterdir()}
    assert names == {
        "settings.json",
        "preferences.db",
        "pairs.jsonl",
        "reward_model",
        "scorer.json",
        "ppo",
        "stages.json",
    }
    for stage in ("reward_model", "ppo"):
        assert {"settings.json", "last", "after.json", "plot.png", "complete"} <= {
            p.name for p in (pipeline / stage).iterdir()
        }
    assert [r["update"] for r in read_metrics(pipeline / "ppo" / "metrics.jsonl") if "train/score" in r] == [1, 2, 3, 4]
    pairs = read_pairs(pipeline / "pairs.jsonl")
    assert pairs == PreferenceStore(pipeline / "preferences.db").pairs()
    assert {p.who for p in pairs} == {"synthetic"}
    assert [p.choice for p in pairs] == [p.choice for p in SyntheticLabeller(judge)(pairs)]
    assert list(json.loads((pipeline / "stages.json").read_text())) == ["at the start", "after PPO"]


def updates_in(folder: Path) -> list[int]:
    return [record["update"] for record in read_metrics(folder / "metrics.jsonl") if "train/score" in record]


def rewards_by_transformers(folder: Path, texts: list[str]) -> list[float]:
    """Of whole texts, each alone, by the library."""
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return [model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0, 0].item() for text in texts]


def test_ppo_is_paid_by_the_reward_model_with_mean_0_and_deviation_1_over_the_first_responses(pipeline: Path):
    pairs = read_pairs(pipeline / "pairs.jsonl")
    raw = rewards_by_transformers(pipeline / "reward_model" / "last", [p.prompt + t for p in pairs for t in (p.a, p.b)])
    mean, deviation = statistics.fmean(raw), statistics.pstdev(raw)
    after = json.loads((pipeline / "ppo" / "after.json").read_text())
    texts = [prompt + text for prompt, text in zip(after["prompts"], after["texts"], strict=True)]
    expected = [(r - mean) / deviation for r in rewards_by_transformers(pipeline / "reward_model" / "last", texts)]
    assert after["scores"] == pytest.approx(expected, abs=2e-3)
    assert len(set(after["scores"])) > 1


def test_an_ensemble_pays_the_mean_of_its_members(loop: Path):
    first = read_pairs(loop / "round-1" / "pairs.jsonl")
    second = loop / "round-2"
    after = json.loads((second / "ppo" / "after.json").read_text())
    samples = [p.prompt + t for p in first for t in (p.a, p.b)]
    texts = [prompt + text for prompt, text in zip(after["prompts"], after["texts"], strict=True)]
    members = [second / "reward_model" / "last", second / "reward_model" / "last" / "member-1"]
    of_samples, of_texts = (
        [statistics.fmean(each) for each in zip(*(rewards_by_transformers(m, given) for m in members), strict=True)]
        for given in (samples, texts)
    )
    mean, deviation = statistics.fmean(of_samples), statistics.pstdev(of_samples)
    assert after["scores"] == pytest.approx([(r - mean) / deviation for r in of_texts], abs=2e-3)


def test_the_stages_are_measured_by_judge_and_reward_model(loop: Path):
    stages = json.loads((loop / "stages.json").read_text())
    assert list(stages) == ["at the start", "after SFT", "after round 1", "after round 2"]
    for name, policy in (("after SFT", loop / "sft"), ("after round 2", loop / "round-2" / "ppo")):
        report = stages[name]
        scores = judge(report["texts"])
        assert report["metrics"]["judge"] == pytest.approx(statistics.fmean(scores))
        assert report["left_out"]["judge"][0] == pytest.approx(statistics.fmean(scores[1:]))
        assert (policy / "last").is_dir()
    after = json.loads((loop / "round-2" / "ppo" / "after.json").read_text())
    last = stages["after round 2"]
    assert last["texts"] == after["texts"]  # the same luck
    assert last["metrics"]["reward_model"] == pytest.approx(statistics.fmean(after["scores"]), abs=1e-4)
    assert last["metrics"]["kl_per_response"] == pytest.approx(after["metrics"]["kl_per_response"], abs=1e-4)
    assert stages["after SFT"]["metrics"]["kl_per_response"] == pytest.approx(0, abs=1e-5)


def test_ppo_and_reward_model_never_ask_the_judge(
    word_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Labels and the last table are all that it is for."""
    asked: dict[str, int] = {}
    run = RLHF._run

    def counting(self: RLHF, folder: Path, make: Callable[..., Any]) -> None:
        before = len(ASKED)
        run(self, folder, make)
        asked[folder.name] = len(ASKED) - before

    monkeypatch.setattr(RLHF, "_run", counting)
    before = len(ASKED)
    main(flags(tmp_path / "run", word_model, prompts))
    assert asked == {"reward_model": 0, "ppo": 0}
    assert len(ASKED) - before >= 2 * 12 + 2 * 4  # pairs, and two policies on four prompts


def test_ppo_goes_on_with_policy_critic_and_optimiser(loop: Path):
    first, second = (loop / f"round-{number}" / "ppo" for number in (1, 2))
    assert (updates_in(first), updates_in(second)) == ([1, 2], [3, 4])
    checkpoints = [latest_checkpoint(folder / "checkpoints") for folder in (first, second)]
    assert [path.name for path in checkpoints if path] == ["00000002", "00000004"]
    states = [read_state(path)["trainer"]["optimizer"]["state"] for path in checkpoints if path]
    steps = [{float(entry["step"]) for entry in state.values()} for state in states]
    assert steps == [{8.0}, {16.0}]  # 2 updates of 2 epochs of 2 minibatches, twice
    before, after = (
        json.loads((folder / name).read_text()) for folder, name in ((second, "before.json"), (first, "after.json"))
    )
    assert before["texts"] == after["texts"]
    assert before["scores"] != after["scores"]  # of another reward model


def test_the_reward_model_is_fitted_to_all_labels_so_far(loop: Path):
    first, second = (read_pairs(loop / f"round-{n}" / "pairs.jsonl") for n in (1, 2))
    assert len(first) == 6
    assert second[:6] == first
    assert 6 < len(second) <= 12
    settings = json.loads((loop / "round-2" / "reward_model" / "settings.json").read_text())
    assert settings["data"]["pairs"] == str(loop / "round-2" / "pairs.jsonl")
    assert settings["model"] == str(loop / "sft" / "last")  # from scratch, each time


def test_the_table_of_stages_by_hand():
    """Judged .4 and .6, then .6 and 1: means .5 and .8, errors .1 and .2; of the difference .1."""

    def report(judged: list[float]) -> EvalReport:
        others = {"reward_model": 0.0, "kl_per_response": 1.0, "response_length": 2.0}
        return EvalReport({"judge": sum(judged) / 2, **others}, ["p", "q"], ["", ""], judged, {"judge": judged[::-1]})

    table = stages_table({"before": report([0.4, 0.6]), "after": report([0.6, 1.0])})
    assert list(table.columns[1].cells) == ["0.500 ± 0.100", "0.800 ± 0.200\nΔ +0.300 ± 0.100"]
    assert list(table.columns[2].cells) == ["0.00", "0.00\nΔ +0.00"]  # errors that are not known are left out
    assert list(table.columns[3].cells) == ["1.00", "1.00"]


# --- stops and kills --------------------------------------------------------------------------------------------------


def same(one: Path, other: Path, rounds: int) -> None:
    """Two pipelines have come to the same numbers, to the last bit."""
    assert (one / "stages.json").read_bytes() == (other / "stages.json").read_bytes()
    for number in range(1, rounds + 1):
        ours, theirs = (folder if rounds == 1 else folder / f"round-{number}" for folder in (one, other))
        assert read_pairs(ours / "pairs.jsonl") == read_pairs(theirs / "pairs.jsonl")
        for name in ("ppo/after.json", "ppo/last/model.safetensors", "reward_model/last/model.safetensors"):
            assert (ours / name).read_bytes() == (theirs / name).read_bytes(), (number, name)


def in_a_child(given: list[str], prepare: Callable[[], None]) -> int:
    """Run a pipeline in a process of its own; how it ended."""
    child = os.fork()
    if child == 0:
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            prepare()
            main(given)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at_write(number: int) -> Callable[[], None]:
    """The process is killed as it puts its ``number``-th file or folder onto the disk: all that it goes on from."""

    def prepare() -> None:
        left, fsync = [number], os.fsync

        def kill_or_sync(handle: int) -> None:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(handle)

        os.fsync = kill_or_sync

    return prepare


def kill_after(owner: Any, name: str, call: int) -> Callable[[], None]:
    """The process is killed when a function has returned for the ``call``-th time."""

    def prepare() -> None:
        left, function = [call], getattr(owner, name)

        def call_and_kill(*arguments: Any, **named: Any) -> Any:
            result = function(*arguments, **named)
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, name, call_and_kill)

    return prepare


def killed_and_resumed(given: list[str], moments: list[Callable[[], None]]) -> None:
    """Kill it at each of the moments in turn, resuming it in between, and let it come to its end."""
    for prepare in moments:
        assert in_a_child([*given, "--resume"], prepare) == -signal.SIGKILL, "it must not have ended before the kill"
    assert in_a_child([*given, "--resume"], lambda: None) == 0


def test_killed_inside_and_between_stages_it_ends_with_the_same_numbers(
    loop: Path, word_model: Path, prompts: Path, tmp_path: Path
):
    moments = [
        kill_at_write(20),  # in supervised fine-tuning
        kill_after(PreferenceStore, "add", 1),  # labelled, and not written down
        kill_after(rlhf, "normalized_scorer", 1),  # the reward model is fitted, its scorer not written
        kill_at_write(30),  # in PPO
        kill_after(rlhf, "draw_pairs", 1),  # in the second round
        kill_at_write(40),
        kill_after(rlhf, "measure_stage", 2),
    ]
    killed_and_resumed(flags(tmp_path / "run", word_model, prompts, *LOOP), moments)
    same(tmp_path / "run", loop, 2)


@pytest.mark.slow
@pytest.mark.parametrize("begin", range(8))
def test_killed_at_any_write_it_ends_with_the_same_numbers(
    begin: int, pipeline: Path, word_model: Path, prompts: Path, tmp_path: Path
):
    """Each pipeline is killed again and again, each time after a few more writes than could have been its last kill."""
    given = flags(tmp_path / "run", word_model, prompts, "--resume")
    number, ended = begin + 1, -signal.SIGKILL
    while ended == -signal.SIGKILL:
        ended = in_a_child(given, kill_at_write(number))
        number += 8
    assert ended == 0
    same(tmp_path / "run", pipeline, 1)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGTERM ends the process, as outside of tests."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("interruptible")
def test_a_signal_ends_it_with_the_command_to_go_on(
    pipeline: Path,
    word_model: Path,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """Between stages, and inside of one, where the update is finished first."""
    given, iterate = flags(tmp_path / "run", word_model, prompts), rlhf.ppo.PPO.iterate
    command = shlex.join([sys.executable, "-m", "textgen_env.agents.rlhf", *given, "--resume"])

    def stopped(arguments: list[str]) -> str:
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 128 + signal.SIGTERM
        *_, reason, last = capsys.readouterr().out.splitlines()
        assert last == command
        return reason

    with monkeypatch.context() as patch:
        patch.setattr(rlhf, "draw_pairs", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
        assert stopped(given) == "stopped by SIGTERM between two runs; to go on:"
    with monkeypatch.context() as patch:
        patch.setattr(rlhf.ppo.PPO, "iterate", lambda self: (signal.raise_signal(signal.SIGTERM), iterate(self))[1])
        assert "stopped by SIGTERM: update 1 is saved in" in stopped([*given, "--resume"])
    main([*given, "--resume"])
    same(tmp_path / "run", pipeline, 1)


def test_a_folder_is_its_pipelines_own(pipeline: Path, word_model: Path, prompts: Path):
    """Changed settings are named, those that several algorithms have with their algorithm."""
    given = flags(pipeline, word_model, prompts)
    with pytest.raises(FileExistsError, match="already holds a run; add --resume"):
        main(given)
    changed = ["--ppo.lr", "0.02", "--labels", "13", "--reward-updates", "3"]
    with pytest.raises(ValueError, match=r"resume: labels, ppo\.lr, reward_updates differ .*ppo\.lr=0\.02, was 0\.01"):
        main([*given, *changed, "--resume"])
    before = (pipeline / "stages.json").stat().st_mtime_ns
    main([*given, "--resume"])  # nothing is left to do
    assert (pipeline / "stages.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--rounds", "5"], "rounds=5 must be at most ppo_updates=4"),
        (["--select", "disagreement"], "select='disagreement' needs an ensemble; members=1"),
        (["--rounds", "2", "--pairs", "x.jsonl"], "pairs='x.jsonl' with rounds=2"),
        (["--rounds", "3", "--labels", "2"], "labels=2 leave none for round"),
        (["--pairs", "none.jsonl"], "pairs='none.jsonl': there is no such file"),
        (["--ptx-texts", "none.txt"], "ptx_texts='none.txt' must be a text file"),
        (["--scorer", "no such"], "no such"),
        (["--labeller", "nobody"], "nobody"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_folder(
    wrong: list[str], message: str, word_model: Path, prompts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as end:
        rlhf.run_program(lambda: make_run(flags(tmp_path / "run", word_model, prompts, *wrong)))
    assert end.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "run").exists()


# --- labels -----------------------------------------------------------------------------------------------------------


def test_the_schedule_by_hand():
    """A quarter of 300 up front; rates .2/(.2 + t) at t = .2, .4, .6, .8 are ½, ⅓, ¼, ⅕, which sum to 77/60.

    225 labels times 30/77, 20/77, 15/77 and 12/77 are 87.66, 58.44, 43.83 and 35.06.
    """
    assert label_schedule(300, 5, 0.25, 0.2) == [75, 88, 58, 44, 35]
    assert label_schedule(300, 1, 0.25, 0.2) == [300]
    assert label_schedule(7, 2, 0.5, 1.0) == [4, 3]
    assert label_schedule(10, 3, 0.0 + 0.2, 1e6) == [2, 4, 4]  # constant
    with pytest.raises(ValueError, match="labels=300 leave none for round 1 of rounds=5, with initial_share=0"):
        label_schedule(300, 5, 0.0, 0.2)


def test_the_judges_agreement_with_itself():
    """Two labels of one pair are the same with probability p² + (1 − p)²; at p = σ(1), .6068."""
    pairs = [Pair(f"p{i}", f"x{i}", f"y{i}", columns={"scores": [1.0, 0.0]}) for i in range(1000)]
    labels = JudgeConfig(label_temperature=1.0)
    assert abs(labels.self_agreement(labels.judge(3)(pairs), 3) - 0.6067761) < 4 * math.sqrt(0.24 / 1000)
    assert JudgeConfig().self_agreement(JudgeConfig().judge(3)(pairs), 3) == 1
    choices = [[replace(pairs[i], choice=c) for i, c in enumerate(row)] for row in (["a", "b", "tie"], ["a", "a", "b"])]
    assert agreement(*choices) == pytest.approx((1 + 0 + 0.5) / 3)


def test_a_reward_model_is_told_beside_the_judge(loop: Path):
    """Its accuracy as a share of how often the judge, with other luck, says the same of the held-out pairs."""
    for number in (1, 2):
        held_out = split_pairs(read_pairs(loop / f"round-{number}" / "pairs.jsonl"), 2)[1]
        same = []
        for seed in range(2, 18):  # the run's is 1
            again = SyntheticLabeller(judge, temperature=0.5, seed=seed)(held_out)
            same += [p.choice == q.choice for p, q in zip(held_out, again, strict=True)]
        metrics = json.loads((loop / f"round-{number}" / "reward_model" / "after.json").read_text())["metrics"]
        assert 0 < statistics.fmean(same) < 1
        assert metrics["judge_share"] == pytest.approx(metrics["accuracy"] / statistics.fmean(same))


def test_people_may_answer_some_now_and_others_later(
    word_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A labeller need not answer everything: what was said by then is learned, and the rest stays open."""

    def ann(store: PreferenceStore, pairs: Any) -> None:
        for number in store.add(pairs)[::2]:
            store.choose(number, "ann", "a")

    monkeypatch.setattr(rlhf, "make_labeller", lambda *_: ann)
    folder = tmp_path / "run"
    main(flags(folder, word_model, prompts, "--rounds", "2", "--labels", "24", "--initial-share", "0.6"))
    first, second = (read_pairs(folder / f"round-{n}" / "pairs.jsonl") for n in (1, 2))
    assert 0 < len(first) < len(second)
    assert {(p.who, p.choice) for p in second} == {("ann", "a")}
    assert any(p.choice is None for p in PreferenceStore(folder / "preferences.db").pairs())


def test_pairs_from_a_file_are_learned_from_as_they_are(word_model: Path, prompts: Path, tmp_path: Path):
    path, folder, epochs = (
        tmp_path / "pairs.jsonl",
        tmp_path / "run",
        ["--reward-updates", "None", "--reward-epochs", "7"],
    )
    rows = [Pair(f"{a} {b}", " a", " b c", "a", "ann") for a in "abcd" for b in "efgh"]
    write_pairs(path, rows)
    main(flags(folder, word_model, prompts, "--pairs", str(path), "--ppo-updates", "1", *epochs))
    assert read_pairs(folder / "pairs.jsonl") == rows
    assert read_metrics(folder / "reward_model" / "metrics.jsonl")[-1]["update"] == 7 * math.ceil(
        (16 - 2) / 4
    )  # two are held out
    assert not (folder / "preferences.db").exists()
    after = json.loads((folder / "reward_model" / "after.json").read_text())
    assert "judge_share" not in after["metrics"]  # who labelled these is not known


def test_a_judge_to_whom_all_is_one_teaches_nothing(word_model: Path, prompts: Path, tmp_path: Path):
    """A reward model of ties alone is 0 everywhere; PPO is not begun on it."""
    with pytest.raises(ValueError, match="finds all .* responses equally good"):
        main(flags(tmp_path / "run", word_model, prompts, "--label-tie", "1000"))
    assert not (tmp_path / "run" / "ppo").exists()
