"""A run of seconds on the word model, as flags of the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from textgen_env.agents.ppo import PPOSettings

SCORER = '{"name": "normalize", "scorer": {"name": "length", "target": 3}}'  # running statistics must be resumed too


def write_prompts(path: Path) -> Path:
    """Sixteen prompts of two words."""
    path.write_text("".join(json.dumps({"prompt": f"{a} {b}"}) + "\n" for a in "abcd" for b in "efgh"))
    return path


def write_completions(path: Path) -> Path:
    """The same sixteen prompts, each with a completion."""
    rows = ({"prompt": f"{a} {b}", "completion": f"{b} {a}"} for a in "abcd" for b in "efgh")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def as_flags(values: Mapping[str, Any], *more: str) -> list[str]:
    return [*(part for name, value in values.items() for part in (f"--{name}", str(value))), *more]


def flags(output: Path, model: Path, prompts: Path, *more: str) -> list[str]:
    values: dict[str, Any] = {
        "env": "textgen/TextGen-v0",
        "model": model,
        "prompts": prompts,
        "scorer": SCORER,
        "max-new-tokens": 5,
        "max-prompt-tokens": 4,
        "num-envs": 4,
        "eval-prompts": 5,
        "updates": 6,
        "episodes": 8,
        "minibatch-size": 4,
        "micro-batch-size": 4,
        "lr": 0.01,
        "adaptive-kl-target": 0.5,
        "eval-every": 3,
        "save-every": 2,
        "sample-every": 5,
        "output": output,
    }
    return as_flags(values, *more)


def small_settings(output: Path, model: Path, prompts: Path, **more: Any) -> PPOSettings:
    """The settings of an even smaller run of native PPO, for `Run` in this process."""
    small: dict[str, Any] = {"max_new_tokens": 4, "num_envs": 4, "eval_prompts": 4, "updates": 1}
    files = {"model": str(model), "prompts": str(prompts), "output": str(output)}
    return PPOSettings(env="textgen/TextGen-v0", scorer=SCORER, **files, **small | more)


def start(module: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """``python -m textgen_env.agents.<module>`` with its output in pipes."""
    command = [sys.executable, "-m", f"textgen_env.agents.{module}", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **(pipes | options))
