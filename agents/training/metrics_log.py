"""Numbers of a run on disk: one JSON line per update, and the same for TensorBoard.

What lives here: `MetricsLog`. What does not: what the numbers mean (docs/metrics.md) and how they are made (the
trainers).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from .files import replace_file


class MetricsLog:
    """Appends to ``metrics.jsonl`` and to TensorBoard event files of a run folder.

    TensorBoard is for looking at: when it fails it is left out from there on.

    Args:
        folder: the run's.
        after: the last update that counts; later lines, and one that a kill cut short, are dropped, so that a resumed
            run continues the file of one that was never stopped.
        say: told when TensorBoard fails.
    """

    def __init__(self, folder: Path, after: int = 0, say: Callable[[str], None] = print) -> None:
        self.path, self._say = folder / "metrics.jsonl", say
        kept = [record for record in read_metrics(self.path) if record["update"] <= after]
        replace_file(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        self._lines = self.path.open("a", encoding="utf-8")
        self._board: Any = None
        self._on_board(lambda: self._open_board(folder, after))

    def _open_board(self, folder: Path, after: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # here, so that a broken installation costs no run

        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=after + 1)

    def _on_board(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:
            self._board = None
            self._say(f"TensorBoard left out: {type(error).__name__}: {error}")

    def write(self, update: int, metrics: Mapping[str, float], prefix: str = "train") -> None:
        """One line: the number of the update and every metric under ``prefix/``."""
        record = {f"{prefix}/{name}": value for name, value in metrics.items()}
        self._lines.write(json.dumps({"update": update, **record}) + "\n")
        self._lines.flush()
        os.fsync(self._lines.fileno())  # on the disk before the checkpoint that follows
        board = self._board
        if board is not None:
            self._on_board(lambda: [board.add_scalar(name, value, update) for name, value in record.items()])

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lines.close()
        if self._board is not None:
            self._on_board(self._board.close)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file; none if there is no file."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # the last line of a run that was killed, or a damaged one
            continue
        if isinstance(record, dict) and isinstance(record.get("update"), int):
            records.append(record)
    return records
