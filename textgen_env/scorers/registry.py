"""From a name or a JSON description to a scorer, and the corpus-level metrics by name. No metric lives here.

A module is imported when the first of its scorers is built, so that nobody pays for, or has to install, what is not
used.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .answers import scorer_name

_LOCATIONS = {
    # lexical: completions against references
    "bleu": "sacrebleu_metrics:BLEU",
    "chrf": "sacrebleu_metrics:ChrF",
    "ter": "sacrebleu_metrics:TER",
    "rouge1": "rouge:Rouge1",
    "rouge2": "rouge:Rouge2",
    "rougeL": "rouge:RougeL",
    "rougeLsum": "rouge:RougeLsum",
    "cider": "cider:CIDEr",
    "cider-d": "cider:CIDEr",
    "cider-plain": "cider:PlainCIDEr",
    "meteor": "meteor:METEOR",
    "exact_match": "edit_distance:ExactMatch",
    "edit_distance": "edit_distance:EditDistance",
    "wer": "edit_distance:WER",
    # models
    "sentiment": "classifier:Sentiment",
    "classifier": "classifier:Classifier",
    "spacy": "spacy_classifier:SpacyClassifier",
    "imdb-sentiment": "spacy_classifier:SpacyClassifier",  # the fetched model, which is its default
    "similarity": "similarity:Similarity",
    "fluency": "fluency:Fluency",
    # rules
    "length": "length:Length",
    "distinct": "diversity:Distinct",
    "repetition": "diversity:Repetition",
    "regex": "formats:Regex",
    "json_schema": "formats:JsonSchema",
    "keywords": "formats:Keywords",
    "vader": "vader:Vader",
    # around other scorers
    "sum": "combine:Sum",
    "affine": "combine:Affine",
    "clip": "combine:Clip",
    "normalize": "combine:Normalize",
    "eos_penalty": "penalties:EosPenalty",
    "overlong_penalty": "penalties:OverlongPenalty",
    "dense": "dense:Dense",
    "token_rewards": "dense:TokenRewards",
    "cached": "service:Cached",
    "patient": "service:Patient",
}

_CORPUS = {
    "bleu": "sacrebleu_metrics:corpus_bleu",
    "chrf": "sacrebleu_metrics:corpus_chrf",
    "ter": "sacrebleu_metrics:corpus_ter",
    "rouge1": "rouge:corpus_rouge1",
    "rouge2": "rouge:corpus_rouge2",
    "rougeL": "rouge:corpus_rougeL",
    "rougeLsum": "rouge:corpus_rougeLsum",
    "cider": "cider:corpus_cider",
    "cider-d": "cider:corpus_cider",
    "cider-plain": "cider:corpus_plain_cider",
}


def scorer_names() -> list[str]:
    """All names that `get_scorer` knows."""
    return sorted(_LOCATIONS)


def get_scorer(spec: str | Mapping[str, Any] | Callable[..., Any], **kwargs: Any) -> Callable[..., Any]:
    """Makes a scorer from what a user or a registered task wrote.

    Args:
        spec: a name (`"bleu"`); a JSON mapping `{"name": "bleu", **arguments}`; `{"sum": …}`, which is short for
            `{"name": "sum", "scorers": …}` (see `combine.Sum`); or a callable, which is returned as it is.
        **kwargs: arguments of the named scorer; they win over those of the mapping.

    Raises:
        ValueError: unknown name (the message lists all), or a mapping without a name.
        TypeError: `spec` is none of the above, or arguments were given along with a callable.
    """
    if isinstance(spec, str):
        return _load(_LOCATIONS, spec)(**kwargs)
    if isinstance(spec, Mapping):
        if "sum" in spec:
            spec = {"name": "sum", "scorers": spec["sum"], **{key: spec[key] for key in spec if key != "sum"}}
        if "name" not in spec:
            raise ValueError(f'scorer: a mapping needs the key "name" or "sum", got keys {sorted(spec)}')
        arguments = {key: value for key, value in spec.items() if key != "name"}
        return get_scorer(spec["name"], **{**arguments, **kwargs})
    if not callable(spec):
        raise TypeError(f"scorer: expected a name, a mapping or a callable, got {type(spec).__name__} {spec!r}")
    if kwargs:
        raise TypeError(f"scorer: arguments {sorted(kwargs)} go with a name, not with the callable {scorer_name(spec)}")
    return spec


def corpus_score(name: str, completions: Sequence[str], references: Sequence[Sequence[str]], **kwargs: Any) -> float:
    """The corpus-level value of a metric, for evaluation, on the scale on which it is published.

    BLEU, chrF and TER pool their statistics over the corpus and range over 0–100 (TER without upper bound, lower is
    better); ROUGE is the mean of the texts' values in 0–1; CIDEr is the mean in 0–10, with document frequencies from
    `references` unless others are given.

    Args:
        name: "bleu", "chrf", "ter", "rouge1", "rouge2", "rougeL", "rougeLsum", "cider", "cider-d" or "cider-plain".
        completions: n texts.
        references: n lists of texts, of any lengths ≥ 1.
        **kwargs: arguments of the metric, as for the scorer of that name.

    Raises:
        ValueError: unknown name, no texts, or n differs.
    """
    if not completions or len(completions) != len(references):
        raise ValueError(
            f"corpus_score: need as many lists of references as completions, and at least one; "
            f"got {len(completions)} completions and {len(references)} lists of references"
        )
    return float(_load(_CORPUS, name)(completions, references, **kwargs))


def _load(locations: Mapping[str, str], name: str) -> Callable[..., Any]:
    """Imports the module that holds `name` and returns its class or function."""
    if name not in locations:
        raise ValueError(f"scorer: unknown name {name!r}; known names: {', '.join(sorted(locations))}")
    module, attribute = locations[name].split(":")
    try:
        return getattr(importlib.import_module(f"{__package__}.{module}"), attribute)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"scorer {name!r} needs {error.name}, which is not installed: pip install 'textgen_env[scorers]'",
            name=error.name,
        ) from error
