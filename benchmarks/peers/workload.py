"""The work that every training program does, and the clock it is timed with.

What lives here: the command line that all peers share, prompts, the reward, and `Meter`, which gives one JSON line an
iteration. Standard library and torch only, so that it can be imported in any peer's environment. What does not: the
programs themselves (one file per library), alternation and statistics (``benchmarks/training.py``).

The work of one iteration: sample ``completions`` responses of exactly ``new_tokens`` tokens (no EOS ends them) to
prompts of about 10 tokens at temperature 1, score each by its share of even token ids, take the KL to a frozen copy of
the model as it was, and train all weights for ``epochs`` passes with one optimiser step each.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any, TextIO

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LEARNING_RATE = 1e-6
KL_COEF = 0.05
GROUP = 8  # completions of one prompt, where the algorithm works with groups
_OPENINGS = (
    "Last night on the radio we heard of",
    "My older sister wrote to me about",
    "Nobody in our street expected much of",
    "The critics of the paper wrote about",
    "On Sunday in the rain I went to",
    "After the long storm we found",
    "In the old town beside the river stands",
    "The children at school talked about",
)
_SUBJECTS = (
    "a film that",
    "a shop where the",
    "the library, which",
    "a house by the sea",
    "an actor whose",
    "the long road to",
    "a dog that never",
    "a book in which",
)
PROMPTS = [f"{opening} {subject}" for opening in _OPENINGS for subject in _SUBJECTS]  # 64, about 10 tokens each


@dataclass(frozen=True)
class Work:
    """What is to be done; every program takes these as flags."""

    model: str  # a folder in transformers format
    dtype: str = "bfloat16"
    epochs: int = 1
    completions: int = 64
    new_tokens: int = 32
    micro_batch: int = 16  # trajectories per forward and backward pass; gradients accumulate over all completions
    critic: str = "small"  # only where the library needs a model for it: "small", or "full", one of the policy's size
    old_log_probs: str = "sampled"  # ours: from decoding, as TRL's PPO takes them, or "scored" in a pass of their own
    threads: int = 0  # of torch; 0 leaves its choice

    @property
    def tokens(self) -> int:
        """Response tokens of an iteration."""
        return self.completions * self.new_tokens

    @property
    def torch_dtype(self) -> torch.dtype:
        """Type of all weights."""
        return DTYPES[self.dtype]


class Meter:
    """Times iterations: `begin` before each, `end` after it.

    Everything that the program and its library print goes to standard error; standard output gets the JSON lines alone.
    The first iteration warms up and is marked so.

    Args:
        peer: name of the program.
        work: what it does.
        iterations: how many to run after the warm-up; None waits for a line on standard input before each and ends
            with the input.
    """

    def __init__(self, peer: str, work: Work, iterations: int | None) -> None:
        self.peer, self.work, self.iterations, self.done = peer, work, iterations, -1
        self._out: TextIO = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self._started = self._started_cpu = 0.0

    def begin(self) -> None:
        """Wait for this program's turn, then start the clock.

        Raises:
            SystemExit: there is no further turn.
        """
        warm = self.done >= 0
        if self.iterations is None and warm and not sys.stdin.readline():
            raise SystemExit(0)
        if self.iterations is not None and self.done >= self.iterations:
            raise SystemExit(0)
        self._started, self._started_cpu = time.perf_counter(), time.process_time()

    def end(self, **extra: Any) -> None:
        """Stop the clock and write the line; ``extra`` goes into it."""
        seconds, cpu_seconds = time.perf_counter() - self._started, time.process_time() - self._started_cpu
        self.done += 1
        line = {
            "benchmark": "training",
            "peer": self.peer,
            "iteration": self.done,
            "warm_up": self.done == 0,
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,  # of all threads: with one thread the fair clock on a busy machine
            "tokens_per_second": self.work.tokens / seconds,
            "peak_rss_gb": peak_rss_gb(),
            **asdict(self.work),
            **extra,
        }
        print(json.dumps(line), file=self._out, flush=True)


def parse(peer: str) -> tuple[Work, Meter]:
    """Read the command line that all programs share."""
    parser = argparse.ArgumentParser(description=f"Times iterations of {peer}; one JSON line each.")
    parser.add_argument("--model", required=True, help="folder of a causal LM in transformers format")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default=Work.dtype)
    for name in ("epochs", "completions", "new_tokens", "micro_batch", "threads"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(Work, name))
    parser.add_argument("--critic", choices=("small", "full"), default=Work.critic)
    parser.add_argument("--old-log-probs", choices=("sampled", "scored"), default=Work.old_log_probs)
    parser.add_argument("--iterations", type=int, default=3, help="after the one that warms up")
    parser.add_argument("--on-request", action="store_true", help="wait for a line on standard input before each")
    given = vars(parser.parse_args())
    iterations = None if given.pop("on_request") else given["iterations"]
    given.pop("iterations")
    work = Work(**given)
    if work.completions % work.micro_batch:
        parser.error(f"--micro-batch {work.micro_batch} must divide --completions {work.completions}")
    if work.threads:
        torch.set_num_threads(work.threads)
    return work, Meter(peer, work, iterations)


def even_share(token_ids: list[int]) -> float:
    """The reward: the share of even token ids. It costs nothing and needs no model."""
    return sum(token % 2 == 0 for token in token_ids) / max(1, len(token_ids))


def peak_rss_gb() -> float:
    """The most memory that this process has held so far, in GB (10⁹ bytes)."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024 / 1e9
    except (OSError, StopIteration):
        import resource  # not on Windows; here only where there is no /proc

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
