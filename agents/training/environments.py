"""The two environments of a run, from its settings: one on the prompts to train on, one on those held out.

What lives here: which environment, with which arguments, on which prompts. What does not: the settings
(``run_settings.py``) and what is done with the environments (``run.py``).
"""

from __future__ import annotations

import importlib
import json
from functools import partial
from typing import Any

import gymnasium as gym
import torch
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import AutoresetMode, VectorEnv

from textgen_env.episode import Prompt
from textgen_env.prompts import load_prompts

from .run_settings import TaskSettings


def make_environments(
    settings: TaskSettings, autoreset_mode: AutoresetMode = AutoresetMode.DISABLED
) -> tuple[VectorEnv, VectorEnv]:
    """The training environment, and one on the held-out prompts (autoreset mode DISABLED).

    Args:
        settings: what to make.
        autoreset_mode: of the training environment.

    Raises:
        ValueError: no token environment, or no prompts for it.
    """
    spec = token_env_spec(settings.env)
    arguments = {
        name: value
        for name in ("model", "scorer", "max_new_tokens", "max_prompt_tokens", "temperature", "device", "dtype")
        if (value := getattr(settings, name)) is not None
    }
    if settings.scorer is not None:
        arguments["scorer"] = read_scorer("scorer", settings.scorer)
    source = settings.prompts or spec.kwargs.get("prompts")
    if source is None:
        raise ValueError(f"prompts=None: {settings.env} has no prompts of its own; name a file or a set")
    if "scorer" not in arguments | spec.kwargs:
        raise ValueError(f"scorer=None: {settings.env} has no scorer of its own; name one, or give its JSON form")
    train, held_out = split_prompts(load_prompts(source), settings.eval_prompts)
    make = partial(gym.make_vec, spec, **arguments)
    slots = min(settings.num_envs, len(held_out))
    return (
        make(num_envs=settings.num_envs, prompts=train, autoreset_mode=autoreset_mode),
        make(num_envs=slots, prompts=held_out, autoreset_mode=AutoresetMode.DISABLED),
    )


def token_env_spec(env: str) -> Any:
    """The registration of a token environment; "module:id" imports the module first.

    Raises:
        ValueError: the id is unknown, or belongs to an environment of another kind.
    """
    module, _, name = env.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        spec = gym.spec(name)
        creator: Any = spec.vector_entry_point
        if isinstance(creator, str):
            creator = load_env_creator(creator)
    except (gym.error.Error, ImportError, AttributeError) as error:
        raise ValueError(f"env={env!r} is not registered: {error}") from error
    if creator is None or (isinstance(creator, type) and not hasattr(creator, "delegate_kl")):
        known = ", ".join(name for name in gym.registry if name.startswith("textgen/"))
        raise ValueError(f"env={env!r} is not a textgen environment; choose one of {known}, or one of your own")
    return spec


def read_scorer(setting: str, value: str) -> Any:
    """A scorer's name as it is, its JSON form as a mapping.

    Raises:
        ValueError: it begins like JSON and is none; names the setting.
    """
    if not value.lstrip().startswith("{"):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"{setting}={value!r} begins like JSON, but is none: {error}") from error


def split_prompts(prompts: list[Prompt], held_out: int) -> tuple[list[Prompt], list[Prompt]]:
    """Training and held-out prompts: the same split whatever the run's seed. Too few to split: all serve for both."""
    if held_out < 1:
        raise ValueError(f"eval_prompts={held_out} must be at least 1")
    if len(prompts) < 2 * held_out:
        return prompts, prompts[:held_out]
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(0)).tolist()
    return [prompts[i] for i in order[held_out:]], [prompts[i] for i in order[:held_out]]
