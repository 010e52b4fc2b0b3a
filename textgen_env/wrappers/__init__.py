"""Other observation and action spaces, for agents that know nothing of language; ends and infos for other libraries."""

from textgen_env.wrappers.attributes import env_attribute
from textgen_env.wrappers.features import LMFeatures, VectorLMFeatures
from textgen_env.wrappers.scored_cuts import ScoredCutsEnd, VectorScoredCutsEnd
from textgen_env.wrappers.top_k import TopKActions, VectorTopKActions
from textgen_env.wrappers.uniform_info import UniformInfo

__all__ = [
    "LMFeatures",
    "ScoredCutsEnd",
    "TopKActions",
    "UniformInfo",
    "VectorLMFeatures",
    "VectorScoredCutsEnd",
    "VectorTopKActions",
    "env_attribute",
]
