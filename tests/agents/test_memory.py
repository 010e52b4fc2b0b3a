"""Counted in page faults of a process of its own: memory that was freed is used again as it is."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from textgen_env.agents.training.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for turn in range(14):
    if turn == 9:  # malloc has settled
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(25_000_000).add_(1)  # 100 MB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode: str) -> int:
    return int(subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a switch of glibc")
def test_freed_memory_is_used_again():
    assert page_faults("keep") < page_faults("give back") / 10
