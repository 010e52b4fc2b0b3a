"""TextWorld: a game as a Gymnasium environment, to be played by `TextEnvResponder` or by anybody.

responder={"name": "text_env", "env": "textgen_env.integrations.textworld:TextWorldEnv",
           "arguments": {"game": "game.z8"}, "info": ["admissible_commands"]}
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym

from textgen_env.wrappers.text_spaces import UnicodeText

try:
    import textworld
except ImportError as error:
    raise ImportError(
        "textgen_env.integrations.textworld needs TextWorld: pip install 'textgen_env[textworld]'"
    ) from error

LONGEST = 1 << 16  # characters of an observation


class TextWorldEnv(gym.Env[str, str]):
    """A game of TextWorld: a command is an action, and a reward is what it adds to the score.

    Terminates when the game is won or lost. A game does the same for the same commands, whatever the seed.

    Args:
        game: the path of a compiled game (.z8 or .json, with its .json beside it).
        infos: what `info` holds besides `score`, `won` and `lost`, by TextWorld's names of `EnvInfos`.

    Raises:
        FileNotFoundError: no such game.
    """

    def __init__(self, game: str | Path, infos: Sequence[str] = ("admissible_commands",)) -> None:
        if not Path(game).is_file():
            raise FileNotFoundError(f"game={str(game)!r}: there is no such file")
        wanted = textworld.EnvInfos(feedback=True, won=True, lost=True, score=True, **dict.fromkeys(infos, True))
        self._infos = ("score", "won", "lost", *infos)
        self._game = textworld.start(str(game), request_infos=wanted)
        self._score = 0.0
        self.action_space, self.observation_space = UnicodeText(256), UnicodeText(LONGEST)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin the game anew."""
        super().reset(seed=seed)
        state = self._game.reset()
        self._score = float(state.score or 0)
        return str(state.feedback)[:LONGEST], self._told(state)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Give a command."""
        state, score, done = self._game.step(action)
        reward, self._score = float(score) - self._score, float(score)
        return str(state.feedback)[:LONGEST], reward, bool(done), False, self._told(state)

    def _told(self, state: Any) -> dict[str, Any]:
        return {name: state.get(name) for name in self._infos}

    def close(self) -> None:
        """End the interpreter."""
        self._game.close()
