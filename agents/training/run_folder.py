"""The folder of a run: which one it is, that one process at a time writes it, and that it goes on as it began.

What lives here: `RunFolder`. What does not: what a run writes into it (``run.py``, ``checkpoint.py``,
``metrics_log.py``).
"""

from __future__ import annotations

import json
import os
import socket
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .checkpoint import CheckpointError, latest_checkpoint, prune_checkpoints, read_newest, save_checkpoint
from .display import Display
from .files import make_folder, recover_folder, replace_file
from .former_names import with_todays_names
from .metrics_log import read_metrics

try:
    import fcntl
except ImportError:  # Windows: two processes in one folder are then not noticed
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from .run_settings import FolderSettings

RECORD, LOCK = "settings.json", "run.lock"
FREE = {
    "resume",
    "output",
    "debug",
    "updates",
    "save_every",
    "sample_every",
    "optimum_samples",
}  # may differ in a run that goes on


class RunFolder:
    """A run's folder, locked until `close`: new, or with ``resume`` that of the run which goes on.

    Nothing of a folder is touched before it is known to be empty or this run's own. What makes it a run is
    ``settings.json``, which `claim` writes when everything else is known to work; if it never comes to that, `close`
    leaves no trace.

    Args:
        settings: of the run.
        prefix: of the folder's name, if ``settings`` leave that open.
        display: told what is gone on with.

    Attributes:
        path: the folder.
        settings: those that a run keeps for life, each under its own name; see `bind`.

    Raises:
        FileExistsError: the folder holds a run and ``resume`` is off, or files that are no run.
        ValueError: it holds a run with other settings, or one that has done more updates.
        BlockingIOError: another process writes it.
    """

    def __init__(self, settings: FolderSettings, prefix: str = "", display: Display | None = None) -> None:
        self.display = display or Display()
        self._settings, self._present = settings, json.loads(json.dumps(asdict(settings)))
        self.settings = _bound(self._present)
        self.path = _find(settings, prefix)
        self._resumes = self._check_contents()
        self._new = make_folder(self.path)
        self._lock: int | None = self._acquire()
        try:
            self._resumes = self._check_contents()  # nobody else changes it from here on
            if self._resumes:
                self._check_settings()
                for name in ("best", "last"):
                    recover_folder(self.path / name)
            elif settings.resume:
                self.display.say(f"no run in {self.path} yet: this one begins")
        except BaseException:
            self.close()
            raise

    @property
    def checkpoints(self) -> Path:
        """Where the numbered checkpoints are."""
        return self.path / "checkpoints"

    def claim(self) -> None:
        """Write ``settings.json``: from here on this is the run's folder."""
        replace_file(self.path / RECORD, json.dumps(self._present, indent=1))
        self._new = []

    def close(self) -> None:
        """Give up the lock; a new folder that was never claimed goes with it."""
        if self._lock is None:
            return
        (self.path / LOCK).unlink(missing_ok=True)  # before it is given up: nobody else's can have this name
        os.close(self._lock)
        self._lock = None
        for folder in reversed(self._new):
            try:
                folder.rmdir()
            except OSError:  # somebody else has put something there
                break

    def __del__(self) -> None:
        if getattr(self, "_lock", None) is not None:
            self.close()

    def bind(self, **contents: Any) -> None:
        """Bind the checkpoints to what settings only name: the run goes on with the same content, or not at all."""
        self.settings |= {f"content of {name}": fingerprint(content) for name, content in contents.items()}

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def save(self, update: int, state: Mapping[str, Any]) -> None:
        """Write a checkpoint, with the settings that it belongs to."""
        save_checkpoint(self.checkpoints, update, {**state, "settings": self.settings})

    def restore(self) -> dict[str, Any] | None:
        """The state to go on from, or None where a run begins.

        Raises:
            CheckpointError: none of the checkpoints can be used, or all are gone.
            ValueError: the run has done more updates than it is now to do.
        """
        if not self._resumes:
            return None
        found = read_newest(self.checkpoints, self.settings, self.display.say)
        if found is None:
            done = max((record["update"] for record in read_metrics(self.path / "metrics.jsonl")), default=0)
            if done:
                raise CheckpointError(f"{self.checkpoints} is empty, but the run has done {done} updates; begin anew")
            return None
        path, state = found
        done, wanted = int(path.name), self._present["updates"]
        if wanted < done:
            raise ValueError(f"updates={wanted}: the run in {self.path} has done {done} already; give at least as many")
        prune_checkpoints(self.checkpoints, done)
        self.display.say(f"going on after update {done} of {wanted} from {path}")
        return state

    def saved(self) -> str:
        """What a message says of the newest checkpoint."""
        newest = latest_checkpoint(self.checkpoints)
        return "nothing was saved yet" if newest is None else f"update {int(newest.name)} is saved in {newest}"

    # --- is it ours? --------------------------------------------------------------------------------------------------

    def _check_contents(self) -> bool:
        """Whether the folder holds a run to go on with."""
        path, output = self.path, f"output={str(self.path)!r}"
        if not path.exists():
            return False
        if not path.is_dir():
            raise FileExistsError(f"{output} is a file; name a folder that is new or empty")
        if (path / RECORD).is_file() and _is_settings(path / RECORD):
            if not self._settings.resume:
                raise FileExistsError(f"{output} already holds a run; add --resume, or choose another folder")
            return True
        if others := sorted(entry.name for entry in path.iterdir() if entry.name not in (LOCK, f".tmp.{RECORD}")):
            raise FileExistsError(
                f"{output} holds no run, but files ({', '.join(others[:3])}{', …' * (len(others) > 3)}); "
                f"they were left alone: name a folder that is new or empty"
            )
        return False

    def _check_settings(self) -> None:
        record = self.path / RECORD
        old, present = json.loads(record.read_text(encoding="utf-8")), self._present
        then, now = _bound(old), self.settings
        if changed := sorted(name for name in now if then.get(name) != now[name]):
            pairs = ", ".join(f"{name}={now[name]!r}, was {then.get(name)!r}" for name in changed)
            raise ValueError(
                f"resume: {', '.join(changed)} differ from those in {record} ({pairs}); a run goes on with its own"
            )
        if old.get("updates") != present.get("updates"):
            lengths = f"{present['updates']}, was {old.get('updates')}"
            self.display.say(f"updates: {lengths}; a learning rate that falls follows the new length")

    # --- one process at a time ----------------------------------------------------------------------------------------

    def _acquire(self) -> int:
        """Lock the file ``run.lock``; the system drops a lock with the process that held it, however that ended."""
        path = self.path / LOCK
        while True:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                if fcntl is not None:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(handle, 200).decode(errors="replace").strip() or "another process"
                os.close(handle)
                raise BlockingIOError(
                    f"output={str(self.path)!r} is being written by {holder}; wait, or choose another folder"
                ) from None
            except OSError as error:  # a file system without locks
                self.display.say(f"{path} cannot be locked ({error.strerror}); start no second run there")
            if _is_same(handle, path):
                os.truncate(handle, 0)
                os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
                return handle
            os.close(handle)  # its holder removed it in between


def fingerprint(content: Any) -> str:
    """CRC-32 of the weights of a module, without those that LoRA adds, or of anything else as `repr` writes it."""
    if not isinstance(content, nn.Module):
        return f"{zlib.crc32(repr(content).encode('utf-8', 'surrogatepass')):08x}"
    value = 0
    for name, tensor in content.state_dict().items():
        if "lora_" not in name:
            value = zlib.crc32(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy(), value)
    return f"{value:08x}"


def _bound(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a run keeps for life, each under its own name; "group.name" where several groups have it."""
    groups = {name: value for name, value in settings.items() if isinstance(value, dict)}
    times = Counter(name for group in groups.values() for name in group)
    flat = {name: value for name, value in settings.items() if name not in groups}
    for group, values in groups.items():
        flat |= {name if times[name] == 1 else f"{group}.{name}": value for name, value in values.items()}
    return {name: value for name, value in with_todays_names(flat).items() if name not in FREE}


def _is_same(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _is_settings(record: Path) -> bool:
    """Whether a file is the settings of a run: other programs have a settings.json too.

    Raises:
        ValueError: no JSON.
    """
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{record} is no JSON ({error}); whatever wrote it, this folder is left alone") from error
    return isinstance(content, dict) and {"env", "model", "seed", "output"} <= content.keys()


def _find(settings: FolderSettings, prefix: str) -> Path:
    """The folder that is named, or the first ``runs/<task>-seed<seed>`` that is free (to resume: the first)."""
    if settings.output is not None:
        return Path(settings.output)
    name, number = f"runs/{prefix}{settings.env.split('/')[-1]}-seed{settings.seed}", 1
    folder = Path(name)
    while not settings.resume and folder.exists():
        number += 1
        folder = Path(f"{name}-{number}")
    return folder
