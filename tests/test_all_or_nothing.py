"""A step pays finite numbers or moves no slot: probabilities of 0, overflow, scorers and policies that fail midway."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from textgen_env import LanguageModel, TextGenEnv, TextGenVectorEnv
from textgen_env.scorers import ScorerError

EOS, VOCAB, ACTION = 2, 259, 80
ESTIMATORS = ["k1", "k2", "k3", "full"]


def zero(completions, **_: Any) -> list[float]:
    return [0.0] * len(completions)


class Both:
    """A single environment and a vector environment of two slots, stepped with the same action in the last slot."""

    def __init__(self, kind: type, **arguments: Any) -> None:
        self.env = kind(2, **arguments) if kind is TextGenVectorEnv else kind(**arguments)
        self.several = kind is TextGenVectorEnv
        self.env.reset(seed=0)

    @property
    def slot(self) -> int:
        return 1 if self.several else 0

    def step(self, action: int) -> tuple[Any, ...]:
        return self.env.step(np.array([ACTION, action]) if self.several else action)

    def reward(self, action: int) -> float:
        return float(np.atleast_1d(self.step(action)[1])[self.slot])

    def logits(self, row: list[float] | torch.Tensor) -> Any:
        """A policy that answers uniform logits in every slot but the last."""
        row = torch.as_tensor(row)
        return (lambda observation: torch.stack([torch.zeros(VOCAB), row])) if self.several else lambda _: row

    def refuses(self, action: int, message: str, error: type[Exception] = ValueError) -> None:
        """The step fails with this message, again and again, and leaves everything where it was."""
        before = json.dumps(self.env.state_dict())
        for _ in range(2):
            with pytest.raises(error, match=message):
                self.step(action)
            assert json.dumps(self.env.state_dict()) == before


@pytest.fixture
def arguments(byte_model: str) -> dict[str, Any]:
    return {"model": byte_model, "prompts": ["p"], "scorer": zero, "max_new_tokens": 4, "kl_coef": 0.25}


@pytest.fixture(params=[TextGenEnv, TextGenVectorEnv])
def make(request: pytest.FixtureRequest, arguments: dict[str, Any]) -> Any:
    return lambda **more: Both(request.param, **arguments | more)


def but(value: float, *tokens: int) -> torch.Tensor:
    """Zeros, with a value at these tokens."""
    logits = torch.zeros(VOCAB)
    logits[list(tokens)] = value
    return logits


@pytest.fixture
def with_head(byte_model: str, tmp_path: Path) -> Any:
    """A copy of the model whose head's row of `ACTION` is multiplied, so that its logit can be anything."""

    def copied(factor: float, dtype: torch.dtype = torch.float32) -> str:
        folder = tmp_path / f"{factor}"
        shutil.copytree(byte_model, folder, dirs_exist_ok=True)
        weights = load_file(folder / "model.safetensors")
        weights["lm_head.weight"][ACTION] *= factor
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return str(folder)

    return copied


# --- KL ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_policy_that_gives_the_action_no_probability(make: Any, estimator: str) -> None:
    both = make(kl_estimator=estimator)
    both.env.bind_policy(both.logits(but(-math.inf, 90)))
    both.refuses(90, rf"slot {both.slot}, action 90: log π\(a\|s\) of the bound policy is -inf.*action_masks")
    assert math.isfinite(both.reward(91))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("value", [-math.inf, math.inf])
def test_policy_without_a_distribution(make: Any, estimator: str, value: float) -> None:
    both = make(kl_estimator=estimator)
    both.env.bind_policy(both.logits(torch.full((VOCAB,), value)))
    both.refuses(90, rf"slot {both.slot}, action 90: log π\(a\|s\) of the bound policy is nan")


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_one_infinite_logit(make: Any, estimator: str) -> None:
    both = make(kl_estimator=estimator)
    both.env.bind_policy(both.logits(but(math.inf, 7)))
    both.refuses(90, r"log π\(a\|s\) of the bound policy is -inf")
    both.refuses(7, r"log π\(a\|s\) of the bound policy is nan")


def test_policy_with_masked_tokens_pays_the_sum_over_the_others(make: Any) -> None:
    both = make(kl_estimator="full")
    both.env.bind_policy(both.logits(but(-math.inf, *range(2, VOCAB))))  # tokens 0 and 1, with a half each
    model = both.env.reference
    ids = torch.from_numpy(both.env.engine.episodes.input_ids[both.slot, :2])[None]
    with torch.no_grad():
        q = model.model(ids).logits[0, -1, :VOCAB].double().log_softmax(-1)
    expected = sum(0.5 * (math.log(0.5) - q[token].item()) for token in (0, 1))
    assert both.reward(1) == pytest.approx(-0.25 * expected, abs=1e-5)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("way", ["bound", "bound model", "unbound", "delegated"])
def test_reference_with_nan_weights(make: Any, byte_model: str, estimator: str, way: str) -> None:
    both = make(kl_estimator=estimator, reference=without_numbers(byte_model))
    bind(both, way)
    if way == "unbound" and estimator != "k1":
        return
    both.refuses(90, rf"slot {0}, action \d+: log π_ref\(a\|s\) of the reference '.*' is nan.*weights")


@pytest.mark.parametrize("way", ["bound", "unbound", "delegated"])
def test_reference_that_never_had_numbers(make: Any, byte_model: str, way: str) -> None:
    both = make(reference=without_numbers(byte_model, used=False))
    bind(both, way)
    both.refuses(90, "logits that are not finite for ordinary tokens; are its weights damaged")


def without_numbers(source: str, *, used: bool = True) -> LanguageModel:
    """A model whose weights became NaN after it was loaded (files with NaN are not), or after it was first used."""
    model = LanguageModel(source)
    if used:
        model.prefix_cache(1).next_logits([[5]], [1])
    with torch.no_grad():
        model.model.get_output_embeddings().weight.fill_(math.nan)
    return model


def bind(both: Both, way: str) -> None:
    if way == "bound":
        both.env.bind_policy(both.logits(torch.zeros(VOCAB)))
    elif way == "bound model":
        both.env.bind_policy(both.env.language_model)
    elif way == "delegated":
        both.env.delegate_kl()


def finite_or_refused(both: Both, action: int, message: str) -> None:
    try:
        _, rewards, *_, info = both.step(action)
    except ValueError:
        both.refuses(action, message)
    else:
        assert np.isfinite(rewards).all()
        assert np.isfinite(info["ref_logprob"]).all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("way", ["bound", "unbound", "delegated"])
def test_reference_that_overflows(make: Any, with_head: Any, way: str, dtype: str) -> None:
    """A logit of ±inf: probability 0 for all other tokens, or for this one."""
    both = make(reference=with_head(1e37 if dtype != "float16" else 6e4), dtype=dtype)
    bind(both, way)
    finite_or_refused(both, ACTION, r"log π_ref\(a\|s\)|logits that are not finite")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_half_precision_pays_what_single_precision_pays(make: Any, dtype: str, estimator: str) -> None:
    rewards = []
    for kind in ("float32", dtype):
        both = make(kl_estimator=estimator, dtype=kind)
        both.env.bind_policy(both.logits(but(1.0, 90)))
        rewards.append(both.reward(90))
    assert rewards[0] == pytest.approx(rewards[1], abs=0.03)


@pytest.mark.parametrize("way", ["bound", "bound model", "unbound", "delegated"])
@pytest.mark.parametrize("temperature", [1.2e-38, 1e-30, 1e-3, 1e3, 1e38])
def test_extreme_temperatures(make: Any, way: str, temperature: float) -> None:
    both = make(temperature=temperature)
    bind(both, way)
    finite_or_refused(both, 90, "not a finite number; .*temperature")


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_coefficient_that_overflows(make: Any, estimator: str) -> None:
    both = make(kl_coef=1e308, kl_estimator=estimator)
    both.env.bind_policy(both.logits(but(50.0, 91)))
    both.refuses(
        90 if estimator != "full" else 91, "the KL part of the reward with kl_coef=1e.308 is -?inf.*lower kl_coef"
    )
    both.env.kl_coef = 0.1
    assert math.isfinite(both.reward(90))


def test_unbound_coefficient_that_overflows(make: Any) -> None:
    make(kl_coef=1e308).refuses(90, "the KL part of the reward with kl_coef=1e.308 is -inf")


def test_estimator_that_overflows(make: Any) -> None:
    """k3 = exp(800 nats) is no number; k1 and k2 of the same action are."""
    rewards = {}
    for estimator in ("k1", "k2", "k3"):
        both = make(kl_estimator=estimator, kl_coef=1.0)
        both.env.bind_policy(both.logits(but(-800.0, 90)))
        if estimator == "k3":
            both.refuses(90, "the KL by kl_estimator='k3' is inf")
        else:
            rewards[estimator] = both.reward(90)
    assert rewards["k1"] > 700
    assert rewards["k2"] == pytest.approx(-(rewards["k1"] ** 2) / 2)


def test_reference_without_numbers_has_no_nucleus(make: Any, byte_model: str) -> None:
    both = make(reference=without_numbers(byte_model), reference_top_p=0.9, kl_coef=0.0)
    both.refuses(90, "slot 0: the reference .* has logits that are not finite")


# --- scores -----------------------------------------------------------------------------------------------------------


class Parts:
    """A scorer that pays given parts at its n-th call."""

    part_names = ("a", "b")
    dense = False

    def __init__(self, *calls: tuple[float, float], dense: bool = False) -> None:
        self.calls, self.dense = list(calls), dense

    def parts(self, completions, **_: Any) -> dict[str, list[float]]:
        values = self.calls[0] if len(self.calls) == 1 else self.calls.pop(0)
        return {name: [value] * len(completions) for name, value in zip("ab", values, strict=True)}

    def __call__(self, completions, **_: Any) -> list[float]:
        return [0.0] * len(completions)


def test_parts_that_add_up_to_infinity(make: Any) -> None:
    both = make(scorer=Parts((1e308, 1e308)), kl_coef=0.0)
    both.refuses(EOS, rf"scorer 'Parts': slot {both.slot} would be paid inf, the sum of .*'a': 1e.308", ScorerError)


def test_potentials_that_grow_too_far(make: Any) -> None:
    both = make(scorer=Parts((-1e308, 0.0), (1e308, 0.0), dense=True), kl_coef=0.0)
    assert both.reward(90) == -1e308
    both.refuses(90, "would be paid inf", ScorerError)


def test_growth_that_is_finite_of_a_score_that_is_not(make: Any) -> None:
    both = make(scorer=Parts((1e308, 0.0), (1e308, 1e308), dense=True), kl_coef=0.0)
    assert both.reward(90) == 1e308
    assert both.reward(90) == 1e308
    both.refuses(EOS, "has the score inf", ScorerError)


def test_huge_scores_that_are_finite_are_paid(make: Any) -> None:
    assert make(scorer=Parts((1.5e308, -1e308)), kl_coef=0.0).reward(EOS) == 1.5e308 - 1e308


# --- failures midway --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), SystemExit(1), MemoryError()])
@pytest.mark.parametrize("dense", [False, True])
def test_scorer_that_is_interrupted(make: Any, error: BaseException, dense: bool) -> None:
    failing = [True]

    def scorer(completions, **_: Any) -> list[float]:
        if failing[0]:
            raise error
        return [1.5] * len(completions)

    scorer.dense = dense  # type: ignore[attr-defined]
    both = make(scorer=scorer, kl_coef=0.0)
    before = json.dumps(both.env.state_dict())
    with pytest.raises((ScorerError, type(error))):
        both.step(EOS)
    assert json.dumps(both.env.state_dict()) == before
    failing[0] = False
    assert both.reward(EOS) == 1.5


@pytest.mark.parametrize("result", [[], [1.0] * 5, None, 1.0, "good", [math.nan] * 2, [None], [[1.0], [2.0]]])
def test_scorer_that_returns_no_scores(make: Any, result: Any) -> None:
    both = make(scorer=lambda completions, **_: result, kl_coef=0.0)
    both.refuses(EOS, "scorer", ScorerError)


def test_counters_that_fail_at_the_end(make: Any) -> None:
    class Counting:
        broken = True

        def __call__(self, completions, **_: Any) -> list[float]:
            return [1.0] * len(completions)

        def info(self) -> dict[str, Any]:
            return {"calls": "many"} if self.broken else {"calls": 2}

    both = make(scorer=Counting(), kl_coef=0.0)
    both.refuses(EOS, r"Counting.*info\(\).*'calls': 'many'", ScorerError)
    both.env.scorer.broken = False
    assert both.reward(EOS) == 1.0


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_policy_that_is_interrupted(make: Any, error: BaseException) -> None:
    def policy(observation: Any) -> Any:
        raise error

    both = make()
    both.env.bind_policy(policy)
    both.refuses(90, "no|^$", type(error))
    both.env.bind_policy(both.env.language_model)
    assert both.reward(90) == pytest.approx(0.0, abs=1e-6)


def test_failure_after_good_steps_goes_on_as_if_it_had_not_been(make: Any) -> None:
    """What is paid after a failure is what an environment without one pays."""
    rewards = []
    for failures in (0, 2):
        both = make(reference=None)
        both.env.bind_policy(LanguageModel(both.env.language_model.source))
        paid = []
        for action in (90, 91, 92):
            for _ in range(failures):
                with pytest.raises(ValueError):
                    both.step(VOCAB)
                policy = both.env.engine.kl.policy
                both.env.bind_policy(lambda _: None)
                with pytest.raises(TypeError):
                    both.step(action)
                both.env.engine.kl.policy = policy
            paid.append(both.reward(action))
        rewards.append(paid)
    assert rewards[0] == rewards[1]
