"""OpenEnv over a real server on the loopback: tasks served, and servers played. Needs openenv-core."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("openenv")

import uvicorn
from small_task import letters

from textgen_env import LanguageModel, TextGenEnv
from textgen_env.integrations.openenv import OpenEnvClient, serve
from textgen_env.responders import Reply
from textgen_env.wrappers import TextActions

pytestmark = pytest.mark.heavy


def porter(text: str) -> Any:
    if text == "open":
        return Reply(" It opens.", reward=2.0, terminated=True)
    return Reply(f" What is {text}?", reward=-0.5)


@pytest.fixture(scope="module")
def task(byte_model: str) -> dict[str, Any]:
    prompts = ["A door.", "A gate."]
    return {"model": LanguageModel(byte_model), "prompts": prompts, "scorer": letters, "responder": porter}


@pytest.fixture(scope="module")
def url(task: dict[str, Any]) -> Iterator[str]:
    """A server of the task, in a thread of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(
        uvicorn.Config(serve(lambda: TextGenEnv(**task)), host="127.0.0.1", port=port, log_level="warning")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 60
    while not server.started and time.monotonic() < until:
        time.sleep(0.05)
    assert server.started
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(30)


def test_a_task_over_the_wire_is_the_task(task: dict[str, Any], url: str) -> None:
    env, local = OpenEnvClient(url), TextActions(TextGenEnv(**task))
    for seed in range(3):
        observation, info = env.reset(seed=seed)
        expected, _ = local.reset(seed=seed)
        assert observation == info["prompt"] == expected["prompt"]
        for text in ("knock 🙂", "open"):
            observation, reward, terminated, truncated, info = env.step(text)
            expected, *rest, told = local.step(text)
            assert (info["prompt"], info["response"]) == (expected["prompt"], expected["response"])
            assert [reward, terminated, truncated] == rest
            assert observation == told["reply"]
            assert info["info"] == told
        assert terminated
    observation, _ = env.reset(options={"prompt": "A window."})
    assert observation == "A window."
    env.close()


def test_sessions_do_not_hear_of_each_other(url: str) -> None:
    one, other = OpenEnvClient(url), OpenEnvClient(url)
    one.reset(seed=0), other.reset(seed=1)
    one.step("a")
    assert other.step("b")[4]["response"] == "b What is b?"
    assert one.step("c")[4]["response"] == "a What is a?c What is c?"
    one.close(), other.close()


def test_a_server_is_a_responder(byte_model: str, url: str) -> None:
    described = {
        "name": "text_env",
        "env": "textgen_env.integrations.openenv:OpenEnvClient",
        "arguments": {"url": url},
    }
    arguments: dict[str, Any] = {"model": byte_model, "prompts": ["p"], "scorer": None, "max_new_tokens": 40}
    env = TextActions(TextGenEnv(responder=described, **arguments))
    _, info = env.reset(seed=0)
    assert info["opening"] in ("A door.", "A gate.")
    assert env.step("ring")[4]["reply"] == " What is ring?"
    state = env.unwrapped.clone_state()  # type: ignore[attr-defined]
    for _ in range(2):
        _, reward, terminated, _, info = env.step("open")
        assert (reward, terminated, info["reply"]) == (2.0 + 8.0, True, " It opens.")
        env.unwrapped.restore_state(state)  # type: ignore[attr-defined]
    env.unwrapped.engine.turns.responder.close()  # type: ignore[attr-defined]


def test_a_field_that_is_not_there_is_named(url: str) -> None:
    env = OpenEnvClient(url, observation="message")
    with pytest.raises(ValueError, match=r"observation='message' names no text in .*; there are .*prompt, response"):
        env.reset()
    env.close()


def test_without_a_server() -> None:
    with pytest.raises(ConnectionError):
        OpenEnvClient("http://127.0.0.1:9", timeout=2).reset()
