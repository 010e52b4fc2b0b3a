r"""Stable-Baselines3 with a language model as policy: what its loop costs, each arm in a process of its own, by turns.

    python -m benchmarks.sb3 --model smollm2-135m --dtype bfloat16

The arms, each counted in response tokens per second: `generate` of transformers; `rollout`, SB3's `collect_rollouts`
with `LMActorCriticPolicy` (actions, values, log-probs, buffer, infos); `iteration`, rollout and one epoch of PPO with
`EpisodeRolloutBuffer`; `full_prefix`, the same iteration with a forward over the whole prefix for every transition, in
rollouts and in updates, which is what a policy without cache and shared forwards does. Medians of alternating rounds,
and the peak memory (resident set) of each arm's process.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import statistics
import warnings
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Literal

import gymnasium as gym
import torch
import tyro
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import DictRolloutBuffer
from torch import Tensor

import textgen_env  # noqa: F401  registers the environments
from benchmarks.peers.workload import peak_rss_gb
from benchmarks.rollout import CLOCKS, PROMPT_TOKENS, Arm, generate, prompt_ids
from textgen_env.integrations.sb3 import EpisodeRolloutBuffer, LMActorCriticPolicy, SB3VecEnv
from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.log_probs import states

ARMS = ("generate", "rollout", "iteration", "full_prefix")
RATIOS = {
    "rollout_times_generate": ("rollout", "generate"),
    "iteration_times_full_prefix": ("iteration", "full_prefix"),
}


@dataclass
class Settings:
    """What is measured."""

    model: str = "tiny"
    """name, directory, GGUF file or hub id"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """of the weights, all of which are trained"""
    num_envs: int = 16
    """slots, or sequences of `generate`"""
    new_tokens: int = 32
    """limit of a response, and steps per slot and iteration"""
    batch_size: int = 128
    """transitions per optimiser step"""
    rounds: int = 3
    """each arm runs this often, by turns, after one round of warming up"""
    threads: int = 0
    """threads of torch; 0 leaves its default"""
    clock: Literal["wall", "cpu"] = "wall"
    """cpu counts processor time of this process: for one thread on a machine that others use too"""
    arms: list[str] = field(default_factory=lambda: list(ARMS))
    """which arms to run"""


class FullPrefixPolicy(LMActorCriticPolicy):
    """No cache: every transition of a rollout reads its whole prefix."""

    @torch.no_grad()
    def _next(self, obs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        lengths = obs["attention_mask"].long().sum(dim=1)
        width = int(lengths.max())
        ids, mask = obs["input_ids"][:, :width], obs["attention_mask"][:, :width].long()
        last = torch.arange(width, device=ids.device) == lengths[:, None] - 1
        hidden, logits_at = states(self.actor, ids, mask, last)
        logits = logits_at(torch.arange(len(ids), device=ids.device))[:, : self.vocab_size]
        return logits.float(), self._values(hidden)


def make_model(settings: Settings, prompts: list[str], policy: Any, buffer: Any) -> PPO:
    """SB3's PPO; its standard buffer shuffles transitions, so that hardly any two share a text."""
    venv = gym.make_vec(
        "textgen/TextGen-v0",
        num_envs=settings.num_envs,
        model=settings.model,
        prompts=prompts,
        scorer={"name": "length", "target": settings.new_tokens},
        max_prompt_tokens=PROMPT_TOKENS,
        max_new_tokens=settings.new_tokens,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # half-precision weights lose small steps: here only speed counts
        return PPO(
            policy,
            SB3VecEnv(venv),
            rollout_buffer_class=buffer,
            policy_kwargs={"model": settings.model, "dtype": settings.dtype, "exact_entropy": False},
            n_steps=settings.new_tokens,
            batch_size=settings.batch_size,
            n_epochs=1,
            gamma=1.0,
            learning_rate=1e-6,
            device="cpu",
            seed=0,
        )


def iteration(model: PPO, *, update: bool) -> Arm:
    """A rollout and, if asked for, the update from it; returns how many tokens were written."""
    _, callback = model._setup_learn(1)

    def arm() -> int:
        assert model.env is not None
        model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
        if update:
            model.train()
        return model.n_steps * model.n_envs

    return arm


def make_arm(settings: Settings, name: str) -> Arm:
    """What one round of the arm runs; returns how many tokens were written."""
    lm = LanguageModel(settings.model, dtype=settings.dtype)  # weights load when asked for: `generate` alone does
    ids = prompt_ids(lm, settings.num_envs, PROMPT_TOKENS)
    if name == "generate":
        return lambda: generate(lm, ids, settings.new_tokens)
    whole = (LMActorCriticPolicy, EpisodeRolloutBuffer)
    policy, buffer = {"rollout": whole, "iteration": whole, "full_prefix": (FullPrefixPolicy, DictRolloutBuffer)}[name]
    model = make_model(settings, [lm.decode(row) for row in ids.tolist()], policy, buffer)
    return iteration(model, update=name != "rollout")


def serve(settings: Settings, name: str, line: Connection) -> None:
    """In a process of its own: a round of the arm for each message; answers tokens per second and peak memory in GB."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    arm, now = make_arm(settings, name), CLOCKS[settings.clock]
    while line.recv():
        gc.collect()
        begin = now()
        rate = arm() / (now() - begin)
        line.send((rate, peak_rss_gb()))


def by_turns(settings: Settings) -> tuple[dict[str, float], dict[str, float]]:
    """Median tokens per second, and peak memory in GB, of each arm; the first round only warms up."""
    context, lines, processes = multiprocessing.get_context("spawn"), {}, []
    for name in settings.arms:
        lines[name], other = context.Pipe()
        processes.append(context.Process(target=serve, args=(settings, name, other), daemon=True))
        processes[-1].start()
        other.close()  # so that the end of the process ends the wait for its answer
    rates: dict[str, list[float]] = {name: [] for name in settings.arms}
    peaks: dict[str, float] = {}
    for _ in range(settings.rounds + 1):
        for name, line in lines.items():
            line.send(True)
            rate, peaks[name] = line.recv()
            rates[name].append(rate)
    for line, process in zip(lines.values(), processes, strict=True):
        line.send(False)
        process.join()
    return {name: statistics.median(values[1:]) for name, values in rates.items()}, peaks


def measure(settings: Settings) -> dict[str, Any]:
    """Run the arms; prints and returns one JSON object."""
    if unknown := sorted(set(settings.arms) - set(ARMS)):
        raise ValueError(f"arms={settings.arms} has {', '.join(unknown)}; there are {', '.join(ARMS)}")
    rates, peaks = by_turns(settings)
    result: dict[str, Any] = {"model": settings.model, "dtype": settings.dtype, "num_envs": settings.num_envs}
    result |= {"new_tokens": settings.new_tokens, "threads": settings.threads or torch.get_num_threads()}
    result |= {"clock": settings.clock}
    result |= {f"{name}_tokens_per_s": round(rate, 1) for name, rate in rates.items()}
    for name, (over, under) in RATIOS.items():
        if over in rates and under in rates:
            result[name] = round(rates[over] / rates[under], 2)
    result |= {f"{name}_peak_memory_gb": round(peak, 2) for name, peak in peaks.items()}
    print(json.dumps(result, indent=1))
    return result


if __name__ == "__main__":
    measure(tyro.cli(Settings))
