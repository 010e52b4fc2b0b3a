"""What each row of a cache was last answered: logits and hidden states. When it is asked for, prefix_cache.py knows."""

from __future__ import annotations

import numpy as np
import torch


class Memo:
    """Logits and hidden states of the prefix each row holds: references into the batch they were computed in."""

    def __init__(self, rows: int) -> None:
        self._of_row: list[tuple[torch.Tensor, int, torch.Tensor, int] | None] = [None] * rows
        self._latest: np.ndarray = np.zeros(0, dtype=np.int64)

    def put(self, rows: np.ndarray, logits: torch.Tensor, hidden: torch.Tensor) -> None:
        """Remember a new batch. Rows left from the batch before get copies of their own, so that it can be freed."""
        for row in np.setdiff1d(self._latest, rows):
            if (entry := self._of_row[row]) is not None and entry[0]._version == entry[1]:
                own = entry[0][entry[3]].clone().unsqueeze(0)
                self._of_row[row] = (own, own._version, entry[2][entry[3]].clone().unsqueeze(0), 0)
        for place, row in enumerate(rows.tolist()):
            self._of_row[row] = (logits, logits._version, hidden, place)
        self._latest = rows

    def valid(self, rows: np.ndarray) -> np.ndarray:
        """Which rows have logits that nobody has written to since."""
        entries = [self._of_row[row] for row in rows.tolist()]
        return np.array([entry is not None and entry[0]._version == entry[1] for entry in entries], dtype=bool)

    def get(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and hidden states of these rows; the batch itself when it is asked for as a whole."""
        entries = [entry for row in rows.tolist() if (entry := self._of_row[row]) is not None]
        logits, _, hidden, _ = entries[0]
        if np.array_equal(rows, self._latest) and len(logits) == len(rows):
            return logits, hidden
        return torch.stack([entry[0][entry[3]] for entry in entries]), torch.stack(
            [entry[2][entry[3]] for entry in entries]
        )
