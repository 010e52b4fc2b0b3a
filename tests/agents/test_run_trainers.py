"""Every native trainer by `Run`: its folder, and that a killed and resumed run ends with the same bits."""

from __future__ import annotations

import json
import math
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from small_run import flags, start, write_completions
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from textgen_env.agents.preferences.pairs import Pair, write_pairs, write_trl
from textgen_env.agents.preferences.source import split_pairs
from textgen_env.agents.training.checkpoint import CheckpointError
from textgen_env.agents.training.metrics_log import read_metrics

MODULES = ["reinforce-mean", "reinforce-learned", "grpo", "vine_ppo", "expected", "sft", "iql", "dpo", "reward_model"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen prompts of two words, each with a completion."""
    return write_completions(tmp_path_factory.mktemp("prompts") / "pairs.jsonl")


def flags_of(name: str, output: Path, model: Path, prompts: Path, *more: str) -> tuple[str, list[str]]:
    """The module, and its flags for a run of seconds."""
    module, _, baseline = name.partition("-")
    given = flags(output, model, prompts)
    if module in ("sft", "iql", "dpo", "reward_model"):
        for flag in ("--episodes", "--adaptive-kl-target"):
            del given[given.index(flag) : given.index(flag) + 2]
    if baseline:
        given += ["--baseline", baseline, "--group-size", "2"]
    if module == "grpo":
        given += ["--group-size", "4", "--scale", "group", "--length-norm", "token"]
    if module in ("dpo", "reward_model"):
        given += ["--train-pairs", "12", "--held-out-pairs", "5"]
    if module == "iql":
        given += ["--critic-warmup", "2", "--dataset", str(recorded(given, prompts))]
    given += more
    return module, given


def recorded(given: list[str], prompts: Path) -> Path:
    """Episodes of the untrained policy, beside the prompts."""
    pytest.importorskip("minari")
    from textgen_env.agents import record

    if not (folder := prompts.with_name("recorded-v0")).exists():
        names = (
            "--env",
            "--model",
            "--prompts",
            "--scorer",
            "--max-new-tokens",
            "--max-prompt-tokens",
            "--eval-prompts",
        )
        task = [part for name in names for part in given[given.index(name) : given.index(name) + 2]]
        record.main([*task, "--num-envs", "4", "--episodes", "24", "--output", str(folder)])
    return folder


def run(name: str, *arguments: Any) -> None:
    module, given = flags_of(name, *arguments)
    import_module(f"textgen_env.agents.{module}").main(given)


def without_times(folder: Path) -> list[dict[str, Any]]:
    records = read_metrics(folder / "metrics.jsonl")
    return [{key: value for key, value in record.items() if "tokens_per_second" not in key} for record in records]


@pytest.mark.parametrize("name", MODULES)
def test_killed_and_resumed_it_ends_with_the_same_bits(name: str, word_model: Path, pairs: Path, tmp_path: Path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    run(name, straight, word_model, pairs)
    records = read_metrics(straight / "metrics.jsonl")
    assert [r["update"] for r in records if "train/loss" in r] == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(value) for record in records for value in record.values())
    left = {"last", "best", "before.json", "after.json", "plot.png"}
    left |= set() if name == "reward_model" else {"episodes.html"}  # it writes no responses
    assert left <= {p.name for p in straight.iterdir()}
    module, given = flags_of(name, killed, word_model, pairs)
    process = start(module, *given)
    while process.poll() is None and len(read_metrics(killed / "metrics.jsonl")) < 4:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run must not have ended before the kill"
    run(name, killed, word_model, pairs, "--resume")
    assert without_times(killed) == without_times(straight)
    for path in ("after.json", "last/model.safetensors", "best/model.safetensors"):
        assert (killed / path).read_bytes() == (straight / path).read_bytes()
    for path in (straight / "checkpoints" / "00000006").iterdir():
        assert (killed / "checkpoints" / "00000006" / path.name).read_bytes() == path.read_bytes()


def test_a_supervised_run_measures_its_held_out_references(word_model: Path, pairs: Path, tmp_path: Path):
    """Before, during and after; the score and the KL beside them, and no critic in what is saved."""
    folder = tmp_path / "run"
    run("sft", folder, word_model, pairs)
    before, after = (json.loads((folder / f"{name}.json").read_text())["metrics"] for name in ("before", "after"))
    evaluations = [r for r in read_metrics(folder / "metrics.jsonl") if "eval/score" in r]
    assert [r["update"] for r in evaluations] == [3, 6]
    assert evaluations[-1]["eval/perplexity"] == after["perplexity"]
    assert after["perplexity"] < before["perplexity"]
    assert before["kl_per_token"] == pytest.approx(0, abs=1e-6)
    assert after["kl_per_token"] != 0
    assert not (folder / "last" / "critic.safetensors").exists()
    AutoModelForCausalLM.from_pretrained(folder / "last")


def test_a_reward_model_of_adapters_is_saved_merged(word_model: Path, pairs: Path, tmp_path: Path):
    """Two members, which learn different adapters; what is left loads without peft."""
    run("reward_model", tmp_path / "lora", word_model, pairs, "--lora-rank", "2", "--members", "2", "--updates", "2")
    for member in ("last", "last/member-1"):
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "lora" / member)
        assert not any("lora" in name for name in model.state_dict())


@pytest.mark.parametrize("name", ["reinforce", "grpo", "sft", "iql", "dpo"])
def test_it_trains_adapters_in_bf16(name: str, word_model: Path, pairs: Path, tmp_path: Path):
    run(name, tmp_path / "lora", word_model, pairs, "--lora-rank", "2", "--dtype", "bfloat16", "--updates", "2")
    assert (tmp_path / "lora" / "last" / "adapter").is_dir()


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("reinforce", ["--group-size", "3"], "group_size=3 must divide episodes=8"),
        ("reinforce", ["--critic", "shared"], "Unrecognized options: --critic"),
        ("grpo", ["--normalize-parts", "--scale", "none"], "normalize_parts=True with scale='none' must be with"),
        ("sft", ["--episodes", "8"], "Unrecognized options: --episodes"),
        ("iql", ["--expectile", "1"], "expectile=1.0 must be a number above 0 and below 1"),
        ("dpo", ["--beta", "0"], "beta=0.0 must be a finite number > 0"),
        ("dpo", ["--label-flip", "2"], "label_flip=2.0 must be a number from 0 to 1"),
        ("reward_model", ["--members", "0"], "members=0 must be a whole number ≥ 1"),
        ("reward_model", ["--lora-rank", "-1"], "lora_rank=-1 must be a whole number ≥ 0"),
        ("reward_model", ["--critic", "shared"], "Unrecognized options: --critic"),
        ("sft", ["--lr", "-1"], "lr=-1.0 must be a finite number ≥ 0"),
    ],
)
def test_a_wrong_flag_is_one_line_and_code_2(
    name: str,
    wrong: list[str],
    message: str,
    word_model: Path,
    pairs: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
):
    with pytest.raises(SystemExit) as end:
        run(name, tmp_path / "run", word_model, pairs, *wrong)
    assert end.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert message in line
    assert line.endswith(f"(see python -m textgen_env.agents.{name} --help)")
    assert not (tmp_path / "run").exists()


def test_a_reward_model_is_measured_on_held_out_pairs_and_is_a_scorer(
    word_model: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """From a file in TRL's form, as an ensemble; what the run says at its end is taken by an environment."""
    rows = [Pair(f"{a} {b}", f" {b}", f" {a}", "a" if a < "c" else "b") for a in "abcd" for b in "efgh"]
    path = tmp_path / "trl.jsonl"
    assert write_trl(path, [*rows, Pair("a", "b", "c", "tie")]) == 1
    folder = tmp_path / "run"
    run("reward_model", folder, word_model, pairs, "--pairs", str(path), "--members", "2")
    before, after = (json.loads((folder / f"{name}.json").read_text())["metrics"] for name in ("before", "after"))
    assert (before["accuracy"], before["calibration_error"], before["disagreement"]) == (0.5, 0, 0)
    assert before["log_loss"] == pytest.approx(math.log(2))
    assert after["log_loss"] < before["log_loss"]
    assert after["disagreement"] > 0
    evaluations = [r for r in read_metrics(folder / "metrics.jsonl") if "eval/accuracy" in r]
    assert [r["update"] for r in evaluations] == [3, 6]
    assert evaluations[-1]["eval/log_loss"] == after["log_loss"]
    assert {"eval/accuracy_stderr", "eval/log_loss_stderr"} <= evaluations[-1].keys()
    said = re.sub(r"\s+", "", capsys.readouterr().out)
    scorer = {"name": "classifier", "model": str(folder / "last"), "output": "logit"}
    assert "asascorer:--scorer" + re.sub(r"\s+", "", shlex.quote(json.dumps(scorer))) in said
    run("reinforce", tmp_path / "policy", word_model, pairs, "--scorer", json.dumps(scorer), "--updates", "1")


def test_pairs_that_changed_are_no_longer_those_of_the_run(word_model: Path, pairs: Path, tmp_path: Path):
    path, folder = tmp_path / "pairs.jsonl", tmp_path / "run"
    rows = [Pair(f"{a} {b}", f" {b}", f" {a}", "a") for a in "abcd" for b in "efgh"]
    write_pairs(path, rows)
    run("dpo", folder, word_model, pairs, "--pairs", str(path), "--updates", "2")
    write_pairs(path, [replace(rows[0], choice="b"), *rows[1:]])
    with pytest.raises(CheckpointError, match="content of pairs"):
        run("dpo", folder, word_model, pairs, "--pairs", str(path), "--updates", "3", "--resume")
    write_pairs(path, [replace(row, choice="cannot tell") for row in rows])
    with pytest.raises(ValueError, match="has a choice to learn from"):
        run("dpo", tmp_path / "other", word_model, pairs, "--pairs", str(path))


def test_held_out_pairs_share_no_prompt_with_those_to_learn_from():
    rows = [Pair(f"p{i // 3}", "x", f"y{i}", "a") for i in range(60)]
    train, held_out = split_pairs(rows, 8)
    assert sorted(train + held_out, key=rows.index) == rows
    assert not {p.prompt for p in train} & {p.prompt for p in held_out}
    assert 8 <= len(held_out) <= 10
    assert len(split_pairs(rows, 1000)[1]) == 12  # a fifth
    assert split_pairs(rows[:3], 8) == (rows[:3], [])


def test_prompts_without_anything_to_learn_are_refused(word_model: Path, tmp_path: Path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"a {b}"}) + "\n" for b in "efghijklmabcd"))
    with pytest.raises(ValueError, match='neither "references" nor a "completion"'):
        run("sft", tmp_path / "run", word_model, path)
    assert not (tmp_path / "run").exists()


def test_a_data_set_that_is_not_there_is_one_line_and_code_2(tmp_path: Path):
    """Of the program, as one calls it."""
    command = [
        sys.executable,
        "-m",
        "textgen_env.agents.iql",
        "--dataset",
        "nowhere",
        "--output",
        str(tmp_path / "run"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "dataset='nowhere' is no data set of Minari's" in done.stderr.splitlines()[-1]
