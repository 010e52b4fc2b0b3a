"""Other observation and action spaces, for agents that know nothing of language; each for both faces."""

from textgen_env.wrappers.features import LMFeatures, VectorLMFeatures
from textgen_env.wrappers.scored_cuts import ScoredCutsEnd, VectorScoredCutsEnd
from textgen_env.wrappers.top_k import TopKActions, VectorTopKActions

__all__ = [
    "LMFeatures",
    "ScoredCutsEnd",
    "TopKActions",
    "VectorLMFeatures",
    "VectorScoredCutsEnd",
    "VectorTopKActions",
]
