"""The examples with Stable-Baselines3 learn on the embedded model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

pytest.importorskip("stable_baselines3")

from load_example import load_example

import textgen_env  # noqa: F401  registers the tasks


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


def test_the_native_trainers_task_runs_on_sb3(tmp_path: Path) -> None:
    from textgen_env.agents.sb3_ppo import SB3Settings, run

    settings = SB3Settings(
        updates=2,
        num_envs=4,
        n_steps=8,
        batch_size=16,
        eval_prompts=4,
        max_new_tokens=4,
        kl_target=1.0,
        lora_rank=2,
        output=str(tmp_path / "run"),
    )
    before, after = run(settings)
    assert len(before.texts) == len(after.texts) == 4
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files >= {"settings.json", "metrics.jsonl", "before.json", "after.json", "plot.png", "model.zip", "last"}
    env = gym.make("textgen/Sentiment-v0", model=str(tmp_path / "run" / "last"))  # loads like any other model
    env.reset(seed=0)
    with pytest.raises(FileExistsError):
        run(settings)
