"""The labelling page and a trainer that are killed again and again, while raters are at work.

    python -m benchmarks.label_kills --kills 50

What lives here: a server of the page and a process that does to its store what a trainer does (adds pairs, reads
choices, writes opinions), both killed (SIGKILL) at random moments and started again, and robots that post choices as
fast as they are answered. At the end every choice that was acknowledged must be there, none twice, and the file whole.
What does not: how a store survives that (``agents/preferences/store_file.py``), training itself (``kills.py``).
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import tyro
import uvicorn

from benchmarks.report import keep
from benchmarks.robots import Rater
from textgen_env.agents.preferences.page import make_app
from textgen_env.agents.preferences.pairs import Pair
from textgen_env.agents.preferences.store import PreferenceStore
from textgen_env.agents.preferences.store_records import Opinion


@dataclass
class Settings:
    """Kill the labelling page and a trainer."""

    kills: int = 50
    """How many, of both together."""
    raters: int = 3
    """Robots at the page."""
    seed: int = 0
    """Draws the moments."""
    longest: float = 2.0
    """Seconds, at most, from one kill to the next."""
    out: Path | None = None
    """Also append the JSON line to this file."""


@dataclass
class Load:
    """What the robots were told."""

    address: str
    stop: threading.Event = field(default_factory=threading.Event)
    acknowledged: set[tuple[str, int]] = field(default_factory=set)
    undone: set[tuple[str, int]] = field(default_factory=set)
    refused: list[str] = field(default_factory=list)

    def work(self, raters: int, told: Path, until: Path) -> None:
        """All robots at once, until there is a file ``until``; then what they were told is in ``told``."""
        robots = [threading.Thread(target=self.label, args=(f"robot {i}",)) for i in range(raters)]
        for robot in robots:
            robot.start()
        while not until.exists():
            time.sleep(0.02)
        self.stop.set()
        for robot in robots:
            robot.join()
        told.write_text(json.dumps([sorted(self.acknowledged), sorted(self.undone), self.refused]))

    def label(self, who: str) -> None:
        """Choose as fast as is answered; now and then take one back."""
        luck = random.Random(who)
        while not self.stop.is_set():
            try:
                with httpx.Client(base_url=self.address, timeout=20, verify=False, trust_env=False) as client:
                    rater = Rater(client, who)
                    while not self.stop.is_set():
                        self._one(rater, who, luck)
            except httpx.HTTPError:  # the server was killed
                time.sleep(0.01)
            except RuntimeError as error:  # an answer that a rater should never get
                self.refused.append(str(error))
                return

    def _one(self, rater: Rater, who: str, luck: random.Random) -> None:
        page = rater.get()
        if page.number is None:
            time.sleep(0.02)
        elif "/undo" in page.buttons and luck.random() < 0.1:
            key = (who, int(page.fields["last"]))
            self.undone.add(key)  # from now on it may be gone, whether or not the answer arrives
            rater.press(page, "/undo")
        else:
            rater.press(page, luck.choice(["left", "right", "tie", "cannot tell"]))
            self.acknowledged.add((who, page.number))
            self.undone.discard((who, page.number))


def fork(work: Callable[[], Any]) -> int:
    """Do something in a process of its own, which ends with it."""
    if process := os.fork():
        return process
    try:
        work()
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


def serve(path: Path, listening: socket.socket) -> None:
    """The page."""
    config = uvicorn.Config(make_app(PreferenceStore(path)), log_level="error", ws="none")
    uvicorn.Server(config).run(sockets=[listening])


def train(path: Path) -> None:
    """What a trainer does to a store, again and again."""
    store = PreferenceStore(path)
    while True:
        known = len(store.numbered())
        store.add([Pair(f"prompt {n}", f"first {n}", f"second {n}") for n in range(known, known + 20)])
        store.put_opinions({number: Opinion("reward_model/last", number % 7 - 3.0) for number in store.numbered()})
        store.pairs()
        time.sleep(0.05)


def kill(settings: Settings, workplace: Path) -> Iterator[dict[str, Any]]:
    """One record of all kills."""
    path, told, until = (workplace / name for name in ("store.db", "told.json", "until"))
    luck, begin, died = random.Random(settings.seed), time.monotonic(), []
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        load = Load(f"http://127.0.0.1:{listening.getsockname()[1]}")
        work: dict[str, Callable[[], None]] = {"page": lambda: serve(path, listening), "trainer": lambda: train(path)}
        running = {name: fork(start) for name, start in work.items()}
        robots = fork(lambda: load.work(settings.raters, told, until))
        for _ in range(settings.kills):
            time.sleep(luck.uniform(0, settings.longest))
            name = luck.choice(list(work))
            died.append(end(running[name]))
            running[name] = fork(work[name])
        time.sleep(1)  # whoever was in the middle gets their answer
        until.touch()
        os.waitpid(robots, 0)
        for process in running.values():
            end(process)
    acknowledged, undone, load.refused = json.loads(told.read_text())
    load.acknowledged, load.undone = ({(who, number) for who, number in each} for each in (acknowledged, undone))
    yield {**check(path, load), "kills": died.count(-signal.SIGKILL), "seconds": round(time.monotonic() - begin, 1)}


def end(process: int) -> int:
    """Kill a process; how it ended."""
    os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def check(path: Path, load: Load) -> dict[str, Any]:
    """What became of the choices."""
    store = PreferenceStore(path)
    said = [(each.pair.who or "", each.number) for each in store.said()]
    with closing(sqlite3.connect(path)) as database:
        (whole,) = database.execute("PRAGMA integrity_check").fetchone()
    by_pair = [number for _, number in said]
    return {
        "benchmark": "label_kills",
        "acknowledged": len(load.acknowledged),
        "lost": sorted(load.acknowledged - load.undone - set(said)),
        "doubled": sorted({each for each in said if said.count(each) > 1} if len(said) != len(set(said)) else []),
        "pairs_with_two_raters": len(by_pair) - len(set(by_pair)),
        "unacknowledged": len(set(said) - load.acknowledged),
        "refused": load.refused,
        "integrity": whole,
        "pairs": len(store.numbered()),
    }


def is_right(record: dict[str, Any]) -> bool:
    """Nothing was lost or doubled."""
    wrong = record["lost"] or record["doubled"] or record["refused"] or record["pairs_with_two_raters"]
    return not wrong and record["integrity"] == "ok"


def main() -> None:
    """See the module's docstring."""
    settings = tyro.cli(Settings)
    with tempfile.TemporaryDirectory() as workplace:
        (record,) = keep(kill(settings, Path(workplace)), settings.out)
    sys.exit(not is_right(record))


if __name__ == "__main__":
    main()
