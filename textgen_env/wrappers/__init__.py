"""Other observation and action spaces, for agents that know nothing of language; ends and infos for other libraries."""

from textgen_env.wrappers.attributes import env_attribute
from textgen_env.wrappers.features import LMFeatures, VectorLMFeatures
from textgen_env.wrappers.option_menu import Situation
from textgen_env.wrappers.options import Options, VectorOptions
from textgen_env.wrappers.scored_cuts import ScoredCutsEnd, VectorScoredCutsEnd
from textgen_env.wrappers.text_actions import TextActions, VectorTextActions
from textgen_env.wrappers.text_spaces import UnicodeText
from textgen_env.wrappers.top_k import TopKActions, VectorTopKActions
from textgen_env.wrappers.uniform_info import UniformInfo

__all__ = [
    "LMFeatures",
    "Options",
    "ScoredCutsEnd",
    "Situation",
    "TextActions",
    "TopKActions",
    "UnicodeText",
    "UniformInfo",
    "VectorLMFeatures",
    "VectorOptions",
    "VectorScoredCutsEnd",
    "VectorTextActions",
    "VectorTopKActions",
    "env_attribute",
]
