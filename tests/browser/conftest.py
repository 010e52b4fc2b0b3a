"""A real browser on the labelling page: Debian's chromium, where there is one."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from textgen_env.agents.preferences.page import make_app
from textgen_env.agents.preferences.store import PreferenceStore

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]  # as root, in a container


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if CHROMIUM is None:
        missing = pytest.mark.skip(reason="chromium is not installed")
        for item in items:
            if item.path.parent == Path(__file__).parent:
                item.add_marker(missing)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The browser; each test opens contexts of its own.

    Not for the whole session: while Playwright's synchronous interface is open an event loop runs in this thread, where
    tests of other modules call ``asyncio.run``.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Serves the page on a store, and says where."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(store: PreferenceStore, **options: Any) -> str:
        listening = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(make_app(store, **options), log_level="error", ws="none", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        running.append((server, thread))
        return f"http://127.0.0.1:{listening.getsockname()[1]}"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join()


@pytest.fixture
def visit(chromium: Any, serve: Callable[..., str]) -> Iterator[Callable[..., Any]]:
    """Opens a browser of their own for a rater, who has given their name; it fails if anything on a page does."""
    contexts, problems = [], []

    def open_page(address: str, name: str | None = "ann", **options: Any) -> Any:
        context = chromium.new_context(**{"viewport": {"width": 1200, "height": 760}, **options})
        context.set_default_timeout(30_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda r: None if r.url.startswith(address) else problems.append(f"asked for {r.url}"))
        page.goto(address)
        if name is not None:
            page.get_by_label("Your name").fill(name)
            page.get_by_role("button", name="Begin").click()
            page.wait_for_url("**/compare*")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not [problem for problem in problems if "status of 422" not in problem]  # a name that is refused
