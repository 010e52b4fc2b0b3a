"""Scorers made of scorers: weighted sums, gain and bias, clipping, normalising.

What they are made of may be a name, a JSON mapping or a callable, and so may they themselves: `{"name": "clip",
"scorer": "bleu", "high": 0.5}`. Named parts stay visible through all of them and add up to the score. Penalties for how
a text ended are in `penalties.py`, dense rewards in `dense.py`, caching and patience with slow scorers in `service.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from textgen_env.notices import shown

from .answers import Scores, add_applying, add_parts, applying, scorer_name, times
from .base import BoundScorer, score_parts, select_rows
from .registry import as_scorer, get_scorer
from .shared_state import Lock
from .wrapper import Parts, Spec, Wrapper


class Sum:
    """A weighted sum of scorers whose members stay visible as parts.

    `Sum({"style": "sentiment", "brevity": (0.2, {"name": "length", "maximum": 20})})`, or a list instead of a mapping.
    A part is named by its key, in a list by its scorer; a member with several parts has them as "key.part". With a
    dense member the sum is dense: its other members then count 0 until a text is finished. Members that do not apply to
    a text (`None`) are left out of its sum.

    Args:
        scorers: members, each a scorer or a pair [weight, scorer]; the weight is 1 by default. JSON will do.

    Raises:
        ValueError: no members, a weight that is not finite, or two parts of the same name.
    """

    name = "sum"

    def __init__(self, scorers: Mapping[str, Any] | Sequence[Any]) -> None:
        if not isinstance(scorers, (Mapping, Sequence)) or isinstance(scorers, str):
            raise TypeError(f"sum: scorers must be a mapping or a list, got {type(scorers).__name__} {scorers!r}")
        named = scorers.items() if isinstance(scorers, Mapping) else [(None, item) for item in scorers]
        for key in scorers if isinstance(scorers, Mapping) else ():
            if not isinstance(key, str) or not key:
                raise TypeError(f"sum: names of members must be texts that are not empty, got {key!r}")
        built = [(key, *_member(index if key is None else key, item)) for index, (key, item) in enumerate(named)]
        self.members = [(key or scorer_name(scorer), weight, scorer) for key, weight, scorer in built]
        names = self.part_names
        if not names or len(set(names)) < len(names):
            raise ValueError(
                f"sum: parts need different names, at least one; got {list(names)}; name them by a mapping"
            )

    @property
    def part_names(self) -> tuple[str, ...]:
        """All members' parts."""
        return tuple(self._part(key, part, scorer) for key, _, scorer in self.members for part in scorer.part_names)

    @property
    def dense(self) -> bool:
        """Whether any member is."""
        return any(scorer.dense for _, _, scorer in self.members)

    @property
    def needs_policy(self) -> bool:
        """Whether any member does."""
        return any(scorer.needs_policy for _, _, scorer in self.members)

    def parts(self, completions: Sequence[str], **columns: Any) -> Parts:
        """One list of n floats a part, weights included."""
        result: Parts = {}
        for key, weight, scorer in self.members:
            for part, values in self._ask(scorer, completions, columns).items():
                result[self._part(key, part, scorer)] = times(weight, values)
        return result

    def __call__(self, completions: Sequence[str], **columns: Any) -> Scores:
        return add_applying(self.parts(completions, **columns), len(completions))

    def info(self) -> dict[str, float]:
        """All members' counters, as "key.counter"."""
        infos = [(key, scorer.info()) for key, _, scorer in self.members]
        return {f"{key}.{counter}": value for key, info in infos for counter, value in info.items()}

    def load_models(self) -> None:
        """Load the members' models."""
        for _, _, scorer in self.members:
            scorer.load_models()

    def fit_references(self, references: Sequence[Sequence[str]]) -> None:
        """Fits the members that fit themselves to a task's references."""
        for _, _, scorer in self.members:
            scorer.fit_references(references)

    def state_dict(self) -> dict[str, Any]:
        """What members have learned while scoring, by key."""
        return {key: scorer.state_dict() for key, _, scorer in self.members}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        _check_keys("sum", state, [])
        for key, _, scorer in self.members:
            scorer.load_state_dict(state.get(key, {}))  # a state of earlier releases has only members that learn

    def _ask(self, scorer: BoundScorer, completions: Sequence[str], columns: Mapping[str, Any]) -> Parts:
        """A member's parts; of a terminal member in a dense sum, for finished texts alone."""
        n = len(completions)
        reasons = columns.get("finish_reasons")
        if not self.dense or scorer.dense or reasons is None:
            return scorer.parts(completions, **columns)
        rows = [row for row in range(n) if reasons[row] is not None]
        result: Parts = {part: [0.0] * n for part in scorer.part_names}
        if rows:
            chosen = scorer.parts([completions[row] for row in rows], **select_rows(columns, rows, n))
            for part, values in chosen.items():
                for row, value in zip(rows, values, strict=True):
                    result[part][row] = value
        return result

    @staticmethod
    def _part(key: str, part: str, scorer: BoundScorer) -> str:
        return key if len(scorer.part_names) == 1 else f"{key}.{part}"


class Affine(Wrapper):
    """gain · score + bias; each part is scaled, and a bias that is not 0 is a part of its own.

    Args:
        scorer: what is scaled.
        gain, bias: finite numbers.
    """

    def __init__(self, scorer: Spec, gain: float = 1.0, bias: float = 0.0) -> None:
        super().__init__(scorer)
        if not (math.isfinite(gain) and math.isfinite(bias)):
            raise ValueError(f"affine: gain and bias must be finite, got {gain} and {bias}")
        self.gain, self.bias = gain, bias

    @classmethod
    def fitted(
        cls, scorer: Spec, completions: Sequence[str], *, mean: float = 0.0, std: float = 1.0, **columns: Any
    ) -> Affine:
        """Gain and bias that give these completions this mean and (population) standard deviation.

        With samples of the reference model this is the normalisation of Ziegler et al. (2019, section 2.1), after
        which rewards of different models are on one scale.

        Args:
            scorer: what is scaled.
            completions: samples of the reference model, at least two that score differently.
            mean, std: what they are to have.
            **columns: `prompts`, `references` and whatever else the scorer reads.

        Raises:
            ValueError: all samples score the same.
        """
        inner = get_scorer(scorer)
        scores = add_parts(score_parts(inner, completions, **columns), len(completions))
        centre = math.fsum(scores) / max(len(scores), 1)
        spread = math.sqrt(math.fsum((score - centre) ** 2 for score in scores) / max(len(scores), 1))
        if spread == 0.0:
            raise ValueError(f"affine: the {len(scores)} samples must not all score the same to be normalised")
        return cls(inner, gain=std / spread, bias=mean - centre * std / spread)

    @property
    def part_names(self) -> tuple[str, ...]:
        """The inner parts, and "bias"."""
        return (*super().part_names, *(["bias"] if self.bias else []))

    def parts(self, completions: Sequence[str], **columns: Any) -> Parts:
        """Scaled parts."""
        inner = super().parts(completions, **columns)
        scaled = {part: times(self.gain, values) for part, values in inner.items()}
        if not self.bias:
            return scaled
        return {**scaled, "bias": [self.bias if some else None for some in applying(inner, len(completions))]}


class Clip(Wrapper):
    """The score held between two bounds.

    Of a scorer with several parts, what was cut off or filled up is the part "clip".

    Args:
        scorer: what is clipped.
        low, high: bounds; either may be left out.

    Raises:
        ValueError: low > high.
    """

    def __init__(self, scorer: Spec, low: float = -math.inf, high: float = math.inf) -> None:
        super().__init__(scorer)
        if not low <= high:
            raise ValueError(f"clip: low must not exceed high, got {low} and {high}")
        self.low, self.high = low, high

    @property
    def part_names(self) -> tuple[str, ...]:
        """The inner parts, and "clip" where there are several."""
        names = super().part_names
        return names if len(names) == 1 else (*names, "clip")

    def parts(self, completions: Sequence[str], **columns: Any) -> Parts:
        """Parts whose sum keeps to the bounds (to rounding, where there are several)."""
        inner = super().parts(completions, **columns)
        totals = add_applying(inner, len(completions))
        if len(inner) == 1:
            return {part: [None if total is None else self._held(total) for total in totals] for part in inner}
        return {**inner, "clip": [None if total is None else self._held(total) - total for total in totals]}

    def _held(self, total: float) -> float:
        return min(max(total, self.low), self.high)


class Normalize(Wrapper):
    """Scores divided by their running standard deviation and, if centred, less their running mean.

    Statistics are those of all finished texts scored so far, this batch included (Welford's method); each part is
    divided, and minus the mean is the part "mean". Until two different scores have been seen, the deviation counts as
    1. For a scale that does not move during training use `Affine.fitted`. Thread-safe.

    Args:
        scorer: what is normalised.
        center: whether the mean is subtracted.
        epsilon: the least standard deviation.
    """

    def __init__(self, scorer: Spec, center: bool = True, epsilon: float = 1e-6) -> None:
        super().__init__(scorer)
        if not 0 < epsilon < math.inf:
            raise ValueError(f"normalize: epsilon must be positive and finite, got {epsilon}")
        self.center, self.epsilon = center, epsilon
        self._count, self._mean, self._squares = 0, 0.0, 0.0
        self._lock = Lock()

    @property
    def part_names(self) -> tuple[str, ...]:
        """The inner parts, and "mean"."""
        return (*super().part_names, *(["mean"] if self.center else []))

    def parts(self, completions: Sequence[str], **columns: Any) -> Parts:
        """Normalised parts; takes the finished texts' scores into the statistics."""
        inner = super().parts(completions, **columns)
        totals = add_applying(inner, len(completions))
        reasons = columns.get("finish_reasons") or ["eos"] * len(totals)
        with self._lock:
            for total, reason in zip(totals, reasons, strict=True):
                if reason is not None and total is not None:
                    self._add(total)
            mean, std = self._mean, self._std()
        scaled: Parts = {
            part: [None if value is None else value / std for value in values] for part, values in inner.items()
        }
        if not self.center:
            return scaled
        return {**scaled, "mean": [None if total is None else -mean / std for total in totals]}

    def state_dict(self) -> dict[str, Any]:
        """The statistics, and the inner scorer's state."""
        with self._lock:
            own = {"count": self._count, "mean": self._mean, "squares": self._squares}
        return {**own, "scorer": super().state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        _check_keys("normalize", state, ["count", "mean", "squares", "scorer"])
        statistics = [state[key] for key in ("count", "mean", "squares")]
        numbers = all(isinstance(value, Real) and math.isfinite(value) for value in statistics)
        if not numbers or statistics[0] < 0 or statistics[2] < 0:
            raise ValueError(f"normalize: count and squares must be numbers ≥ 0, and mean one; got {dict(state)}")
        with self._lock:
            self._count, self._mean, self._squares = statistics
        super().load_state_dict(state["scorer"])

    def _add(self, score: float) -> None:
        self._count += 1
        step = score - self._mean
        self._mean += step / self._count
        self._squares += step * (score - self._mean)

    def _std(self) -> float:
        """The population's standard deviation; 1 while nothing is known of it."""
        return max(math.sqrt(self._squares / self._count), self.epsilon) if self._squares > 0 else 1.0


def _check_keys(scorer: str, state: Any, keys: Sequence[str]) -> None:
    """See that a state has what a scorer's `state_dict` gives."""
    if not isinstance(state, Mapping) or not set(keys) <= set(state):
        raise ValueError(
            f"{scorer}: a state must be a mapping with {', '.join(keys) or 'any keys'}, got {shown(state)}"
        )


def _member(key: str | int, item: Any) -> tuple[float, BoundScorer]:
    """Weight and scorer of a member; what is wrong with it says which one it is."""
    weight, spec = _weight_and_spec(item)
    try:
        return weight, as_scorer(spec)
    except (TypeError, ValueError) as error:
        raise type(error)(f"sum, member {key!r}: {error}") from error


def _weight_and_spec(item: Any) -> tuple[float, Any]:
    """A member of a sum: a scorer, or a pair of weight and scorer."""
    if not isinstance(item, (list, tuple)):
        return 1.0, item
    if len(item) != 2 or isinstance(item[0], bool) or not isinstance(item[0], Real):
        raise ValueError(f"sum: a member must be a scorer or [weight, scorer], got {item!r}")
    if not math.isfinite(item[0]):
        raise ValueError(f"sum: weights must be finite, got {item[0]}")
    return float(item[0]), item[1]
