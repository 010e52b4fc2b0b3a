"""The two environments of a run, from its settings: one on the prompts to train on, one on those held out.

What lives here: which environment, with which arguments, on which prompts, and a policy that a setting names. What does
not: the settings (``run_settings.py``) and what is done with the environments (``run.py``).
"""

from __future__ import annotations

import copy
import importlib
import json
from functools import partial
from typing import Any, cast

import gymnasium as gym
import torch
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.vector import AutoresetMode, VectorEnv

from textgen_env.episode import Prompt
from textgen_env.lm.language_model import LanguageModel
from textgen_env.prompts import load_prompts

from ..policy import ActorConfig, ActorCritic
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
    spec = task_spec(settings)
    train, held_out = split_prompts(load_prompts(spec.kwargs["prompts"]), settings.eval_prompts)
    make = partial(gym.make_vec, spec)
    slots = min(settings.num_envs, len(held_out))
    return (
        make(num_envs=settings.num_envs, prompts=train, autoreset_mode=autoreset_mode),
        make(num_envs=slots, prompts=held_out, autoreset_mode=AutoresetMode.DISABLED),
    )


def seed_generators(venv: VectorEnv, seed: int) -> None:
    """Seed an environment that nobody plays yet: its generators are part of every checkpoint."""
    env = cast(Any, venv.unwrapped)
    with env.played_by(env.language_model):
        venv.reset(seed=seed)


def task_spec(settings: TaskSettings) -> EnvSpec:
    """What the settings make of the registered environment: its arguments are names, on all of the task's prompts.

    Raises:
        ValueError: no token environment, or no prompts or scorer for it.
    """
    spec = copy.copy(token_env_spec(settings.env))
    names = ("model", "prompts", "scorer", "max_new_tokens", "max_prompt_tokens", "temperature", "device", "dtype")
    spec.kwargs = {**spec.kwargs, **{n: value for n in names if (value := getattr(settings, n)) is not None}}
    if spec.kwargs.get("prompts") is None:
        raise ValueError(f"prompts=None: {settings.env} has no prompts of its own; name a file or a set")
    if "scorer" not in spec.kwargs:
        raise ValueError(f"scorer=None: {settings.env} has no scorer of its own; name one, or give its JSON form")
    if settings.scorer is not None:
        spec.kwargs["scorer"] = read_scorer("scorer", settings.scorer)
    return spec


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


def named_policy(settings: TaskSettings, venv: VectorEnv, name: str) -> ActorCritic:
    """A policy without a critic from a folder, such as a run's last/, or anything that the setting "model" takes.

    Args:
        settings: what was asked for.
        venv: the task, whose own model is the policy if the setting is None.
        name: of the setting.

    Raises:
        ValueError: it has other tokens than the task's model.
    """
    model: LanguageModel = cast(Any, venv.unwrapped).language_model
    if (source := getattr(settings, name)) is not None:
        tokens, read = model.tokenizer.get_vocab(), settings.model
        model = LanguageModel(source, device=settings.device, dtype=settings.dtype, role=name)
        if model.tokenizer.get_vocab() != tokens:
            raise ValueError(f"{name}={source!r} must have the tokens of model={read!r}, which writes the prompts")
    return ActorCritic(model, ActorConfig())


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
