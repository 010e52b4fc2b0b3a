"""The contract suites under the name that they had before they were shipped."""

from textgen_env.testing import EnvContract, ScorerContract, VectorEnvContract

__all__ = ["EnvContract", "ScorerContract", "VectorEnvContract"]
