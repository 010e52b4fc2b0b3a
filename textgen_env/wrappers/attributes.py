"""What lies under wrappers: attributes of the environment that a wrapper does not hand on by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker
from numpy.typing import NDArray


def layers(env: Any) -> Iterator[Any]:
    """The wrappers of an environment and the environment itself, outermost first."""
    yield env
    while env is not env.unwrapped:
        env = env.env
        yield env


def holder(env: Any, name: str) -> Any:
    """The outermost layer that has an attribute.

    Args:
        env: a single or vector environment, with any wrappers.
        name: of the attribute.

    Raises:
        AttributeError: none has it.
    """
    for layer in layers(env):
        if hasattr(layer, name):
            return layer
    raise AttributeError(f"{env} has no attribute {name!r}, and neither has anything that it wraps")


def env_attribute(env: Any, name: str) -> Any:
    """The attribute of the outermost layer that has it; see `holder`.

    `env_attribute(env, "action_masks")()` asks the outermost wrapper that changes what may be chosen, or else the
    environment.
    """
    return getattr(holder(env, name), name)


def check_directly_around(env: Any, wrapper: str) -> None:
    """Check that nothing lies between a wrapper and an environment of this package but what `gym.make` puts there.

    Raises:
        TypeError: the environment is another, or there is something that would not see the steps.
    """
    *between, innermost = layers(env)
    if not hasattr(innermost, "engine"):
        raise TypeError(f"env={env} must be a textgen environment")
    for layer in between:
        if not isinstance(layer, (OrderEnforcing, PassiveEnvChecker)):
            raise TypeError(
                f"{wrapper} goes directly around the environment, whose tokens it writes, but here is "
                f"{type(layer).__name__} between; put that around {wrapper}"
            )


def may_mask(env: Any) -> bool:
    """Whether `action_masks` can forbid anything: no, if the layer that answers it says so by `restricts_actions`.

    Masks have one entry per token and slot, so that it is worth not asking for them.
    """
    return bool(getattr(holder(env, "action_masks"), "restricts_actions", True))


class PassesMasks:
    """Mixed into wrappers that leave actions as they are."""

    def action_masks(self, slots: Sequence[int] | NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
        """True where an action is allowed; see `action_masks` of the wrapped environment."""
        masks = env_attribute(self.env, "action_masks")  # type: ignore[attr-defined]
        return masks() if slots is None else masks(slots)

    @property
    def restricts_actions(self) -> bool:
        """Whether `action_masks` can forbid anything; see `may_mask`."""
        return may_mask(self.env)  # type: ignore[attr-defined]
