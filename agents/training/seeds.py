"""Seeds of the parts of a run, made of the run's own.

What lives here: `derived_seed`. What does not: generators, which belong to whoever draws from them.
"""

from __future__ import annotations

import hashlib


def derived_seed(seed: int, *numbers: int) -> int:
    """A seed of 32 bits for the part of a run that these numbers name: an epoch, a round, a member.

    Torch's generator on the CPU reads the lowest 32 bits alone, so that ``seed + (number << 32)`` would always draw
    the same.
    """
    return int.from_bytes(hashlib.blake2b(repr((seed, *numbers)).encode(), digest_size=4).digest(), "big")
