"""The examples with Stable-Baselines3 learn on the embedded model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch

pytest.importorskip("stable_baselines3")
pytest.importorskip("sb3_contrib")

from load_example import load_example
from stable_baselines3 import PPO

import textgen_env  # noqa: F401  registers the tasks
from textgen_env.agents.sb3_ppo import SB3Settings, run
from textgen_env.agents.training.metrics_log import MetricsLog, read_metrics


@pytest.mark.parametrize(
    ("name", "more"),
    [("sb3_ppo", {}), *(("sb3_features", {"algorithm": name}) for name in ("ppo", "a2c", "dqn", "qrdqn"))],
)
def test_runs(name: str, more: dict[str, Any]) -> None:
    before, after = load_example(name).main(steps=256, max_new_tokens=4, **more)
    assert 0 <= before <= 1
    assert 0 <= after <= 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("name", "more"), [("sb3_ppo", {}), ("sb3_features", {}), ("sb3_features", {"algorithm": "dqn"})]
)
def test_lifts_the_score(name: str, more: dict[str, Any], seed: int) -> None:
    before, after = load_example(name).main(seed=seed, **more)
    assert after > before + 0.2


def small_run(folder: Path) -> SB3Settings:
    return SB3Settings(
        updates=3,
        num_envs=4,
        n_steps=8,
        batch_size=16,
        eval_prompts=4,
        max_new_tokens=4,
        adaptive_kl_target=1.0,
        kl_coef=0.1,
        lora_rank=2,
        save_every=1,
        output=str(folder),
    )


def test_the_native_trainers_task_runs_on_sb3(tmp_path: Path) -> None:
    settings = small_run(tmp_path / "run")
    before, after = run(settings)
    assert len(before.texts) == len(after.texts) == 4
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files >= {"settings.json", "metrics.jsonl", "before.json", "after.json", "plot.png", "model.zip", "last"}
    env = gym.make("textgen/Sentiment-v0", model=str(tmp_path / "run" / "last"))  # loads like any other model
    env.reset(seed=0)
    merged, saved = env.unwrapped.language_model.model, PPO.load(tmp_path / "run" / "model").policy.actor
    ids = torch.tensor([env.unwrapped.language_model.encode("I bought this tea and")])
    torch.testing.assert_close(merged(input_ids=ids).logits, saved(input_ids=ids).logits, atol=1e-3, rtol=1e-3)
    with pytest.raises(FileExistsError):
        run(settings)


def test_a_run_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = small_run(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "write", stop_after(2, MetricsLog.write))
        with pytest.raises(KeyboardInterrupt):
            run(settings)
    stopped = PPO.load(tmp_path / "run" / "model")
    assert stopped.num_timesteps == 32  # one update; the second was not complete
    assert stopped.policy.optimizer.state
    coefficient = stopped.kl_coefficient.value
    assert coefficient != 0.1
    first = [record for record in read_metrics(tmp_path / "run" / "metrics.jsonl") if record["update"] == 1]

    before, _ = run(replace(settings, resume=True))
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [record["update"] for record in records] == [1, 2, 3]
    assert records[:1] == first
    assert records[1]["train/kl_coef"] == coefficient
    assert asdict(before) == json.loads((tmp_path / "run" / "before.json").read_text())
    done = PPO.load(tmp_path / "run" / "model")
    assert done.num_timesteps == 96
    steps = [int(state["step"]) for state in done.policy.optimizer.state.values()]
    assert min(steps) > max(int(state["step"]) for state in stopped.policy.optimizer.state.values())
    with pytest.raises(ValueError, match="lr differ"):
        run(replace(settings, resume=True, lr=1.0))


def stop_after(update: int, write: Callable[..., None]) -> Callable[..., None]:
    """Writes the metrics of this update, and then somebody presses Ctrl-C."""

    def stopping(self: MetricsLog, number: int, *rest: Any) -> None:
        write(self, number, *rest)
        if number == update:
            raise KeyboardInterrupt

    return stopping
