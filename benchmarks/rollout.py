"""Tokens per second of rollouts, side by side with other ways of doing the same work, in one process and by turns.

Sampled responses of a fixed length to 16-token prompts, (a) through the public vector environment with the
prefix-reusing cache, observations, rewards and log-probs at each step; (b) by `generate` of transformers; beside them
(c) the rate at which one teacher-forced forward reads the same kind of text, which no decoding can beat on a CPU.
Rounds alternate and medians are taken, for machines are noisy; compare ratios rather than figures of different runs.
"""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice, product
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch

import textgen_env  # noqa: F401  (registers the environments)
from benchmarks.report import keep, markdown
from textgen_env.assets import prompt_path
from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.sampling import sample, warp_logits

PROMPT_TOKENS = 16
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Arm = Callable[[], int]  # does its work once and returns how many tokens that were


@dataclass
class RolloutSettings:
    """Sampled responses: our vector environment against `generate`."""

    model: str = "tiny"
    """name, directory, GGUF file or hub id"""
    batch: list[int] = field(default_factory=lambda: [16, 64, 128])
    """slots, or sequences of `generate`"""
    new_tokens: list[int] = field(default_factory=lambda: [32])
    """length of every response"""
    dtype: list[str] = field(default_factory=lambda: ["float32"])
    """bfloat16, float32 or float16"""
    device: str = "cpu"
    rounds: int = 3
    """each arm runs this often, by turns, after one round of warming up"""
    threads: int = 0
    """threads of torch; 0 leaves its default"""
    clock: Literal["wall", "cpu"] = "wall"
    """cpu counts processor time of this process: for one thread on a machine that others use too"""
    generate: bool = True
    """False leaves `generate` out"""
    out: Path | None = None
    """also append the JSON lines to this file"""


def rollout(settings: RolloutSettings) -> list[dict[str, Any]]:
    """Measure every combination of dtype, new tokens and batch; prints JSON lines, then a table."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    results = keep(_measure(settings), settings.out)
    print(table(results))
    return results


def _measure(settings: RolloutSettings) -> Iterator[dict[str, Any]]:
    for dtype in settings.dtype:
        lm = LanguageModel(settings.model, device=settings.device, dtype=dtype)
        for new_tokens, batch in product(settings.new_tokens, settings.batch):
            yield _rollout_once(settings, lm, dtype, new_tokens, batch)


def _rollout_once(
    settings: RolloutSettings, lm: LanguageModel, dtype: str, new_tokens: int, batch: int
) -> dict[str, Any]:
    ids, text = prompt_ids(lm, batch, PROMPT_TOKENS), prompt_ids(lm, 16, tokens=48)
    ours = OurRollout(lm, ids, new_tokens)
    arms: dict[str, Arm] = {"ours": ours, "teacher_forced": lambda: teacher_forced(lm, text)}
    if settings.generate:
        arms["generate"] = lambda: generate(lm, ids, new_tokens)
    rates = by_turns(arms, settings.rounds, settings.clock)
    ours.env.close()
    result = {
        "model": settings.model,
        "device": settings.device,
        "threads": torch.get_num_threads(),
        "clock": settings.clock,
        "dtype": dtype,
        "batch": batch,
        "new_tokens": new_tokens,
        **{f"{name}_tokens_per_s": round(rate, 1) for name, rate in rates.items()},
        "share_of_teacher_forced": round(rates["ours"] / rates["teacher_forced"], 3),
        "share_of_env_and_bookkeeping": round(ours.env_seconds / ours.seconds, 4),
    }
    return result | ({"times_generate": round(rates["ours"] / rates["generate"], 2)} if settings.generate else {})


class OurRollout:
    """Steps `textgen/TextGen-v0` with the cache and the sampler until every slot has written its response."""

    def __init__(self, lm: LanguageModel, prompts: torch.Tensor, new_tokens: int) -> None:
        self.new_tokens = new_tokens
        self.env = gym.make_vec(
            "textgen/TextGen-v0",
            num_envs=len(prompts),
            model=lm,
            prompts=[lm.decode(row) for row in prompts.tolist()],
            scorer=_worthless,
            max_prompt_tokens=PROMPT_TOKENS,
            max_new_tokens=new_tokens,
        )
        self.lm, self.generator = lm, torch.Generator(lm.device).manual_seed(0)
        self.may = torch.ones(lm.vocab_size, dtype=torch.bool, device=lm.device)
        self.may[list(lm.eos_token_ids)] = False  # every response is to have the full length
        self.seconds = self.env_seconds = 0.0

    def __call__(self) -> int:
        begin = time.perf_counter()
        cache = self.lm.prefix_cache(self.env.num_envs)
        observation, _ = self.env.reset(seed=0)
        for _ in range(self.new_tokens):
            lengths = observation["attention_mask"].sum(axis=1)
            logits = cache.next_logits(observation["input_ids"], lengths)
            tokens, _log_probs = sample(warp_logits(logits, mask=self.may), self.generator)
            actions = tokens.cpu().numpy()
            before = time.perf_counter()
            observation, _rewards, terminated, _, _ = self.env.step(actions)
            self.env_seconds += time.perf_counter() - before
        if not terminated.all():
            raise RuntimeError("some responses ended early, so the work would not be the same")
        self.seconds += time.perf_counter() - begin
        return self.env.num_envs * self.new_tokens


@torch.no_grad()
def generate(lm: LanguageModel, ids: torch.Tensor, new_tokens: int) -> int:
    """The library's own sampling loop; `top_k=0` undoes its silent default of 50."""
    model: Any = lm.model
    written = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        top_k=0,
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        pad_token_id=lm.pad_token_id,
    )
    if written.shape[1] != PROMPT_TOKENS + new_tokens:
        raise RuntimeError("generate ended early, so the work would not be the same")
    return len(ids) * new_tokens


@torch.no_grad()
def teacher_forced(lm: LanguageModel, ids: torch.Tensor) -> int:
    """One forward with all logits over whole texts, (16, 48) here."""
    lm.model(input_ids=ids, use_cache=False)
    return ids.numel()


def prompt_ids(lm: LanguageModel, batch: int, tokens: int) -> torch.Tensor:
    """(batch, tokens) ids: stretches of the packaged documents that read as the same number of tokens when decoded."""
    documents = prompt_path("summaries").read_text(encoding="utf-8").splitlines()
    ids = lm.encode(" ".join(json.loads(line)["prompt"] for line in documents[:400]))
    starts = np.random.default_rng(0).permutation(len(ids) - tokens)
    texts = (lm.decode(ids[start : start + tokens]) for start in starts)
    rows = islice((row for text in texts if len(row := lm.encode(text)) == tokens), batch)
    return torch.tensor(list(rows), device=lm.device)


def by_turns(arms: dict[str, Arm], rounds: int, clock: str) -> dict[str, float]:
    """Median tokens per second of each arm over alternating rounds; the first round only warms up."""
    now = CLOCKS[clock]
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds + 1):
        for name, arm in arms.items():
            gc.collect()
            begin = now()
            tokens = arm()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                rates[name].append(tokens / (now() - begin))
    return {name: statistics.median(values) for name, values in rates.items()}


def table(results: list[dict[str, Any]]) -> str:
    """A Markdown table of the columns that differ between results."""
    columns = [key for key in results[0] if key not in ("model", "device", "threads", "clock")]
    rows = [[str(result.get(column, "")) for column in columns] for result in results]
    head = ", ".join(f"{key} {results[0][key]}" for key in ("model", "device", "threads", "clock"))
    return f"{head}\n\n{markdown(columns, rows)}"


def _worthless(completions: list[str], **_: Any) -> list[float]:
    return [0.0] * len(completions)
