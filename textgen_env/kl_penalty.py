"""What each action costs in KL: the one place where the environment asks the reference model, and the bound policy.

The three ways of paying it (see `KLPenalty`) share `textgen_env.kl`, so that they agree on the same tokens. The
arithmetic lives there; which prefixes and actions there are is the engine's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from textgen_env.episode import Episodes
from textgen_env.kl import check_estimator, estimate_kl, full_kl
from textgen_env.lm.sampling import SamplingParams, warp_logits
from textgen_env.notices import shown, warn_user
from textgen_env.vocabulary import same_vocabulary

if TYPE_CHECKING:
    from textgen_env.lm.language_model import LanguageModel
    from textgen_env.lm.prefix_cache import PrefixCache

Policy: TypeAlias = "Callable[[Episodes, NDArray[np.int64]], torch.Tensor]"

UNBOUND_WARNING = (
    "kl_coef={coef} but the policy is unknown to the environment, so the reward holds β·log π_ref(a|s) alone: the "
    "reference half of −β·KL. Either let the environment know the policy (env.unwrapped.bind_policy(fn), or a "
    "library's hook such as KLPenaltyCallback), or train with an entropy bonus equal to kl_coef: −KL = E[log π_ref] "
    "+ H(π). Without one of them the penalty pushes towards greedy text."
)


_OVERFLOW = "or its logits hold NaN or overflow (look at weights, dtype and temperature)"
REF_REMEDY = (
    f"it gives this action probability 0 {_OVERFLOW}: forbid such tokens (forbidden_tokens, reference_top_p), or take "
    "a reference that gives every token some probability"
)
POLICY_REMEDY = (
    f"it gives this action probability 0 {_OVERFLOW}: bind the policy that the action was drawn from, and draw within "
    "action_masks()"
)
KL_REMEDY = "the policy gives probability to a token to which the reference gives none, or the two are too far apart"


@dataclass(frozen=True, slots=True)
class Price:
    """What the actions of a step cost; float64 (n,) arrays in nats, 0 in slots that are not stepped; None if unknown.

    Attributes:
        ref_log_prob: log π_ref(a|s).
        kl: the estimate of KL(π‖π_ref) at each prefix, or at each action.
        reward: what the reward gains (−β·kl, or β·log π_ref).
    """

    ref_log_prob: NDArray[np.float64] | None = None
    kl: NDArray[np.float64] | None = None
    reward: NDArray[np.float64] | None = None


class KLPenalty:
    """The KL term of the reward, paid in one of three ways.

    1. Bound: `policy` is set, and the reward pays −β·KL exactly, by the chosen estimator.
    2. Unbound (the default): the reward pays β·log π_ref(a|s), the half of k1 that needs no policy; warns once.
    3. Delegated: the caller adds the KL itself (a library hook, a trainer that scores whole rollouts); the reward pays
       nothing, and log π_ref is reported if asked for.

    Args:
        reference: the model whose distribution is the anchor; its weights load with the first price asked for.
        slots: how many prefixes there are at most; one cache row each.
        coef: β ≥ 0; with 0, and nothing to report, the reference is never run.
        estimator: "k1", "k2", "k3" or "full".
        temperature: applied to policy and reference alike.
        top_p: the nucleus of the reference outside of which actions are masked; 1 masks none.
        top_k: how many of the reference's likeliest tokens are actions; 0 masks none.
    """

    def __init__(
        self,
        reference: LanguageModel,
        slots: int,
        *,
        coef: float,
        estimator: str,
        temperature: float,
        top_p: float,
        top_k: int = 0,
    ) -> None:
        self.reference = reference
        self.coef = float(coef)
        self.estimator = check_estimator(estimator)
        self.temperature, self.top_p, self.top_k = temperature, top_p, top_k
        self.policy: Policy | None = None
        self.delegated = False
        self.report = False
        self._slots = slots
        self._cache: PrefixCache | None = None
        self._warned = False

    def bind(self, policy: Any, *, batched: bool) -> None:
        """Take up a policy: a function from observations to logits, a `LanguageModel` or its cache; None unbinds.

        Raises:
            TypeError: none of these.
            ValueError: a model with another vocabulary, or a cache of fewer rows than there are slots.
        """
        if hasattr(policy, "prefix_cache"):
            same_vocabulary(self.reference, policy, "policy")
            policy = policy.prefix_cache(self._slots)
        if policy is None:
            self.policy = None
        elif hasattr(policy, "next_logits"):
            if policy.rows < self._slots:
                raise ValueError(f"policy={policy!r} has {policy.rows} rows; this environment needs {self._slots}")
            self.policy = partial(cached_logits, policy)
        elif callable(policy):
            self.policy = policy_from_function(policy, self.reference.vocab_size, batched=batched)
        else:
            raise TypeError(
                f"policy={shown(policy)} must be callable, a LanguageModel or None, not {type(policy).__name__}"
            )
        self.delegated = False

    @property
    def active(self) -> bool:
        """Whether a step has to ask the reference for its log-probabilities."""
        return self.report if self.delegated else self.coef > 0

    def delegate(self, *, report: bool) -> None:
        """Leave the KL to the caller: nothing is paid, and log π_ref is reported if wanted."""
        self.policy, self.delegated, self.report = None, True, report

    @contextmanager
    def delegating(self, *, report: bool) -> Iterator[None]:
        """`delegate` for as long as the context lasts; afterwards the KL is paid as it was before."""
        before = self.policy, self.delegated, self.report
        self.delegate(report=report)
        try:
            yield
        finally:
            self.policy, self.delegated, self.report = before

    def ref_logits(self, episodes: Episodes, slots: NDArray[np.int64]) -> torch.Tensor:
        """Raw next-token logits of the reference of the given slots, (m, V) float32; memoised by prefix."""
        return cached_logits(self.cache, episodes, slots)

    @property
    def cache(self) -> PrefixCache:
        """The reference's memory of prefixes, one row per slot; loads its weights."""
        if self._cache is None:
            self._cache = self.reference.prefix_cache(self._slots)
        return self._cache

    def release(self) -> None:
        """Drop the cache of the reference; it is built anew when needed."""
        self._cache = None

    def __getstate__(self) -> dict[str, Any]:
        """Pickles leave the cache behind: it only holds what can be computed again."""
        return self.__dict__ | {"_cache": None}

    @property
    def masks(self) -> bool:
        """Whether the reference masks actions."""
        return self.top_p < 1 or 0 < self.top_k < self.reference.vocab_size

    @contextmanager
    def limited(self, top_k: int) -> Iterator[None]:
        """Another `top_k` for as long as the context lasts."""
        before, self.top_k = self.top_k, top_k
        try:
            yield
        finally:
            self.top_k = before

    def likely(
        self, episodes: Episodes, slots: NDArray[np.int64], allowed: NDArray[np.bool_] | None
    ) -> NDArray[np.bool_]:
        """Which actions lie in the reference's top-p set and among its k likeliest, bool (m, V), of the allowed ones.

        Both are the head of one ranking, so that the smaller of them decides. Of tokens that tie with the k-th, as many
        are taken as make k.
        """
        return self.inside(self.ref_logits(episodes, slots), slots, allowed)

    def inside(
        self, ref_logits: torch.Tensor, slots: NDArray[np.int64], allowed: NDArray[np.bool_] | None
    ) -> NDArray[np.bool_]:
        """The same of raw logits of the reference (m, V), wherever in the slots they were read."""
        mask = None if allowed is None else torch.from_numpy(allowed)
        warped = warp_logits(ref_logits, SamplingParams(self.temperature, top_p=self.top_p), mask=mask)
        best = warped.max(dim=-1).values.cpu().numpy()  # NaN where any is
        if not np.isfinite(best).all():
            slot = slots[~np.isfinite(best)][0]
            raise ValueError(f"slot {slot}: the reference {self.reference.source!r} has logits that are not finite")
        inside = warped > -torch.inf
        if 0 < self.top_k < warped.shape[-1]:
            inside &= torch.zeros_like(inside).scatter(-1, warped.topk(self.top_k, dim=-1).indices, True)
        return inside.cpu().numpy()

    def price(
        self,
        episodes: Episodes,
        slots: NDArray[np.int64],
        actions: NDArray[np.int64],
        masks: NDArray[np.bool_] | None,
    ) -> Price:
        """Price the actions of m slots, before they are appended.

        Args:
            episodes: the states of n slots.
            slots: int64 (m,), which of them are stepped.
            actions: int64 (n,).
            masks: bool (m, V) of the allowed actions, or None; applied to policy and reference alike.

        Raises:
            ValueError: something of it is not a finite number: an action has probability 0, or numbers overflow.
        """
        if not self.active:
            return Price()
        with torch.no_grad(), np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused
            chosen, each = actions[slots], partial(_on_slots, slots, len(actions))
            ref = self._warp(self.ref_logits(episodes, slots), masks)
            ref_log_prob = _log_prob(ref, chosen)
            what = f"log π_ref(a|s) of the reference {self.reference.source!r}"
            _check(ref_log_prob, slots, chosen, what, REF_REMEDY)
            if self.delegated:
                return Price(each(ref_log_prob))
            if self.policy is None:
                self._warn_unbound()
            kl = None if self.policy is None else self._kl(episodes, slots, chosen, masks, ref, ref_log_prob)
            reward = self.coef * ref_log_prob if kl is None else -self.coef * kl
        _check(reward, slots, chosen, f"the KL part of the reward with kl_coef={self.coef}", "lower kl_coef")
        return Price(each(ref_log_prob), None if kl is None else each(kl), each(reward))

    def _kl(
        self,
        episodes: Episodes,
        slots: NDArray[np.int64],
        actions: NDArray[np.int64],
        masks: NDArray[np.bool_] | None,
        ref: torch.Tensor,
        ref_log_prob: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """The bound policy's KL at each of the m prefixes, (m,), by the chosen estimator."""
        assert self.policy is not None
        logits = self._warp(self.policy(episodes, slots).to(ref.device), masks)
        log_prob = _log_prob(logits, actions)
        _check(log_prob, slots, actions, "log π(a|s) of the bound policy", POLICY_REMEDY)
        if self.estimator == "full":
            kl = full_kl(logits, ref).double().cpu().numpy()
        else:
            kl = estimate_kl(self.estimator, log_prob, ref_log_prob)
        _check(kl, slots, actions, f"the KL by kl_estimator={self.estimator!r}", KL_REMEDY)
        return kl

    def _warp(self, logits: torch.Tensor, masks: NDArray[np.bool_] | None) -> torch.Tensor:
        mask = None if masks is None else torch.from_numpy(masks)
        return warp_logits(logits, SamplingParams(self.temperature), mask=mask)

    def _warn_unbound(self) -> None:
        if self.estimator != "k1":
            raise ValueError(
                f"kl_estimator={self.estimator!r} needs the policy: call env.unwrapped.bind_policy(fn) before the "
                "first step, or use kl_estimator='k1', whose reference half can be paid without it"
            )
        if not self._warned:
            self._warned = True
            warn_user(UNBOUND_WARNING.format(coef=self.coef))


def cached_logits(cache: PrefixCache, episodes: Episodes, slots: NDArray[np.int64]) -> torch.Tensor:
    """Raw next-token logits of the given slots, (m, V): the `Policy` of a language model's cache."""
    if not len(slots):  # no slot is stepped
        return torch.zeros(0, cache.vocab_size or 0)
    return cache.next_logits(episodes.input_ids[slots], episodes.lengths[slots], slots)


def _check(
    values: NDArray[np.float64], slots: NDArray[np.int64], actions: NDArray[np.int64], what: str, remedy: str
) -> None:
    """Every value is a finite number, or a ValueError says for which slot and action it is not, and what may help."""
    if not np.isfinite(values).all():
        at = int(np.isfinite(values).argmin())
        raise ValueError(
            f"slot {slots[at]}, action {actions[at]}: {what} is {values[at]}, not a finite number; {remedy}. "
            "No slot has moved"
        )


def _on_slots(slots: NDArray[np.int64], n: int, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(m,) values of some slots → (n,), 0 in the others."""
    spread = np.zeros(n)
    spread[slots] = values
    return spread


def _log_prob(logits: torch.Tensor, actions: NDArray[np.int64]) -> NDArray[np.float64]:
    chosen = torch.from_numpy(actions)[:, None].to(logits.device)
    log_prob = logits.gather(-1, chosen).squeeze(-1) - logits.logsumexp(dim=-1)
    return log_prob.double().cpu().numpy()


def policy_from_function(function: Callable[[dict[str, Any]], Any], vocab_size: int, *, batched: bool) -> Policy:
    """Make a policy of a user's function from observation to logits.

    Args:
        function: takes an observation, arrays of (m, L) when batched, else of (L,), and returns logits over at least
            `vocab_size` tokens, (m, V) or (V,): a tensor or anything `torch.as_tensor` takes.
        vocab_size: number of actions; further columns (a padded vocabulary) are left out.
        batched: whether the function takes a batch.

    Raises:
        TypeError: (when called) the function returned no numbers.
        ValueError: (when called) logits of another shape, or NaN.
    """

    def policy(episodes: Episodes, slots: NDArray[np.int64]) -> torch.Tensor:
        if not len(slots):  # no slot is stepped
            return torch.zeros(0, vocab_size)
        if batched:
            answers = [_as_logits(function(episodes.observation(slots)))]
        else:
            answers = [_as_logits(function(episodes.observation(int(slot)))) for slot in slots]
        wanted = (len(slots), vocab_size) if batched else (vocab_size,)
        for logits in answers:
            if logits.dim() != len(wanted) or logits.shape[:-1] != wanted[:-1] or logits.shape[-1] < vocab_size:
                raise ValueError(f"the bound policy returned logits of shape {tuple(logits.shape)}; expected {wanted}")
        logits = (answers[0] if batched else torch.stack(answers))[:, :vocab_size].detach().float()
        if logits.isnan().any():
            raise ValueError("the bound policy returned NaN logits; nothing was stepped")
        return logits

    return policy


def _as_logits(answer: Any) -> torch.Tensor:
    """What a policy returned as a tensor of real numbers, or a TypeError that shows it."""
    try:
        logits = torch.as_tensor(answer)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"the bound policy returned {shown(answer)}, of type {type(answer).__name__}; expected logits, a tensor or "
            "array of numbers"
        ) from error
    if logits.is_complex() or logits.dtype == torch.bool:
        raise TypeError(f"the bound policy returned {logits.dtype}; expected logits, a tensor or array of numbers")
    return logits
