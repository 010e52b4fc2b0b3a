"""What a policy learns from choices that are made on the labelling page, by the number of choices.

    python -m benchmarks.labelling --labels 75 150 300

What lives here: the loop of labels, reward model and PPO with a robot at the page, which prefers as the hidden judge
does: it opens the page, reads both texts and presses a button; the first choices in chromium, where there is one, the
others over HTTP. Beside it the same loop with labels that never saw a page, and with pairs that part where the ensemble
disagrees. What does not: the loop (``agents/rlhf.py``), the page (``agents/preferences/page.py``).

The robot's luck belongs to the judge's seed and the two texts, so that of the same pairs it says what a synthetic
labeller says: where the page changed, lost or swapped anything, "page" would differ from "synthetic".
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import tyro

from benchmarks.report import keep
from benchmarks.robots import Rater
from textgen_env.agents.preferences.labellers import SyntheticLabeller
from textgen_env.agents.preferences.pairs import Pair

ARMS = {
    "synthetic": [],
    "page": ["--labeller", "page"],
    "disagreement": ["--labeller", "page", "--select", "disagreement"],
    "branches": ["--labeller", "page", "--select", "branches"],
}
Choose = Callable[[str, str, str], str]
"""From a prompt, the left and the right response to a button."""


@dataclass
class Settings:
    """Let a robot label."""

    labels: tuple[int, ...] = (75, 150, 300)
    """Choices, in all rounds of a run together."""
    arms: tuple[str, ...] = ("synthetic", "page", "branches")
    """Which runs: synthetic, page, disagreement, branches."""
    rounds: int = 3
    """Rounds of labels and training."""
    updates: int = 30
    """Iterations of PPO."""
    members: int = 2
    """Of the ensemble."""
    temperature: float = 0.0
    """Of the judge, in units of the score."""
    browser_choices: int = 10
    """How many of a run are made in chromium."""
    seed: int = 1
    """Of everything."""
    flags: str = ""
    """Further flags of ``agents.rlhf``."""
    out: Path | None = None
    """Also append the JSON lines to this file."""


def command(settings: Settings, arm: str, labels: int, folder: Path) -> list[str]:
    """The trainer."""
    values = {
        "rounds": settings.rounds,
        "labels": labels,
        "label-temperature": settings.temperature,
        "ppo-updates": settings.updates,
        "reward-model.members": settings.members,
        "seed": settings.seed,
        "output": folder,
    }
    flags = [part for name, value in values.items() for part in (f"--{name}", str(value))]
    return [sys.executable, "-m", "textgen_env.agents.rlhf", *flags, *ARMS[arm], *shlex.split(settings.flags)]


def judge(settings: Settings) -> Choose:
    """The hidden judge, as somebody who looks at the page."""
    labeller = SyntheticLabeller("sentiment", temperature=settings.temperature, seed=settings.seed)

    def choose(prompt: str, left: str, right: str) -> str:
        (pair,) = labeller([Pair(prompt, left, right)])
        return {"a": "left", "b": "right"}.get(pair.choice or "", str(pair.choice))

    return choose


@contextmanager
def served(store: Path, trainer: subprocess.Popen[bytes]) -> Iterator[str]:
    """The page, once there is something to show."""
    while not store.exists():
        if trainer.poll() is not None:
            raise RuntimeError("the trainer ended before it asked for a label")
        time.sleep(0.1)
    page = subprocess.Popen(
        [sys.executable, "-m", "textgen_env.agents.label", str(store), "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert page.stdout is not None
        found = re.search(r"http://\S+(?=/)", page.stdout.readline())
        if found is None:
            raise RuntimeError("the page did not start")
        yield found[0]
    finally:
        page.terminate()
        page.wait()


def label(address: str, choose: Choose, most_in_browser: int, is_done: Callable[[], bool]) -> dict[str, int]:
    """Judge all that comes, until the trainer is done; how many in the browser, and how many over HTTP."""
    counts = {"browser": 0, "http": 0}
    chromium = shutil.which("chromium") if most_in_browser else None
    if chromium is not None:
        counts["browser"] = label_in_browser(address, choose, most_in_browser, chromium)
    with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
        rater = Rater(client, "robot")
        while not is_done():
            page = rater.get()
            if page.number is None:
                time.sleep(0.5)
                continue
            rater.press(page, choose(page.prompt, page.sides["left"], page.sides["right"]))
            counts["http"] += 1
    return counts


def label_in_browser(address: str, choose: Choose, most: int, chromium: str) -> int:
    """The first choices, by clicks."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"])
        page = browser.new_page()
        page.goto(address)
        page.get_by_label("Your name").fill("robot")
        page.get_by_role("button", name="Begin").click()
        page.wait_for_url("**/compare*")
        done = 0
        while done < most and not page.locator(".quiet").count():
            places = (".prompt .text", ".left .text", ".right .text")
            texts = [page.locator(place).first.text_content() or "" for place in places]
            number = page.locator("input[name=number]").input_value()
            page.locator(f'button[value="{choose(*texts)}"]').click()
            page.locator(f'input[name=number]:not([value="{number}"]), .quiet').first.wait_for(state="attached")
            done += 1
        browser.close()
    return done


def run(settings: Settings, arm: str, labels: int, folder: Path) -> dict[str, Any]:
    """One run, and what became of it."""
    begin = time.monotonic()
    with ExitStack() as stack, folder.with_suffix(".log").open("wb") as log:
        trainer = subprocess.Popen(command(settings, arm, labels, folder), stdout=log, stderr=log)
        stack.callback(trainer.kill)
        counts: dict[str, int] = {}
        if arm != "synthetic":
            address = stack.enter_context(served(folder / "preferences.db", trainer))
            counts = label(address, judge(settings), settings.browser_choices, lambda: trainer.poll() is not None)
        if trainer.wait():
            raise RuntimeError(folder.with_suffix(".log").read_text(errors="replace")[-3000:])
    stages = json.loads((folder / "stages.json").read_text())
    metrics = {name: report["metrics"] for name, report in stages.items()}
    scores = [each["judge"] for each in metrics.values()]
    return {
        "benchmark": "labelling",
        "arm": arm,
        "labels": labels,
        "choices": counts,
        "judge": {name: round(each["judge"], 4) for name, each in metrics.items()},
        "kl_per_response": {name: round(each["kl_per_response"], 2) for name, each in metrics.items()},
        "gain": round(scores[-1] - scores[0], 4),
        "seconds": round(time.monotonic() - begin),
    }


def main() -> None:
    """See the module's docstring."""
    settings = tyro.cli(Settings)
    with tempfile.TemporaryDirectory() as workplace:
        keep(
            (
                run(settings, arm, labels, Path(workplace) / f"{arm}-{labels}")
                for labels in settings.labels
                for arm in settings.arms
            ),
            settings.out,
        )


if __name__ == "__main__":
    main()
