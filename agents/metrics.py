"""Numbers of a run on disk: one JSON line an update, and the same for TensorBoard.

What lives here: `MetricsLog`. What does not: what the numbers mean (docs/metrics.md) and how they are made (the
trainers).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from .checkpoint import replace_file


class MetricsLog:
    """Appends to ``metrics.jsonl`` and to TensorBoard event files of a run folder.

    Args:
        folder: the run's.
        after: the last update that counts; later lines, and one that a kill cut short, are dropped, so that a resumed
            run continues the file of one that was never stopped.
    """

    def __init__(self, folder: Path, after: int = 0) -> None:
        self.path = folder / "metrics.jsonl"
        kept = [record for record in read_metrics(self.path) if record["update"] <= after]
        replace_file(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        self._lines = self.path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=after + 1)

    def write(self, update: int, metrics: Mapping[str, float], prefix: str = "train") -> None:
        """One line: the number of the update and every metric under ``prefix/``."""
        record = {f"{prefix}/{name}": value for name, value in metrics.items()}
        self._lines.write(json.dumps({"update": update, **record}) + "\n")
        self._lines.flush()
        for name, value in record.items():
            self._board.add_scalar(name, value, update)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lines.close()
        self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a metrics file; none if there is no file."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:  # the last line of a run that was killed
            break
    return records
