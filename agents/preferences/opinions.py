"""What a fitted reward model thinks of the pairs of a store, for the people who judge them.

What lives here: asking it. What does not: how it is fitted (``../reward_model.py``), where its opinions are kept
(``store.py``) and shown (``page.py``).
"""

from __future__ import annotations

from pathlib import Path

from .loop import ensemble_differences
from .store import PreferenceStore
from .store_records import Opinion


def put_opinions(store: PreferenceStore, folder: Path) -> int:
    """Let a saved reward model say what it thinks of all pairs of a store; how many there are.

    Args:
        store: whose pairs; earlier opinions are replaced.
        folder: where the reward model was saved.

    Raises:
        ValueError: there is no reward model.
    """
    pairs = store.numbered()
    if not pairs:
        return 0
    found = ensemble_differences(folder)(list(pairs.values()))  # (members, N)
    spreads = found.std(dim=0).tolist() if len(found) > 1 else [None] * len(pairs)
    means = found.mean(dim=0).tolist()
    name = "/".join(folder.resolve().parts[-3:])
    opinions = {n: Opinion(name, mean, spread) for n, mean, spread in zip(pairs, means, spreads, strict=True)}
    store.put_opinions(opinions)
    return len(opinions)
