"""What a scorer is, how one is called, and how its mistakes are reported. No metric lives here.

A scorer is any callable `scorer(completions, *, prompts, references, **extra) -> Sequence[float | None]`. A plain
function will do; so will a reward function in the form of other trainers, `f(prompts, completions, **kwargs)`, and an
`async def` of either form. Everything that calls a scorer does so through `call_scorer` or `score_parts`, which check
what comes back.

`None` for a text says that the scorer does not apply to it. It adds nothing where other parts of a sum apply, and is
shown as 0 there; where nothing applies it is an error, as NaN always is.

Optional attributes of a scorer; `BoundScorer`, which has all of them, is the one place that asks whether they exist:

* `name: str` — used in errors and as the name of its reward part;
* `parts(completions, **same) -> Mapping[str, Sequence[float | None]]` with `part_names` — parts whose sum is the score;
* `dense: bool` — it wants to be asked after every token and returns potentials (see `dense.Dense`);
* `needs_policy: bool` — it is called with `policy`, a `PolicyView`: what the policy says of texts that could follow;
* `info() -> Mapping[str, float]` — counters, such as failed calls;
* `load_models()` — called once when an environment is made, so that a bad model does not show at an episode's end;
* `fit_references(references)` — called once with all references of a task, before the first score;
* `state_dict()`, `load_state_dict(state)` — what it learns while scoring, as JSON values, for checkpoints.
"""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

from textgen_env.notices import shown

from .answers import ScorerError, Scores, add_applying, applied, checked, scorer_name, where
from .answers import add_parts as add_parts
from .columns import select_rows
from .columns import usable_references as usable_references
from .coroutines import wait_for

_ACCEPTS: WeakKeyDictionary[Any, tuple[bool, frozenset[str] | None]] = WeakKeyDictionary()


@runtime_checkable
class Scorer(Protocol):
    """The one callable form: n texts in one batch to n numbers."""

    def __call__(
        self,
        completions: Sequence[str],
        *,
        prompts: Sequence[str],
        references: Sequence[Sequence[str]],
        **extra: Any,
    ) -> Sequence[float | None]: ...


def call_scorer(
    scorer: Callable[..., Any],
    completions: Sequence[str],
    *,
    prompts: Sequence[str],
    references: Sequence[Sequence[str]] | None = None,
    **extra: Any,
) -> list[float]:
    """Calls a scorer on a batch of n texts and checks what it returns.

    `completions` is handed over by keyword where the callable has a parameter of that name and positionally otherwise;
    keyword arguments that a callable without `**kwargs` does not know are left out.

    Args:
        scorer: any callable in one of the forms that the module's docstring names.
        completions: n texts.
        prompts: n texts, the prompt of each completion.
        references: n lists of texts; `None` stands for n empty lists.
        **extra: further columns of length n, such as `completion_ids` and `finish_reasons`.

    Returns:
        n finite floats.

    Raises:
        ScorerError: a completion is no text, the scorer raised, or it did not return one finite number per text.
    """
    scores = raw_scores(scorer, completions, prompts=prompts, references=references, **extra)
    return applied(scorer, {"": scores}, completions, prompts)[""]


def raw_scores(
    scorer: Callable[..., Any],
    completions: Sequence[str],
    *,
    prompts: Sequence[str],
    references: Sequence[Sequence[str]] | None = None,
    **extra: Any,
) -> Scores:
    """Like `call_scorer`, with `None` for texts to which the scorer does not apply: for what is a part of something."""
    references = [[] for _ in completions] if references is None else references
    columns = {"prompts": prompts, "references": references, **extra}
    _check_inputs(scorer, completions, columns)
    return checked(scorer, _call(scorer, scorer, completions, columns), completions, prompts)


def call_unchecked(scorer: Callable[..., Any], completions: Sequence[str], **columns: Any) -> Any:
    """Like `call_scorer`, but returns whatever comes back, for callables that return other things than scores."""
    return _call(scorer, scorer, completions, columns)


def score_parts(
    scorer: Callable[..., Any],
    completions: Sequence[str],
    *,
    prompts: Sequence[str],
    references: Sequence[Sequence[str]] | None = None,
    default_name: str | None = None,
    **extra: Any,
) -> dict[str, list[float]]:
    """Like `call_scorer`, by named parts: those of `scorer.parts`, else one part.

    Args:
        default_name: the part's name where the scorer has no parts (default: the scorer's name).

    Returns:
        One list of n finite floats a part, 0 where it does not apply; the score is their sum, added up in the order of
        the mapping.
    """
    columns = {"prompts": prompts, "references": references, "default_name": default_name, **extra}
    return applied(scorer, raw_parts(scorer, completions, **columns), completions, prompts)


def raw_parts(
    scorer: Callable[..., Any],
    completions: Sequence[str],
    *,
    prompts: Sequence[str],
    references: Sequence[Sequence[str]] | None = None,
    default_name: str | None = None,
    **extra: Any,
) -> dict[str, Scores]:
    """Like `score_parts`, with `None` where a part does not apply: for scorers around others."""
    columns = {"prompts": prompts, "references": references, **extra}
    return bound(scorer, default_name).parts(completions, **columns)


def part_names(scorer: Callable[..., Any]) -> tuple[str, ...]:
    """The names of the parts that `score_parts` gives for a scorer."""
    return bound(scorer).part_names


def bound(scorer: Callable[..., Any], part_name: str | None = None) -> BoundScorer:
    """A scorer with everything that scorers may have; see `BoundScorer`, which is returned as it is."""
    return scorer if isinstance(scorer, BoundScorer) else BoundScorer(scorer, part_name)


class BoundScorer:
    """A scorer with everything that scorers may have: what the one inside lacks does nothing, or is empty.

    Args:
        scorer: any callable in one of the forms that the module's docstring names.
        part_name: the part's name where the scorer has no parts; None: the scorer's name.

    Attributes:
        scorer: the one inside.
    """

    def __init__(self, scorer: Callable[..., Any], part_name: str | None = None) -> None:
        self.scorer: Any = scorer
        self._part_name = part_name

    @property
    def name(self) -> str:
        """Of the scorer, for errors and reward parts."""
        return scorer_name(self.scorer)

    @property
    def part_names(self) -> tuple[str, ...]:
        """Of the parts whose sum is the score; at least one."""
        return tuple(getattr(self.scorer, "part_names", None) or (self._part_name or self.name,))

    @property
    def dense(self) -> bool:
        """Whether the scorer is to be asked at every step."""
        return bool(getattr(self.scorer, "dense", False))

    @property
    def needs_policy(self) -> bool:
        """Whether the scorer is to be handed a view of the policy."""
        return bool(getattr(self.scorer, "needs_policy", False))

    def parts(
        self,
        completions: Sequence[str],
        *,
        prompts: Sequence[str],
        references: Sequence[Sequence[str]] | None = None,
        **extra: Any,
    ) -> dict[str, Scores]:
        """One list of n numbers per part, checked; `None` where a part does not apply.

        Raises:
            ScorerError: as `call_scorer` says.
        """
        references = [[] for _ in completions] if references is None else references
        columns = {"prompts": prompts, "references": references, **extra}
        if not hasattr(self.scorer, "parts"):
            return {self._part_name or self.name: raw_scores(self.scorer, completions, **columns)}
        _check_inputs(self.scorer, completions, columns)
        parts = _call(self.scorer, self.scorer.parts, completions, columns)
        if not isinstance(parts, Mapping):
            raise ScorerError(f"scorer {self.name!r}: parts() must return a mapping, got {type(parts).__name__}")
        return {part: checked(self.scorer, values, completions, prompts, part) for part, values in parts.items()}

    def __call__(self, completions: Sequence[str], **columns: Any) -> Scores:
        """The sum of the parts."""
        return add_applying(self.parts(completions, **columns), len(completions))

    def info(self) -> dict[str, float]:
        """What the scorer counts; empty for most.

        Raises:
            ScorerError: its counters are no numbers.
        """
        counters = self.scorer.info() if hasattr(self.scorer, "info") else {}
        try:
            return {str(key): float(value) for key, value in counters.items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise ScorerError(
                f"scorer {self.name!r}: info() must map names to numbers, got {shown(counters)}"
            ) from error

    def load_models(self) -> None:
        """Load the scorer's models, if it has any."""
        if hasattr(self.scorer, "load_models"):
            self.scorer.load_models()

    def fit_references(self, references: Sequence[Sequence[str]]) -> None:
        """Fit the scorer, if it fits itself to a task's references."""
        if hasattr(self.scorer, "fit_references"):
            self.scorer.fit_references(references)

    def state_dict(self) -> dict[str, Any]:
        """What the scorer has learned while scoring; empty for most."""
        return dict(self.scorer.state_dict()) if hasattr(self.scorer, "state_dict") else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        if hasattr(self.scorer, "load_state_dict"):
            self.scorer.load_state_dict(state)


def _check_inputs(scorer: Callable[..., Any], completions: Sequence[str], columns: Mapping[str, Any]) -> None:
    """Every completion is a text; prompts and references, and a policy that is needed, have one entry for each."""
    for row, text in enumerate(completions):
        if not isinstance(text, str):
            raise ScorerError(
                f"scorer {scorer_name(scorer)!r}: completions[{row}] must be a text, got {type(text).__name__} {text!r}"
            )
    for column in ("prompts", "references"):
        if len(columns[column]) != len(completions):
            raise ScorerError(
                f"scorer {scorer_name(scorer)!r}: {len(columns[column])} {column} for {len(completions)} completions"
            )
    if bound(scorer).needs_policy and len(columns.get("policy") or ()) != len(completions):
        raise ScorerError(
            f"scorer {scorer_name(scorer)!r} sees the policy: call it with policy=PolicyView(…) of these texts, as an "
            f"environment does; got {shown(columns.get('policy'))}"
        )


def _accepted(function: Callable[..., Any]) -> tuple[bool, frozenset[str] | None]:
    """Whether `completions` goes by keyword, and the keywords that are understood (`None`: all)."""
    key = getattr(function, "__func__", function)  # a bound method is a new object at every access
    try:
        return _ACCEPTS[key]
    except (KeyError, TypeError):  # TypeError: a callable that cannot be hashed or weakly referenced
        pass
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return False, None
    named = frozenset(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    accepted = "completions" in named, None if takes_any else named
    with contextlib.suppress(TypeError):
        _ACCEPTS[key] = accepted
    return accepted


def _call(
    scorer: Callable[..., Any], method: Callable[..., Any], completions: Sequence[str], columns: Mapping[str, Any]
) -> Any:
    """Calls `method` of `scorer`; an exception becomes a ScorerError that shows the texts."""
    by_keyword, names = _accepted(method)
    keywords = {key: value for key, value in columns.items() if names is None or key in names}
    start = time.monotonic()
    try:
        return _invoke(method, by_keyword, completions, keywords)
    except ScorerError:  # from a scorer inside this one; it has said all there is to say
        raise
    except Exception as error:
        # asking again text by text finds the one to blame; a slow scorer is not asked again
        search = len(completions) > 1 and time.monotonic() - start < 1.0
        row = _culprit(method, by_keyword, completions, keywords) if search else 0
        raise ScorerError(
            f"scorer {scorer_name(scorer)!r} raised {type(error).__name__}: {error}"
            + where(row, completions, columns["prompts"])
        ) from error


def _invoke(
    method: Callable[..., Any], by_keyword: bool, completions: Sequence[str], keywords: Mapping[str, Any]
) -> Any:
    """What the callable returns, waited for where it is asynchronous."""
    answer = method(completions=completions, **keywords) if by_keyword else method(completions, **keywords)
    return wait_for(answer) if inspect.isawaitable(answer) else answer


def _culprit(
    method: Callable[..., Any], by_keyword: bool, completions: Sequence[str], keywords: Mapping[str, Any]
) -> int:
    """The first row on which the scorer raises alone (row 0 if it is only the batch that it cannot take)."""
    for row, text in enumerate(completions):
        alone = select_rows(keywords, [row], len(completions))
        try:
            _invoke(method, by_keyword, [text], alone)
        except Exception:
            return row
    return 0
