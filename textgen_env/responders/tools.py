"""Tools that an agent calls in its turn: a calculator, Python in a sandbox, search, functions of one's own.

`Tools` finds the calls of a turn, calls, and replies. How calls are written is `calls.py`'s, what a tool is and what it
may be called with `tool.py`'s, time limits `in_time.py`'s.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from math import isfinite
from typing import TYPE_CHECKING, Any

from textgen_env.notices import shown, warn_user

from .base import Reply, ReplyLike
from .calls import JSONCalls, PatternCalls, ToolCall, as_call_format
from .in_time import TRANSIENT, check_patience, in_time
from .tool import argument_checks, as_tool

if TYPE_CHECKING:
    from textgen_env.episode import Prompt


class Tools:
    """Calls the tools that the agent names in its turn, and replies with their results, one per line.

    A turn without a call is the agent's answer: the episode ends and is scored. What is wrong with a call (no JSON, an
    unknown tool, arguments that its schema refuses, an error that the tool raises) is told to the agent as text,
    "error: …". What is nobody's mistake (a `TimeoutError`, a `ConnectionError`, `Unavailable`) fails the episode.

    In a conversation its replies are messages of the role "tool", and where calls are JSON the chat template tells
    the model of the tools.

    Args:
        tools: by name: a known one ("calculator", "python", "search"), `{"name": "python", arguments}`, the place of
            one's own ("module:function"), or a function with type hints and a docstring in Google's style (`as_tool`).
        calls: how a call is written: "json" (`<tool_call>{"name": …, "arguments": {…}}</tool_call>`), JSON between
            other marks (`{"start": …, "end": …}`), `{tool: pattern}` with named groups as arguments, or a `CallFormat`.
        reply: what is replied; "{result}" stands for the results.
        role: of the replies in a conversation.
        error_reward: is paid for a turn with a call that is wrong.
        timeout: seconds for each call, in threads; None: no limit, and calls one after the other.
        retries, backoff: further attempts after what was nobody's mistake, and the seconds before the first.
        workers: calls at a time.

    Raises:
        TypeError, ValueError, ImportError: an argument of another kind or out of range; names it.
    """

    most_calls = 8  # that are made in a turn

    def __init__(
        self,
        tools: Mapping[str, Any],
        *,
        calls: Any = "json",
        reply: str = "{result}",
        role: str = "tool",
        error_reward: float = 0.0,
        timeout: float | None = None,
        retries: int = 0,
        backoff: float = 0.5,
        workers: int = 16,
    ) -> None:
        if not isinstance(tools, Mapping) or not tools:
            raise TypeError(f"tools={shown(tools)} must be a mapping from names to tools, with one at least")
        if isinstance(error_reward, bool) or not isinstance(error_reward, (int, float)) or not isfinite(error_reward):
            raise ValueError(f"tools: error_reward={shown(error_reward)} must be a finite number")
        if not isinstance(reply, str) or "{result}" not in reply:
            raise ValueError(f"tools: reply={shown(reply)} must be a text with '{{result}}' in it")
        check_patience("tools", timeout, retries, backoff, workers)
        self.tools = {name: as_tool(name, tool) for name, tool in tools.items()}
        self.calls, self.reply, self.role = as_call_format(calls, list(tools)), reply, role
        self.error_reward = error_reward
        self.patience = {"timeout": timeout, "retries": retries, "backoff": backoff, "workers": workers}
        as_json, by_pattern = isinstance(self.calls, JSONCalls), isinstance(self.calls, PatternCalls)
        self.tool_schemas = [tool.schema for tool in self.tools.values()] if as_json else []
        self._checks = {} if by_pattern else argument_checks(list(self.tools.values()))
        self._warned: set[str] = set()

    def reset(self, slots: Sequence[int], prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[str]:
        """Open with nothing: the prompt says what there is to do."""
        return [""] * len(slots)

    def respond(self, slots: Sequence[int], texts: Sequence[str]) -> list[ReplyLike]:
        """Call what is called in each text, all calls of all slots side by side."""
        turns = [self.calls(text) for text in texts]
        most = self.most_calls
        asked = [partial(self._result, s, call) for s, turn in zip(slots, turns, strict=True) for call in turn[:most]]
        found, _ = in_time(asked, **self.patience)  # type: ignore[arg-type]
        results = iter(found)
        return [self._reply(turn, [next(results) for _ in turn[:most]]) for turn in turns]

    def _result(self, slot: int, call: ToolCall | str) -> str | Mistake:
        """What a call comes to, as text."""
        if isinstance(call, str):
            return Mistake(call)
        if call.name not in self.tools:
            return Mistake(f"there is no tool {call.name!r}, but {', '.join(self.tools)}")
        if wrong := self._checks.get(call.name, lambda _: "")(call.arguments):
            return Mistake(f"{call.name}: {wrong}")
        try:
            return _as_text(self._call(slot, call))
        except TRANSIENT:
            raise
        except Exception as error:
            return Mistake(f"{call.name}: {self._told(call.name, error)}")

    def _call(self, slot: int, call: ToolCall) -> Any:
        """What a tool returns, which is not told who calls."""
        return self.tools[call.name].function(**call.arguments)

    def _told(self, name: str, error: Exception) -> str:
        """An error of a tool in words; one that looks like a mistake in the tool is told to the user as well."""
        if isinstance(error, ValueError):
            return str(error)
        told = f"{type(error).__name__}: {error}"
        if name not in self._warned:
            self._warned.add(name)
            warn_user(f"the tool {name!r} raised {told}; the agent is told so (said once for a tool)")
        return told

    def _reply(self, turn: Sequence[ToolCall | str], results: Sequence[Any]) -> ReplyLike:
        if not turn:
            return None
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, Mistake):
                return result  # the episode fails
        mistakes = [result for result in results if isinstance(result, Mistake)]
        texts = [f"error: {result}" if isinstance(result, Mistake) else str(result) for result in results]
        if len(turn) > self.most_calls:
            most = f"{self.most_calls} were" if self.most_calls > 1 else "was"
            texts.append(f"error: of {len(turn)} calls only the first {most} made")
        info = {
            "calls": [call.name if isinstance(call, ToolCall) else None for call in turn[: self.most_calls]],
            "mistakes": len(mistakes),
        }
        reward = self.error_reward if mistakes else 0.0
        return Reply(self.reply.replace("{result}", "\n".join(texts)), reward=reward, info=info)

    # --- nothing is kept from turn to turn ----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to load."""

    def clone_state(self, slot: int) -> None:
        """Nothing."""

    def restore_state(self, slot: int, state: None) -> None:
        """Nothing to restore."""


class Mistake(Exception):
    """What is wrong with a call, in words for the agent."""


def _as_text(result: Any) -> str:
    """A text as it is, anything else as JSON, if it can be."""
    if isinstance(result, str):
        return result
    try:
        return json.dumps(result, ensure_ascii=False)
    except (TypeError, ValueError):
        return str(result)
