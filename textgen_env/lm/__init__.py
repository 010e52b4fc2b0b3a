"""Language models: loading, exact log-probabilities, decoding that reuses prefixes, sampling.

Nothing here knows of environments, rewards or agents. Start with `language_model.py`.
"""

from textgen_env.lm.language_model import LanguageModel

__all__ = ["LanguageModel"]
