"""People as a labeller: pairs go into the store, and training goes on when enough of them are judged.

What lives here: the waiting. What does not: the page on which they judge (``page.py``), which runs in a process of its
own, as long or as short as anybody likes; the loop (``loop.py``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from .pairs import Pair
from .store import PreferenceStore

FEWEST = 10
"""Preferences, of all rounds together, without which nothing is worth fitting: fewer leave none to hold out."""


class PageLabeller:
    """Puts pairs into the store and waits for people; see `preferences.loop.Labeller`.

    Args:
        wait_for: share of the pairs that must have a choice before it returns.
        say: told what is waited for, and how far it is.
        poll_seconds: between two looks at the store.
    """

    def __init__(self, wait_for: float, say: Callable[[str], None], *, poll_seconds: float = 1.0) -> None:
        self.wait_for, self.say, self.poll_seconds = wait_for, say, poll_seconds

    def __call__(self, store: PreferenceStore, pairs: Sequence[Pair]) -> None:
        """Return once ``wait_for`` of the pairs have a choice, and a reward model has something to learn from."""
        numbers = set(store.add(pairs))
        wanted, told = math.ceil(self.wait_for * len(numbers)), -math.inf
        while True:
            choices = store.choices()
            judged = len(numbers & {number for number, _ in choices})
            preferences = sum(choice != "cannot tell" for _, choice in choices)
            if judged == len(numbers) or (judged >= wanted and preferences >= FEWEST):
                return
            if judged >= told + len(numbers) / 10:
                told = judged
                self.say(
                    f"{judged} of {len(numbers)} pairs are judged; going on at {wanted}: textgen label {store.path}"
                )
            time.sleep(self.poll_seconds)
