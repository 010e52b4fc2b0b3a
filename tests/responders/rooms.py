"""Small environments of Gymnasium, to be played by a responder: a treasure in a row of rooms, and its bad relatives."""

from __future__ import annotations

import random
from typing import Any

import gymnasium as gym
from gymnasium import spaces

ROOMS = 4


class Rooms(gym.Env):
    """Go left or right to the treasure, which the seed has hidden; each command costs 1/8."""

    action_space: Any = spaces.Text(16)
    observation_space = spaces.Text(64)

    def __init__(self, treasure: float = 2.0, walls: bool = False) -> None:
        self.treasure, self.walls = treasure, walls

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.room, self.steps = (options or {}).get("room", 0), 0
        self.hidden = int(self.np_random.integers(1, ROOMS))
        return self.seen(), {"exits": ["left", "right"]}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        moves = {"left": -1, "right": 1}
        if action not in moves:
            raise RuntimeError(f"nobody can {action}")
        self.room, self.steps = (self.room + moves[action]) % ROOMS, self.steps + 1
        found = self.room == self.hidden
        return self.seen(), self.treasure * found - 0.125, found, self.steps >= 6, {"exits": ["left", "right"]}

    def seen(self) -> str:
        return f" Room {self.room}, door {self.np_random.integers(10)}."


class NumberedRooms(Rooms):
    """The same with numbers."""

    action_space = spaces.Discrete(2)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, *rest = super().step(["left", "right"][action])
        return observation, *rest

    def seen(self) -> Any:
        return self.room


class Moody(Rooms):
    """Not even the same seed makes it do the same."""

    def seen(self) -> str:
        return str(random.random())


def spoken(observation: Any) -> str:
    return f" [{observation}]"


def understood(text: str) -> Any:
    return {"go left": "left", "go right": "right"}.get(text.lower())
