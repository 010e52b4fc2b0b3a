"""The contract suites: what this package ships keeps them, and what breaks a promise is found out."""

from __future__ import annotations

import random
from typing import Any

import gymnasium as gym
import pytest
from dialogues import Saving, answering, letters
from gymnasium.vector import AutoresetMode

from textgen_env.responders import Reply, Responder
from textgen_env.testing import EnvContract, ResponderContract, VectorEnvContract

ARGUMENTS: dict[str, Any] = {
    "prompts": ["one", "another"],
    "scorer": letters,
    "max_new_tokens": 10,
    "turn_strings": [chr(code) for code in range(33, 127)],
    "max_reply_tokens": 16,
}


class TestEcho(ResponderContract):
    def make_responder(self) -> Any:
        return "echo"


class TestFunction(ResponderContract):
    texts = ("one", "two b", "three", "four c", "five")

    def make_responder(self) -> Any:
        return answering


class Dice:
    """Throws dice from the seed of each slot: a responder with a state."""

    def __init__(self) -> None:
        self.dice: dict[int, random.Random] = {}

    def reset(self, slots: Any, prompts: Any, seeds: Any) -> list[str]:
        self.dice |= {slot: random.Random(seed) for slot, seed in zip(slots, seeds, strict=True)}
        return ["" for _ in slots]

    def respond(self, slots: Any, texts: Any) -> list[Any]:
        return [Reply(str(self.throw(slot)), reward=0.125 * self.throw(slot)) for slot in slots]

    def throw(self, slot: int) -> int:
        return self.dice[slot].randint(1, 6)

    def state_dict(self) -> dict[str, Any]:
        return {str(slot): die.getstate() for slot, die in self.dice.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.dice = {}
        for slot, (version, numbers, gauss) in state.items():
            self.dice[int(slot)] = random.Random()
            self.dice[int(slot)].setstate((version, tuple(numbers), gauss))


class TestDice(ResponderContract):
    def make_responder(self) -> Responder:
        return Dice()


class OneForAll(Dice):
    """The same die for all slots."""

    def throw(self, slot: int) -> int:
        return next(iter(self.dice.values())).randint(1, 6)


class Forgetful(Dice):
    """Its state is not all of it."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.dice = {int(slot): random.Random(0) for slot in state}


class Stubborn(Dice):
    """A reset begins nothing anew."""

    def reset(self, slots: Any, prompts: Any, seeds: Any) -> list[str]:
        new = [(slot, seed) for slot, seed in zip(slots, seeds, strict=True) if slot not in self.dice]
        self.dice |= {slot: random.Random(seed) for slot, seed in new}
        return ["" for _ in slots]


class Careless(Dice):
    """A reset of one slot is one of all."""

    def reset(self, slots: Any, prompts: Any, seeds: Any) -> list[str]:
        self.dice |= {slot: random.Random(5) for slot in self.dice}
        return super().reset(slots, prompts, seeds)


class Silent(Dice):
    """Leaves a slot without a reply."""

    def respond(self, slots: Any, texts: Any) -> list[Any]:
        return super().respond(slots, texts)[:2]


@pytest.mark.parametrize(
    ("promise", "broken"),
    [
        ("test_one_reply_per_slot", Silent),
        ("test_same_seeds_same_replies", Stubborn),
        ("test_slots_do_not_hear_of_each_other", OneForAll),
        ("test_a_reset_leaves_other_slots_alone", Careless),
        ("test_a_saved_state_goes_on", Forgetful),
    ],
)
def test_a_broken_promise_is_found(promise: str, broken: type) -> None:
    contract = ResponderContract()
    contract.make_responder = Dice  # type: ignore[method-assign]
    getattr(contract, promise)()
    contract.make_responder = broken  # type: ignore[method-assign]
    with pytest.raises(AssertionError):
        getattr(contract, promise)()


class TestEnvironment(EnvContract):
    @pytest.fixture(autouse=True)
    def _model(self, byte_model: str) -> None:
        self.model = byte_model

    def make_env(self) -> gym.Env:
        return gym.make("textgen/TextGen-v0", model=self.model, responder=Dice(), **ARGUMENTS)


@pytest.mark.parametrize("mode", list(AutoresetMode))
class TestVectorEnvironment(VectorEnvContract):
    @pytest.fixture(autouse=True)
    def _model(self, byte_model: str, mode: AutoresetMode) -> None:
        self.model, self.mode = byte_model, mode

    def make_vector_env(self) -> gym.vector.VectorEnv:
        arguments = {"model": self.model, "responder": Saving(*["r"] * 3), **ARGUMENTS}
        return gym.make_vec("textgen/TextGen-v0", num_envs=3, autoreset_mode=self.mode, **arguments)
