"""From a name or a JSON description to a scorer, and the corpus-level metrics by name. No metric lives here.

A module is imported when the first of its scorers is built, so that nobody pays for, or has to install, what is not
used.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from textgen_env.locations import LOCATION, close_to, import_location
from textgen_env.notices import shown

from .answers import scorer_name
from .arguments import check_arguments
from .base import BoundScorer, bound

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
    # what the policy says of texts that could follow
    "answer_likelihood": "likelihood:AnswerLikelihood",
    "choice": "likelihood:Choice",
    "verdict": "likelihood:Verdict",
    # rules
    "length": "length:Length",
    "distinct": "diversity:Distinct",
    "repetition": "diversity:Repetition",
    "regex": "formats:Regex",
    "json_schema": "formats:JsonSchema",
    "keywords": "formats:Keywords",
    "acrostic": "constrained:Acrostic",
    "lipogram": "constrained:Lipogram",
    "citations": "citations:Citations",
    "numeric_answer": "numeric_answer:NumericAnswer",
    "reasoning-gym": "reasoning:ReasoningGym",
    "vader": "vader:Vader",
    # around other scorers
    "sum": "combine:Sum",
    "affine": "combine:Affine",
    "clip": "combine:Clip",
    "normalize": "combine:Normalize",
    "last_turn": "last_turn:LastTurn",
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


_REGISTERED: dict[str, str] = {}


def register_scorer(name: str, location: str) -> None:
    """Give a scorer of one's own a name, under which descriptions and the command line find it.

    Nothing is imported until the scorer is made. Names hold for this process; descriptions that other processes read
    can say "module:attribute" themselves.

    Args:
        name: the new name, without a colon.
        location: "module:attribute", where the attribute is a class, a scorer, or a function that makes one (see
            `get_scorer`).

    Raises:
        TypeError, ValueError: a name or a location of another form, or a name that stands for something else already.
    """
    if not isinstance(name, str) or not name.strip() or ":" in name:
        raise ValueError(f"register_scorer: name must be a text without a colon, and not empty, got {shown(name)}")
    if not isinstance(location, str) or not LOCATION.fullmatch(location):
        hint = "" if not callable(location) else "; a callable needs no name, it can be handed over as it is"
        raise ValueError(f'register_scorer: location must be "module:attribute", got {shown(location)}{hint}')
    if (before := _REGISTERED.get(name) or _LOCATIONS.get(name, location)) != location:
        raise ValueError(f"register_scorer: {name!r} is the name of {before} already, it cannot be that of {location}")
    _REGISTERED[name] = location


def scorer_names() -> list[str]:
    """All names that `get_scorer` knows."""
    return sorted([*_LOCATIONS, *_REGISTERED])


def get_scorer(spec: str | Mapping[str, Any] | Callable[..., Any], **kwargs: Any) -> Callable[..., Any]:
    """Makes a scorer from what a user or a registered task wrote.

    Args:
        spec: a name (`"bleu"`), or the place of one's own (`"module:attribute"`); a JSON mapping `{"name": "bleu",
            **arguments}`; `{"sum": …}`, which is short for `{"name": "sum", "scorers": …}` (see `combine.Sum`); or a
            callable, which is returned as it is.
        **kwargs: arguments of the named scorer; they win over those of the mapping.

    Of one's own scorers, a class is made with the arguments, and so is what a function returns that has no room for
    completions beside them. Any other function is the scorer, called with the arguments each time. Naming a module runs
    its code.

    Raises:
        ValueError: unknown name (the message lists all), a mapping without a name, or an argument out of its range.
        TypeError: `spec` is none of the above, arguments were given along with a callable, or they are not those of the
            scorer.
        ImportError: a module or library that is not there, or fails.
    """
    if isinstance(spec, str):
        return _make(spec, kwargs)
    if isinstance(spec, Mapping):
        name, arguments = _parsed(spec)
        return _make(name, {**arguments, **kwargs})
    if isinstance(spec, type):
        raise TypeError(f"scorer: got the class {spec.__name__}, which scores nothing; make one: {spec.__name__}(…)")
    if not callable(spec):
        hint = '; a sum of several is {"sum": [...]}' if isinstance(spec, (list, tuple)) else ""
        kind = type(spec).__name__
        raise TypeError(f"scorer: expected a name, a mapping or a callable, got {kind} {shown(spec)}{hint}")
    if kwargs:
        raise TypeError(f"scorer: arguments {sorted(kwargs)} go with a name, not with the callable {scorer_name(spec)}")
    return spec


def as_scorer(spec: str | Mapping[str, Any] | Callable[..., Any], part_name: str | None = None) -> BoundScorer:
    """The scorer of a description with everything that scorers may have, so that nobody need ask what it has.

    Args:
        spec: see `get_scorer`.
        part_name: the part's name where the scorer has no parts; None: the scorer's name.

    Raises:
        ValueError, TypeError, ImportError: see `get_scorer`.
    """
    return bound(get_scorer(spec), part_name)


def _parsed(spec: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name and the arguments in a mapping."""
    arguments = dict(spec)
    if wrong := [key for key in arguments if not isinstance(key, str)]:
        raise TypeError(f"scorer: keys of a mapping must be texts, got {shown(wrong[0])} in {shown(arguments)}")
    if "sum" in arguments:
        if "name" in arguments:
            raise ValueError(f'scorer: a mapping has either "sum" or "name", got both in {shown(arguments)}')
        return "sum", {"scorers": arguments.pop("sum"), **arguments}
    if "name" not in arguments:
        raise ValueError(f'scorer: a mapping needs the key "name" or "sum", got keys {sorted(arguments)}')
    if not isinstance(name := arguments.pop("name"), str):
        raise TypeError(f"scorer: name must be a text, got {type(name).__name__} {shown(name)} in {shown(dict(spec))}")
    return name, arguments


def _make(name: str, arguments: dict[str, Any]) -> Callable[..., Any]:
    """The scorer of a name with these arguments."""
    if name in _LOCATIONS:
        found = _load(_LOCATIONS, name)
    else:
        found = _imported(name, _REGISTERED.get(name, name))
    if not isinstance(found, type) and _takes_completions(found, arguments):
        return _bound(name, found, arguments) if arguments else found
    check_arguments(name, found, arguments)
    scorer = found(**arguments)
    if not callable(scorer):
        raise TypeError(f"scorer {name!r}: {found!r} must make a callable, got {type(scorer).__name__} {shown(scorer)}")
    return scorer


def _bound(name: str, scorer: Callable[..., Any], arguments: dict[str, Any]) -> Callable[..., Any]:
    """A scorer that is a function, with some of its arguments."""
    if not inspect.isroutine(scorer):
        raise TypeError(f"scorer {name!r} is an object, which takes no arguments here, got {shown(arguments)}")
    check_arguments(name, scorer, arguments, complete=False)
    filled = partial(scorer, **arguments)
    filled.name = scorer_name(scorer)  # type: ignore[attr-defined]
    filled.needs_policy = bound(scorer).needs_policy  # type: ignore[attr-defined]
    return filled


def _takes_completions(function: Callable[..., Any], arguments: Mapping[str, Any]) -> bool:
    """Whether a function has room for completions beside its arguments: then it is a scorer and does not make one."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return True
    if any(p.name == "completions" or p.kind is p.VAR_POSITIONAL for p in parameters):
        return True
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return bool(positional) and positional[0].default is inspect.Parameter.empty and positional[0].name not in arguments


def _imported(name: str, location: str) -> Callable[..., Any]:
    """What "module:attribute" stands for."""
    if not LOCATION.fullmatch(location):
        names = scorer_names()
        raise ValueError(
            f'scorer: unknown name {name!r}; known names: {", ".join(names)}, and "module:attribute" for one\'s own'
            f"{close_to(name, names)}"
        )
    found = import_location(location, f"scorer {name!r}")
    if not callable(found):
        raise TypeError(f"scorer {name!r}: {location} must be callable, got {type(found).__name__} {shown(found)}")
    return found


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
    found = _load(_CORPUS, name)
    check_arguments(name, found, kwargs, complete=False)
    return float(found(completions, references, **kwargs))


def _load(locations: Mapping[str, str], name: str) -> Callable[..., Any]:
    """Imports the module that holds `name` and returns its class or function."""
    if not isinstance(name, str) or name not in locations:
        names = sorted(locations)
        raise ValueError(f"scorer: unknown name {shown(name)}; known names: {', '.join(names)}{close_to(name, names)}")
    module, attribute = locations[name].split(":")
    try:
        return getattr(importlib.import_module(f"{__package__}.{module}"), attribute)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"scorer {name!r} needs {error.name}, which is not installed: pip install 'textgen_env[scorers]'",
            name=error.name,
        ) from error
