"""What each action costs in KL: the one place where the environment asks the reference model, and the bound policy.

The three ways of paying it (see `KLPenalty`) share `textgen_env.kl`, so that they agree on the same tokens. The
arithmetic lives there; which prefixes and actions there are is the engine's business.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from textgen_env.episode import Prefixes
from textgen_env.kl import check_estimator, estimate_kl, full_kl
from textgen_env.sampling import warp_logits

if TYPE_CHECKING:
    from textgen_env.language_model import LanguageModel
    from textgen_env.prefix_cache import PrefixCache

Policy: TypeAlias = "Callable[[Prefixes, NDArray[np.int64]], torch.Tensor]"

UNBOUND_WARNING = (
    "kl_coef={coef} but the policy is unknown to the environment, so the reward holds β·log π_ref(a|s) alone: the "
    "reference half of −β·KL. Either let the environment know the policy (env.unwrapped.bind_policy(fn), or a "
    "library's hook such as KLPenaltyCallback), or train with an entropy bonus equal to kl_coef: −KL = E[log π_ref] "
    "+ H(π). Without one of them the penalty pushes towards greedy text."
)


@dataclass(frozen=True, slots=True)
class Price:
    """What m actions cost; float64 (m,) arrays in nats, None where unknown.

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
    """

    def __init__(
        self, reference: LanguageModel, slots: int, *, coef: float, estimator: str, temperature: float, top_p: float
    ) -> None:
        self.reference = reference
        self.coef = float(coef)
        self.estimator = check_estimator(estimator)
        self.temperature, self.top_p = temperature, top_p
        self.policy: Policy | None = None
        self.delegated = False
        self.report = False
        self._slots = slots
        self._cache: PrefixCache | None = None
        self._warned = False

    @property
    def active(self) -> bool:
        """Whether a step has to ask the reference for its log-probabilities."""
        return self.report if self.delegated else self.coef > 0

    def ref_logits(self, prefixes: Prefixes, rows: NDArray[np.int64]) -> torch.Tensor:
        """Raw next-token logits of the reference at the given rows, (m, V) float32; memoised by prefix."""
        return cached_logits(self.cache, prefixes, rows)

    @property
    def cache(self) -> PrefixCache:
        """The reference's memory of prefixes, one row a slot; loads its weights."""
        if self._cache is None:
            self._cache = self.reference.prefix_cache(self._slots)
        return self._cache

    def release(self) -> None:
        """Drop the cache of the reference; it is built anew when needed."""
        self._cache = None

    def __getstate__(self) -> dict[str, Any]:
        """Pickles leave the cache behind: it only holds what can be computed again."""
        return self.__dict__ | {"_cache": None}

    def nucleus(
        self, prefixes: Prefixes, rows: NDArray[np.int64], allowed: NDArray[np.bool_] | None
    ) -> NDArray[np.bool_]:
        """Which actions lie in the reference's top-p set, bool (m, V), among the allowed ones."""
        mask = None if allowed is None else torch.from_numpy(allowed)
        warped = warp_logits(self.ref_logits(prefixes, rows), temperature=self.temperature, top_p=self.top_p, mask=mask)
        return (warped > -torch.inf).cpu().numpy()

    def price(
        self,
        prefixes: Prefixes,
        rows: NDArray[np.int64],
        actions: NDArray[np.int64],
        masks: NDArray[np.bool_] | None,
    ) -> Price:
        """Price one action at each of m prefixes, before it is appended.

        Args:
            prefixes: the states.
            rows: int64 (m,), whose actions these are.
            actions: int64 (m,).
            masks: bool (m, V) of the allowed actions, or None; applied to policy and reference alike.
        """
        if not self.active:
            return Price()
        with torch.no_grad():
            chosen = torch.from_numpy(actions)[:, None]
            ref = self._warp(self.ref_logits(prefixes, rows), masks)
            ref_log_prob = _log_prob(ref, chosen)
            if self.delegated:
                return Price(ref_log_prob)
            if self.policy is None:
                self._warn_unbound()
                return Price(ref_log_prob, reward=self.coef * ref_log_prob)
            logits = self._warp(self.policy(prefixes, rows), masks)
            if self.estimator == "full":
                kl = full_kl(logits, ref).double().cpu().numpy()
            else:
                kl = estimate_kl(self.estimator, _log_prob(logits, chosen), ref_log_prob)
        return Price(ref_log_prob, kl, -self.coef * kl)

    def _warp(self, logits: torch.Tensor, masks: NDArray[np.bool_] | None) -> torch.Tensor:
        mask = None if masks is None else torch.from_numpy(masks)
        return warp_logits(logits, temperature=self.temperature, mask=mask)

    def _warn_unbound(self) -> None:
        if self.estimator != "k1":
            raise ValueError(
                f"kl_estimator={self.estimator!r} needs the policy: call env.unwrapped.bind_policy(fn) before the "
                "first step, or use kl_estimator='k1', whose reference half can be paid without it"
            )
        if not self._warned:
            self._warned = True
            warnings.warn(UNBOUND_WARNING.format(coef=self.coef), UserWarning, stacklevel=2)


def cached_logits(cache: PrefixCache, prefixes: Prefixes, rows: NDArray[np.int64]) -> torch.Tensor:
    """Raw next-token logits at the given rows, (m, V): the `Policy` of a language model's cache."""
    if not len(rows):  # every slot restarts in this step
        return torch.zeros(0, cache.vocab_size or 0)
    return cache.next_logits(prefixes.input_ids[rows], prefixes.lengths[rows], rows)


def _log_prob(logits: torch.Tensor, chosen: torch.Tensor) -> NDArray[np.float64]:
    log_prob = logits.gather(-1, chosen.to(logits.device)).squeeze(-1) - logits.logsumexp(dim=-1)
    return log_prob.double().cpu().numpy()


def policy_from_function(function: Callable[[dict[str, Any]], Any], vocab_size: int, *, batched: bool) -> Policy:
    """Make a policy of a user's function from observation to logits.

    Args:
        function: takes an observation, arrays of (m, L) when batched, else of (L,), and returns logits over at least
            `vocab_size` tokens, (m, V) or (V,): a tensor or anything `torch.as_tensor` takes.
        vocab_size: number of actions; further columns (a padded vocabulary) are left out.
        batched: whether the function takes a batch.

    Raises:
        ValueError: (when called) logits of another shape, or NaN.
    """

    def policy(prefixes: Prefixes, rows: NDArray[np.int64]) -> torch.Tensor:
        if batched:
            logits = torch.as_tensor(function(prefixes.observation(rows)))
        else:
            logits = torch.stack([torch.as_tensor(function(prefixes.observation(int(row)))) for row in rows])
        if logits.dim() != 2 or logits.shape[0] != len(rows) or logits.shape[1] < vocab_size:
            wanted = (len(rows), vocab_size) if batched else (vocab_size,)
            got = tuple(logits.shape) if batched else tuple(logits.shape[1:])
            raise ValueError(f"the bound policy returned logits of shape {got}; expected {wanted}")
        logits = logits[:, :vocab_size].detach().float()
        if logits.isnan().any():
            raise ValueError("the bound policy returned NaN logits; nothing was stepped")
        return logits

    return policy
