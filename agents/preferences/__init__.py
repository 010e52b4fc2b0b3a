"""Preferences between two responses to one prompt, as data: pairs, their files, who labels them, where they are kept.

Nothing is imported here: ``pairs.py`` has the pair and its files, ``labellers.py`` labels and chooses pairs,
``store.py`` keeps those of several raters, ``rewards.py`` and ``calibration.py`` say what was learned from them.
"""
