"""OpenEnv: its servers as environments of Gymnasium with texts, and tasks of this package as such a server.

The one is played by `TextEnvResponder`, or by anybody; the other by whatever speaks OpenEnv's protocol. Which names
actions and observations have is for each OpenEnv environment to say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym

from textgen_env.notices import shown
from textgen_env.wrappers.text_actions import TextActions
from textgen_env.wrappers.text_spaces import UnicodeText

try:
    from openenv.core import GenericEnvClient
    from openenv.core.env_server import Action, Environment, Observation, create_fastapi_app
    from openenv.core.env_server.types import State
except ImportError as error:
    raise ImportError("textgen_env.integrations.openenv needs OpenEnv: pip install 'textgen_env[openenv]'") from error

LONGEST = 1 << 20  # characters of a text over the wire


class OpenEnvClient(gym.Env[str, str]):
    """An OpenEnv server whose actions and observations have a text.

    Args:
        url: of the server, such as "http://localhost:8000".
        action: the field of its actions that the agent's text is.
        observation: the field of its observations that is the text to read.
        timeout: seconds for one answer, after which the step raises.

    Raises:
        ConnectionError: (at `reset`) there is no server.
    """

    def __init__(self, url: str, *, action: str = "text", observation: str = "text", timeout: float = 60.0) -> None:
        self._client = GenericEnvClient(base_url=url, message_timeout_s=timeout).sync()
        self._action, self._observation = action, observation
        self.action_space, self.observation_space = UnicodeText(LONGEST), UnicodeText(LONGEST)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin an episode; options are handed to the server."""
        super().reset(seed=seed)
        self._client.connect()
        given = {} if seed is None else {"seed": seed}
        result = self._client.reset(**given, **(options or {}))
        return self._text(result.observation), dict(result.observation)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Send a text. What the server pays nothing for has reward 0."""
        result = self._client.step({self._action: action})
        told = dict(result.observation)
        return self._text(told), float(result.reward or 0.0), bool(result.done), False, told

    def _text(self, observation: Any) -> str:
        if not isinstance(observation.get(self._observation), str):
            raise ValueError(
                f"observation={self._observation!r} names no text in {shown(observation)}; there are "
                f"{', '.join(sorted(observation))}"
            )
        return str(observation[self._observation])

    def close(self) -> None:
        """Hang up."""
        self._client.close()


class TextAction(Action):
    """What the agent writes.

    Attributes:
        text: a whole turn, without EOS.
    """

    text: str


class TextObservation(Observation):
    """What stands there.

    Attributes:
        prompt: what the episode began with.
        response: all that has been said behind it.
        text: what is new to the agent: the prompt and what the environment opened with, then each reply.
        info: the environment's own, plain values (OpenEnv's `metadata` stays on the server).
    """

    prompt: str
    response: str
    text: str
    info: dict[str, Any] = {}


class TaskEnvironment(Environment[TextAction, TextObservation, State]):
    """A task of this package in OpenEnv's words; a step is a whole turn, as with `TextActions`.

    Args:
        make: makes the single environment.
    """

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self, make: Callable[[], gym.Env]) -> None:
        super().__init__()
        self._env = TextActions(make())
        self._state = State()

    def reset(self, seed: int | None = None, episode_id: str | None = None, **options: Any) -> TextObservation:
        """Begin an episode; `prompt` among the options names one, as in `reset` of the environment."""
        observation, info = self._env.reset(seed=seed, options=options or None)
        self._state = State(episode_id=episode_id, step_count=0)
        return TextObservation(**observation, text=observation["prompt"] + info.get("opening", ""))

    def step(self, action: TextAction, timeout_s: float | None = None, **_: Any) -> TextObservation:
        """Write a turn."""
        observation, reward, terminated, truncated, info = self._env.step(action.text)
        self._state.step_count += 1
        ends = {"done": terminated or truncated, "reward": reward, "info": info}
        return TextObservation(**observation, text=info.get("reply", ""), **ends)

    @property
    def state(self) -> State:
        """Which episode, and how many turns of it."""
        return self._state

    def close(self) -> None:
        """Release the caches of the models."""
        self._env.close()


def serve(make: Callable[[], gym.Env], sessions: int = 8) -> Any:
    """A task as a web application that speaks OpenEnv's protocol: `uvicorn.run(serve(make))`.

    Args:
        make: makes the single environment of a session; sessions that share a `LanguageModel` hold its weights once.
        sessions: how many there may be at a time.
    """
    return create_fastapi_app(lambda: TaskEnvironment(make), TextAction, TextObservation, max_concurrent_envs=sessions)
