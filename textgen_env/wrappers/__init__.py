"""Other observation and action spaces, for agents that know nothing of language; ends and infos for other libraries."""

from textgen_env.wrappers.attributes import env_attribute
from textgen_env.wrappers.features import LMFeatures, VectorLMFeatures
from textgen_env.wrappers.scored_cuts import ScoredCutsEnd, VectorScoredCutsEnd
from textgen_env.wrappers.text_actions import TextActions, VectorTextActions
from textgen_env.wrappers.text_spaces import UnicodeText
from textgen_env.wrappers.top_k import TopKActions, VectorTopKActions
from textgen_env.wrappers.uniform_info import UniformInfo

__all__ = [
    "LMFeatures",
    "ScoredCutsEnd",
    "TextActions",
    "TopKActions",
    "UnicodeText",
    "UniformInfo",
    "VectorLMFeatures",
    "VectorScoredCutsEnd",
    "VectorTextActions",
    "VectorTopKActions",
    "env_attribute",
]
