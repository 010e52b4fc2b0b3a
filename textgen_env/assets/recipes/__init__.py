"""Recipes of the embedded assets: text sources, grammars, training of the tiny models, prompt files.

Nothing in the package imports this folder. It is run by hand, see README.md here, and may need libraries
(rdata, pysword, tokenizers) that textgen_env itself does not ask for.
"""
