"""The page on which people compare responses, served from this machine.

What lives here: the command (``python -m textgen_env.agents.label``): which file, at which address, import and export.
What does not: the page (``preferences/page.py``), the store (``preferences/store.py``).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .preferences.pairs import read_pairs, write_pairs, write_trl
from .preferences.store import PreferenceStore
from .training.command_line import parse
from .training.command_line import run as run_program
from .training.extra import tyro
from .training.setting_checks import COUNT, POSITIVE, TEXT, check, optional, whole

try:
    import uvicorn

    from .preferences.page import make_app
    from .preferences.page_guard import is_loopback
except ImportError as error:
    message = f"the labelling page needs starlette and uvicorn ({error}): pip install 'textgen_env[agents,label]'"
    raise ImportError(message, name=error.name) from error

TOKEN = "TEXTGEN_LABEL_TOKEN"


@dataclass
class LabelSettings:
    """Compare responses in a browser.

    FILE is a store of preferences (preferences.db of a pipeline), the folder of such a pipeline, or a JSONL file of
    pairs, in our own form or in TRL's, whose store is made beside it. Choices are kept in the store; several people
    may compare at once, and a pipeline may read and add pairs while they do:

        python -m textgen_env.agents.rlhf --labeller page --rounds 3 --labels 300 --responses 4 --output runs/people
        python -m textgen_env.agents.label runs/people
    """

    file: tyro.conf.Positional[Path]
    """A store, a folder with one, or a JSONL file of pairs."""
    host: str = "127.0.0.1"
    """Address to listen at. Any other than this machine's own demands a token, from the environment variable
    TEXTGEN_LABEL_TOKEN or made up and shown."""
    port: int = 8421
    """Port to listen at; 0: any that is free."""
    names: tuple[str, ...] = field(default_factory=tuple)
    """Further host names under which browsers ask for the page."""
    overlap: int = 1
    """How many raters are asked about each pair; agreement needs 2."""
    lease_minutes: float = 10.0
    """For how long a pair that was shown to one rater is kept from others."""
    replay: bool = False
    """Show all pairs with what was said of them, and take no choices."""
    reward_model: str | None = None
    """Folder of a saved reward model ("reward_model/last") whose opinion of the pairs is to be shown; None: the last
    one of a pipeline's folder, where there is none yet."""
    export: str | None = None
    """Write all choices to this JSONL file, and end."""
    export_trl: str | None = None
    """Write all preferences to this file in TRL's format, and end."""

    def __post_init__(self) -> None:
        rules = {"host": TEXT, "port": whole(0, 65535), "overlap": COUNT, "lease_minutes": POSITIVE}
        check(self, {**rules, **dict.fromkeys(("reward_model", "export", "export_trl"), optional(TEXT))})


class LabelServer:
    """The command: `execute` serves the page until it is stopped, or exports and ends."""

    def __init__(self, settings: LabelSettings) -> None:
        self.settings, self.begun = settings, False
        file, lease = settings.file, 60 * settings.lease_minutes
        path = store_path(file)
        given = read_pairs(file) if file.suffix == ".jsonl" else []
        self.store = PreferenceStore(path, overlap=settings.overlap, lease_seconds=lease)
        self.store.add(given)
        self._exports = settings.export is not None or settings.export_trl is not None
        if not self._exports:
            self._show_opinions()
            self._token = os.environ.get(TOKEN) or (None if is_loopback(settings.host) else secrets.token_urlsafe(24))
            self._socket = _listen(settings.host, settings.port)

    @property
    def address(self) -> str:
        """Where the page is."""
        host, port = self._socket.getsockname()[:2]
        shown = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        return f"http://{shown}:{port}/" + (f"?token={self._token}" if self._token else "")

    def execute(self) -> None:
        """Serve, or export."""
        self.begun = True
        if self._exports:
            self._export()
            return
        settings = self.settings
        names = [*settings.names, settings.host, socket.gethostname()] if self._token else settings.names
        app = make_app(self.store, title=settings.file.stem, replay=settings.replay, names=names, token=self._token)
        print(f"{len(self.store.numbered())} pairs in {self.store.path}; compare at {self.address}", flush=True)
        options: dict[str, Any] = {"log_level": "warning", "access_log": False, "server_header": False}
        config = uvicorn.Config(app, proxy_headers=False, ws="none", timeout_graceful_shutdown=5, **options)
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn has ended in good order
            uvicorn.Server(config).run(sockets=[self._socket])
        print(f"stopped; all choices are in {self.store.path}")

    def _export(self) -> None:
        pairs, settings = self.store.pairs(), self.settings
        if settings.export is not None:
            write_pairs(settings.export, pairs)
            print(f"{len(pairs)} lines in {settings.export}")
        if settings.export_trl is not None:
            left_out = write_trl(settings.export_trl, pairs)
            print(f"{len(pairs) - left_out} preferences in {settings.export_trl}; {left_out} lines have none")

    def _show_opinions(self) -> None:
        """Let the store know what the reward model thinks, where it is named, or was left by a pipeline."""
        folder = self.settings.reward_model
        if folder is None and self.settings.file.is_dir() and not self.store.opinions():
            found = last_reward_model(self.settings.file)
            folder = None if found is None else str(found)
        if folder is not None:
            from .preferences.opinions import put_opinions  # which loads models

            put_opinions(self.store, Path(folder))


def store_path(file: Path) -> Path:
    """The store that a file or folder stands for.

    Raises:
        FileNotFoundError: there is none.
    """
    if file.is_dir():
        file = file / "preferences.db"
    if not file.is_file():
        raise FileNotFoundError(f"file={str(file)!r}: there is no such file; a pipeline or a .jsonl of pairs makes it")
    return file.with_suffix(".db") if file.suffix == ".jsonl" else file


def last_reward_model(folder: Path) -> Path | None:
    """The last reward model of a pipeline's folder."""
    found = [*folder.glob("reward_model/last"), *folder.glob("round-*/reward_model/last")]
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ValueError(f"host={host!r} with port={port}: {error}; --port 0 takes any that is free") from error


def make_server(arguments: Sequence[str] | None = None) -> LabelServer:
    """Everything up to the first request; see `main`."""
    return LabelServer(parse(LabelSettings, "textgen_env.agents.label", arguments))


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m textgen_env.agents.label --help``"""
    make_server(arguments).execute()


if __name__ == "__main__":
    run_program(make_server)
