"""The single-file PPO: its rewards hold the exact KL of its own policy, and it learns. Needs no further library."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from load_example import load_example
from small_task import letters

import textgen_env  # noqa: F401


def test_the_policy_is_bound_and_starts_with_kl_zero(byte_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    make = gym.make_vec
    monkeypatch.setattr(gym, "make_vec", lambda *args, **kwargs: made.append(make(*args, **kwargs)) or made[-1])
    load_example("cleanrl_ppo").main(
        "textgen/TextGen-v0",
        iterations=1,
        model=byte_model,
        prompts=["a", "bcd"],
        scorer=letters,
        max_new_tokens=40,
        kl_coef=0.5,
        temperature=0.7,
    )
    kls = made[0].unwrapped.engine.episodes.token_kls
    known = kls[~np.isnan(kls)]
    assert known.size > 0
    np.testing.assert_allclose(known, 0.0, atol=1e-5)


@pytest.mark.heavy
@pytest.mark.parametrize("seed", range(3))
def test_ppo_learns(seed: int) -> None:
    before, after = load_example("cleanrl_ppo").main(seed=seed)
    assert after > before + 0.15
