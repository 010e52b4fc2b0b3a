"""What any environment, scorer or responder of this kind must do: suites to subclass, in anybody's tests.

    from textgen_env.testing import EnvContract

    class TestMine(EnvContract):
        def make_env(self):
            return gym.make("textgen/TextGen-v0", prompts=["Once"], scorer=my_scorer)

Here: promises that hold whatever the prompts, model and scorer are. Not here: what a certain task pays. Needs pytest,
which collects the subclasses; nothing else in the package imports this package. With
`pytest.register_assert_rewrite("textgen_env.testing")` in a conftest.py, failures show the values that differ. The
pattern is that of `dm_env.test_utils.EnvironmentTestMixin`.
"""

from __future__ import annotations

try:
    import pytest  # noqa: F401
except ImportError as error:
    raise ImportError("textgen_env.testing needs pytest: pip install pytest") from error

from .comparing import largest, plain, same, slot_infos
from .environments import ENDING, EnvContract, VectorEnvContract
from .responders import ResponderContract
from .scorers import ScorerContract

__all__ = [
    "ENDING",
    "EnvContract",
    "ResponderContract",
    "ScorerContract",
    "VectorEnvContract",
    "largest",
    "plain",
    "same",
    "slot_infos",
]
