"""Whole runs: the folder they leave, and that a killed and resumed one ends with the same bits."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_run import flags, write_prompts
from transformers import AutoModelForCausalLM, AutoTokenizer

from textgen_env.agents.ppo import main
from textgen_env.agents.training.checkpoint import CheckpointError
from textgen_env.agents.training.evaluate import distinct_n
from textgen_env.agents.training.metrics_log import MetricsLog, read_metrics
from textgen_env.agents.training.run import split_prompts
from textgen_env.episode import Prompt


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("prompts") / "prompts.jsonl")


def without_times(folder: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in record.items() if "tokens_per_second" not in key}
        for record in read_metrics(folder / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def straight(word_model: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("runs") / "straight"
    main(flags(folder, word_model, prompts))
    return folder


def test_the_folder_holds_everything(straight: Path):
    names = {path.name for path in straight.iterdir()}
    wanted = (
        "settings.json metrics.jsonl tensorboard checkpoints before.json after.json optimum.json plot.png "
        "episodes.html best last"
    )
    assert names == set(wanted.split())
    records = read_metrics(straight / "metrics.jsonl")
    assert [r["update"] for r in records if "train/score" in r] == [1, 2, 3, 4, 5, 6]
    assert [r["update"] for r in records if "eval/score" in r] == [3, 6]
    assert all(math.isfinite(value) for record in records for value in record.values())
    assert records[0]["train/first_ratio_error"] == 0
    before, after = (json.loads((straight / f"{name}.json").read_text()) for name in ("before", "after"))
    assert before["prompts"] == after["prompts"]
    assert before["metrics"]["kl_per_token"] == pytest.approx(0, abs=1e-6)
    assert after["metrics"]["kl_per_token"] != 0
    assert (straight / "plot.png").read_bytes()[:4] == b"\x89PNG"


def test_the_trained_model_loads_with_from_pretrained(straight: Path, word_model: Path):
    trained, original = (AutoModelForCausalLM.from_pretrained(path) for path in (straight / "last", word_model))
    assert AutoTokenizer.from_pretrained(straight / "last").encode("a b") == [3, 4]
    assert not torch.equal(trained.lm_head.weight, original.lm_head.weight)
    assert "value_head.out.weight" in load_file(straight / "last" / "critic.safetensors")
    assert not list(straight.rglob("*.bin")) + list(straight.rglob("*.pt"))


def test_killed_at_any_moment_and_resumed_it_ends_with_the_same_bits(
    straight: Path, word_model: Path, prompts: Path, tmp_path: Path
):
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "textgen_env.agents.ppo", *flags(folder, word_model, prompts)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for lines in (2, 5):  # killed twice, at moments that the clock decides
        more = ["--resume"] if folder.exists() else []
        process = subprocess.Popen([*command, *more], env=environment, stdout=subprocess.DEVNULL)
        while process.poll() is None and len(read_metrics(folder / "metrics.jsonl")) < lines:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the run must not have ended before the kill"
    main(flags(folder, word_model, prompts, "--resume"))
    assert without_times(folder) == without_times(straight)
    for name in ("before.json", "after.json"):
        assert (folder / name).read_text() == (straight / name).read_text()
    for part in ("last/model.safetensors", "last/critic.safetensors", "best/model.safetensors"):
        assert (folder / part).read_bytes() == (straight / part).read_bytes()
    for path in (straight / "checkpoints" / "00000006").iterdir():
        assert (folder / "checkpoints" / "00000006" / path.name).read_bytes() == path.read_bytes()


def test_a_damaged_checkpoint_costs_the_updates_since_the_one_before(
    straight: Path, word_model: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "damaged"
    shutil.copytree(straight, folder)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["00000004", "00000006"]
    damaged = folder / "checkpoints" / "00000006" / "state.json"
    damaged.write_text(damaged.read_text().replace('"updates": 6', '"updates": 5'))
    main(flags(folder, word_model, prompts, "--resume"))
    said = capsys.readouterr().out
    assert f"{damaged} is damaged" in said
    assert "going on after update 4 of 6" in said
    assert without_times(folder) == without_times(straight)
    for name in ("after.json", "last/model.safetensors", "best/model.safetensors"):
        assert (folder / name).read_bytes() == (straight / name).read_bytes()
    for path in (straight / "checkpoints" / "00000006").iterdir():
        assert (folder / "checkpoints" / "00000006" / path.name).read_bytes() == path.read_bytes()


def test_a_run_that_ended_goes_on_with_more_updates(word_model: Path, prompts: Path, tmp_path: Path):
    """Where the schedule does not depend on the length, it is the longer run."""
    constant = ["--lr-decay", "constant"]
    main(flags(tmp_path / "short", word_model, prompts, *constant, "--updates", "2"))
    main(flags(tmp_path / "short", word_model, prompts, *constant, "--updates", "4", "--resume"))
    main(flags(tmp_path / "long", word_model, prompts, *constant, "--updates", "4"))
    short, long = (
        [record for record in without_times(tmp_path / name) if "train/score" in record] for name in ("short", "long")
    )
    assert short == long
    assert [record["update"] for record in short] == [1, 2, 3, 4]
    last = "last/model.safetensors"
    assert (tmp_path / "short" / last).read_bytes() == (tmp_path / "long" / last).read_bytes()


@pytest.mark.parametrize("what", ["prompts", "model"])
def test_other_content_under_the_same_name_is_refused(what: str, word_model: Path, tmp_path: Path):
    prompts, model = write_prompts(tmp_path / "prompts.jsonl"), tmp_path / "model"
    shutil.copytree(word_model, model)
    given = flags(tmp_path / "run", model, prompts, "--updates", "1", "--lora-rank", "2")
    main(given)
    main([*given, "--resume"])
    if what == "prompts":
        prompts.write_text(prompts.read_text().replace("a e", "a f"))
    else:
        weights = load_file(model / "model.safetensors")
        weights["model.norm.weight"][0] += 0.5
        save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"content of {what}='[0-9a-f]{{8}}' there, '[0-9a-f]{{8}}' here"):
        main([*given, "--resume"])


def test_what_the_first_evaluation_refuses_leaves_no_folder(word_model: Path, prompts: Path, tmp_path: Path):
    """BLEU without references is found when the first response is scored."""
    with pytest.raises(Exception, match="reference"):
        main(flags(tmp_path / "deep" / "run", word_model, prompts, "--scorer", "bleu"))
    assert not (tmp_path / "deep").exists()


def test_a_folder_is_not_overwritten_and_settings_may_not_change(straight: Path, word_model: Path, prompts: Path):
    with pytest.raises(FileExistsError, match="--resume"):
        main(flags(straight, word_model, prompts))
    with pytest.raises(ValueError, match="resume: seed, temperature differ"):
        main(flags(straight, word_model, prompts, "--resume", "--seed", "3", "--temperature", "0.5"))


def test_lora_and_a_separate_critic_in_bf16(word_model: Path, prompts: Path, tmp_path: Path):
    """Saved merged, with the adapter beside it; both give the same logits."""
    from peft import PeftModel

    options = ["--lora-rank", "2", "--critic", "separate", "--dtype", "bfloat16", "--updates", "2"]
    main(flags(tmp_path / "lora", word_model, prompts, *options))
    last = tmp_path / "lora" / "last"
    merged = AutoModelForCausalLM.from_pretrained(last)
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(word_model), last / "adapter")
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits.float(), adapted(ids).logits, atol=0.05, rtol=0.05)
    assert any(name.startswith("critic.") for name in load_file(last / "critic.safetensors"))


def test_held_out_prompts_are_not_trained_on():
    everything = [Prompt(str(i)) for i in range(20)]
    train, held_out = split_prompts(everything, 5)
    assert len(held_out) == 5
    assert sorted(p.text for p in train + held_out) == sorted(p.text for p in everything)
    assert split_prompts(everything, 5) == (train, held_out)
    assert split_prompts(everything[:6], 5) == (everything[:6], everything[:5])
    with pytest.raises(ValueError, match="eval_prompts=0"):
        split_prompts(everything, 0)


def test_distinct_by_hand():
    """(1,2) (2,1) (1,2) | (1,2): two different among four."""
    assert distinct_n([[1, 2, 1, 2], [1, 2], [3]], 2) == 0.5
    assert distinct_n([[1]], 2) == 0


def test_metrics_after_the_checkpoint_are_dropped(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"update": 1, "train/score": 0.1}\n{"update": 2, "train/score": 0.2}\n{"update": 3, "tra')
    with MetricsLog(tmp_path, after=1) as log:
        log.write(2, {"score": 0.3})
    assert read_metrics(path) == [{"update": 1, "train/score": 0.1}, {"update": 2, "train/score": 0.3}]
