"""Runs of Stable-Baselines3's PPO have all that the native trainer's have, and read no pickles."""

from __future__ import annotations

import base64
import io
import json
import math
import pickle
import re
import signal
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("stable_baselines3")

from rich.console import Console
from stable_baselines3 import PPO

from textgen_env.agents import sb3_ppo
from textgen_env.agents.sb3_ppo import SB3Settings, make_run, run
from textgen_env.agents.training.checkpoint import CheckpointError, latest_checkpoint
from textgen_env.agents.training.finite import NonFiniteError
from textgen_env.agents.training.metrics_log import read_metrics

SCORER = '{"name": "normalize", "scorer": {"name": "length", "target": 3}}'


def small(folder: Path, **more: Any) -> SB3Settings:
    settings: dict[str, Any] = {
        "scorer": SCORER,
        "updates": 2,
        "num_envs": 4,
        "n_steps": 8,
        "batch_size": 16,
        "eval_prompts": 4,
        "max_new_tokens": 4,
        "save_every": 1,
        "output": str(folder),
    }
    return SB3Settings(**{**settings, **more})


def flags(folder: Path, *more: str) -> list[str]:
    settings = {name: value for name, value in asdict(small(folder)).items() if value != getattr(SB3Settings, name)}
    named = [(f"--{name.replace('_', '-')}", str(value)) for name, value in settings.items()]
    return [*(part for pair in named for part in pair), *more]


def poison(model: Path, trap: Path) -> None:
    """Make a model.zip that writes a file when SB3 reads it, by a pickle in each of its entries."""

    class Trap:
        def __reduce__(self) -> Any:
            return Path.write_text, (trap, "run")

    with zipfile.ZipFile(model) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    data = json.loads(entries["data"])
    payload = {":type:": "x", ":serialized:": base64.b64encode(pickle.dumps(Trap())).decode()}
    entries["data"] = json.dumps(dict.fromkeys({*data, "extra"}, payload)).encode()
    with zipfile.ZipFile(model, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def test_a_foreign_model_zip_is_never_read(tmp_path: Path):
    folder, trap = tmp_path / "run", tmp_path / "trap"
    run(small(folder))
    poison(folder / "model.zip", trap)
    with pytest.raises(Exception, match=r".*"):
        PPO.load(folder / "model")  # SB3 itself steps into it
    assert trap.exists()
    trap.unlink()
    before, after = run(small(folder, updates=3, resume=True))
    assert not trap.exists()
    assert len(before.texts) == len(after.texts) == 4
    assert PPO.load(folder / "model").num_timesteps == 96  # ours again
    assert not trap.exists()
    for path in folder.glob("checkpoints/*/*"):
        assert path.suffix in (".json", ".safetensors")


def test_a_folder_with_a_model_zip_alone_is_no_run(tmp_path: Path):
    run(small(tmp_path / "run"))
    (tmp_path / "other").mkdir()
    (tmp_path / "run" / "model.zip").rename(tmp_path / "other" / "model.zip")
    poison(tmp_path / "other" / "model.zip", tmp_path / "trap")
    with pytest.raises(FileExistsError, match=r"holds no run, but files \(model\.zip\)"):
        run(small(tmp_path / "other", resume=True))
    assert not (tmp_path / "trap").exists()


def test_everything_that_can_be_kept_is_kept(tmp_path: Path):
    """Weights, moments, β, the scorer's statistics and the counters; then each update moves them."""
    settings = small(tmp_path / "run", adaptive_kl_target=0.5, lora_rank=2)
    run(settings)
    again = make_run(
        flags(tmp_path / "run", "--adaptive-kl-target", "0.5", "--lora-rank", "2", "--resume", "--updates", "4")
    )
    trainer: Any = again.trainer
    saved = PPO.load(tmp_path / "run" / "model")
    assert (trainer.updates, trainer.model.num_timesteps) == (2, 64)
    for name, weight in trainer.model.policy.state_dict().items():
        assert torch.equal(weight, saved.policy.state_dict()[name]), name
    ours, theirs = (model.policy.optimizer.state_dict()["state"] for model in (trainer.model, saved))
    assert ours.keys() == theirs.keys() != set()
    assert all(torch.equal(ours[i]["exp_avg"], theirs[i]["exp_avg"]) for i in ours)
    assert trainer.beta.value == saved.kl_coefficient.value != settings.kl_coef
    assert trainer.env.scorer.state_dict()["count"] > 0
    again.execute()
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [record["update"] for record in records] == [1, 2, 3, 4]
    rates = [record["train/lr"] for record in records]
    assert rates == pytest.approx([5e-5, 0, 2.5e-5, 0])  # falls to 0 over the updates that were planned then


def test_the_numbers_of_an_update_are_those_of_its_responses(tmp_path: Path):
    """Those that the callback has logged by itself; without a response there are none."""
    running = make_run(flags(tmp_path / "run"))
    trainer: Any = running.trainer
    metrics, responses = trainer.iterate()
    logged = trainer.model.logger.name_to_value
    assert metrics["score"] == pytest.approx(logged["rollout/score"])
    assert metrics["response_length"] == pytest.approx(logged["rollout/response_length"])
    assert metrics["eos_rate"] == responses.finish_reasons.count("eos") / len(responses.texts)
    assert sum(responses.lengths) <= 32
    responses._on_rollout_start()
    assert responses.metrics() == {}
    running.close()


def test_the_learning_rate_falls_over_the_whole_run(tmp_path: Path):
    run(small(tmp_path / "run", updates=4, lr=1e-3))
    rates = [record["train/lr"] for record in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert rates == pytest.approx([0.75e-3, 0.5e-3, 0.25e-3, 0])  # SB3's own: what is left when the rollout is done


def test_the_newest_checkpoint_that_can_be_read_is_used(tmp_path: Path):
    folder, screen = tmp_path / "run", io.StringIO()
    run(small(folder))
    path = folder / "checkpoints" / "00000002" / "tensors.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    run(small(folder, resume=True), Console(file=screen, width=1000))
    assert f"{path} is damaged" in screen.getvalue()
    assert "going on after update 1 of 2" in screen.getvalue()
    for state in folder.glob("checkpoints/*/state.json"):
        state.unlink()
    with pytest.raises(CheckpointError, match=re.escape("00000002/state.json")):
        run(small(folder, resume=True))


def test_a_signal_finishes_the_update(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "run"
    running = make_run(flags(folder, "--updates", "5", "--save-every", "4"))
    trainer: Any = running.trainer
    iterate = trainer.iterate

    def with_signal() -> Any:
        if trainer.updates == 1:
            signal.raise_signal(signal.SIGTERM)
        return iterate()

    trainer.iterate = with_signal
    with pytest.raises(SystemExit) as end:
        running.execute()
    assert end.value.code == 143
    assert latest_checkpoint(folder / "checkpoints") == folder / "checkpoints" / "00000002"
    assert PPO.load(folder / "model").num_timesteps == 64
    said = capsys.readouterr().out
    assert "stopped by SIGTERM: update 2 is saved in" in said
    assert "-m textgen_env.agents.sb3_ppo" in said.splitlines()[-1]
    assert said.splitlines()[-1].endswith("--resume")


def test_settings_and_folders_are_checked_at_the_door(tmp_path: Path):
    for name in ("n_steps", "epochs", "batch_size", "updates", "save_every", "num_envs"):
        for value in (0, -1, 1.5, math.nan, None):
            with pytest.raises((ValueError, TypeError), match=f"^{name}={value!r} must be a whole number ≥ [12]"):
                small(tmp_path / "run", **{name: value})
    for name in ("lr", "clip", "gamma", "lam", "max_grad_norm", "value_coef", "kl_coef", "entropy_coef", "value_scale"):
        for value in (-1, math.nan, math.inf, "1"):
            with pytest.raises((ValueError, TypeError), match=f"^{name}={value!r} must be "):
                small(tmp_path / "run", **{name: value})
    for together in ({"kl_coef": 0, "adaptive_kl_target": 1.0}, {"n_steps": 1, "num_envs": 1}):
        with pytest.raises(ValueError, match=" with "):
            small(tmp_path / "run", **together)
    with pytest.raises(ValueError, match="frozen_layers=99"):
        run(small(tmp_path / "run", frozen_layers=99))
    with pytest.raises(Exception, match="reference"):
        run(small(tmp_path / "run", scorer="bleu"))
    assert not (tmp_path / "run").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "last").mkdir()
    with pytest.raises(FileExistsError, match="holds no run"):
        run(small(tmp_path / "mine"))
    run(small(tmp_path / "run", updates=1))
    with pytest.raises(ValueError, match=r"resume: clip, lr differ .*clip=0\.1, was 0\.2"):
        run(replace(small(tmp_path / "run", updates=1), resume=True, lr=1e-3, clip=0.1))


def test_samples_warnings_page_and_evaluations(tmp_path: Path):
    screen = io.StringIO()
    folder = tmp_path / "run"
    console = Console(file=screen, width=200)
    run(small(folder, lr=0.05, epochs=6, sample_every=1, eval_every=1), console)
    said = screen.getvalue()
    assert "update 1/2  score " in said
    assert "update 1: samples" in said
    assert "clip fraction" in said
    assert "try a lower lr than 0.05" in said
    assert "episodes.html" in said
    assert "difference" in said
    assert "<article>" in (folder / "episodes.html").read_text()
    assert (folder / "best" / "model.safetensors").is_file()
    evaluated = [record for record in read_metrics(folder / "metrics.jsonl") if "eval/score_stderr" in record]
    assert [record["update"] for record in evaluated] == [1, 2]


def test_weights_that_are_not_finite_stop_the_run_by_name_and_are_not_saved(tmp_path: Path):
    running = make_run(flags(tmp_path / "run"))
    trainer: Any = running.trainer
    iterate = trainer.iterate

    def with_nan() -> Any:
        result = iterate()
        if trainer.updates == 2:
            with torch.no_grad():
                trainer.model.policy.value_net.bias.fill_(math.nan)
        return result

    trainer.iterate = with_nan
    with pytest.raises(NonFiniteError, match=r"weight value_net\.bias is not finite after update 2; update 1 is saved"):
        running.execute()
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["00000000", "00000001"]


def test_the_door_says_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        sb3_ppo.main(["--n-steps", "0", "--output", str(tmp_path / "run")])
    assert end.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line == "error: n_steps=0 must be a whole number ≥ 1 (see python -m textgen_env.agents.sb3_ppo --help)"
