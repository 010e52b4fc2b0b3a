"""A task so small that every response can be written down: exact gradients, values and expectations.

What lives here: `EnumeratedTask`, its environment, policies and oracles. What does not: estimators and their tables
(``gradients.py``).

Three tokens in all (the end, "a", "b"), of which a response has at most two: seven responses and three states. The
policy is a Llama of a few thousand weights. Oracles run it through transformers' own forward, one prefix at a time, in
float64, and share no code with the trainers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations_with_replacement
from math import factorial, prod
from typing import Any

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from textgen_env import LanguageModel
from textgen_env.agents.rollout import Rollout
from textgen_env.lm.log_probs import unpack
from textgen_env.lm.token_batch import TokenBatch

EOS, A, B = range(3)
PROMPT = [A, B]
RESPONSES = [(EOS,), *((first, second) for first in (A, B) for second in (EOS, A, B))]
STATES: list[tuple[int, ...]] = [(), (A,), (B,)]


def table_score(completions: Sequence[str], **_: Any) -> list[float]:
    """No two responses are worth the same, and the short one is worth more than some long ones."""
    return [0.6 + text.split().count("a") - 0.7 * (text.split()[:1] == ["b"]) for text in completions]


def no_score(completions: Sequence[str], **_: Any) -> list[float]:
    """Nothing, so that KL is all there is."""
    return [0.0] * len(completions)


def language_model(seed: int, spread: float = 0.25) -> LanguageModel:
    """A policy over the three tokens with weights N(0, spread²), the norms apart."""
    tokenizer = Tokenizer(models.WordLevel({"<eos>": EOS, "a": A, "b": B}, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {"vocab_size": 3, "bos_token_id": None, "eos_token_id": EOS, "pad_token_id": EOS}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**sizes, **tokens, max_position_embeddings=16))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.copy_(spread * torch.randn(weight.shape, generator=generator))
    return LanguageModel.from_modules(model, fast, name=f"enumerated-{seed}")


@dataclass
class EnumeratedTask:
    """What is optimised is E[score] − β·KL(π‖π_ref), and everything about it can be computed.

    Attributes:
        kl_coef: β.
        scored: whether there is a score beside the KL.
        off_policy: the responses come from another policy than the one whose gradient is asked for, as in the second
            pass of an update.
        top_p: the responses are drawn from the nucleus, and the policy *is* the truncated distribution.
        ascended: steps that the policy has gone up the true gradient; its optimum is where the score less β·log π/π_ref
            is the same for all responses.
    """

    kl_coef: float = 0.0
    scored: bool = True
    off_policy: bool = False
    top_p: float = 1.0
    ascended: int = 0
    reference: LanguageModel = field(default_factory=lambda: language_model(seed=2))

    def __post_init__(self) -> None:
        self.score = table_score if self.scored else no_score
        self.policy = language_model(seed=4)
        self._ascend()
        self.behaviour = copy.deepcopy(self.policy)
        if self.off_policy:
            _move(self.behaviour, language_model(seed=3), share=0.02)

    def _ascend(self) -> None:
        """Adam on the true gradient."""
        weights = list(self.policy.model.parameters())
        optimizer = torch.optim.Adam(weights, lr=3e-3)
        for _ in range(self.ascended):
            task = EnumeratedTask(self.kl_coef, self.scored, top_p=self.top_p, reference=self.reference)
            task.policy = task.behaviour = self.policy
            for weight, ascent in zip(weights, task.gradient().split([w.numel() for w in weights]), strict=True):
                weight.grad = -ascent.view_as(weight).float()
            optimizer.step()

    def make_venv(self) -> gym.vector.VectorEnv:
        """The task as an environment: its reference has a KL that trainers take from it."""
        return gym.make_vec(
            "textgen/TextGen-v0",
            num_envs=2,
            model=self.policy,
            reference=self.reference,
            prompts=["a b"],
            scorer=self.score,
            max_new_tokens=2,
            autoreset_mode=AutoresetMode.DISABLED,
        )

    # --- oracles ------------------------------------------------------------------------------------------------------

    def token_log_probs(self, language_model: LanguageModel, response: Sequence[int]) -> Tensor:
        """(T,) log π of each token of a response, by transformers' forward of each prefix, with gradient."""
        found = []
        for t, token in enumerate(response):
            found.append(self._distribution(language_model, response[:t])[token])
        return torch.stack(found)

    def _distribution(self, language_model: LanguageModel, prefix: Sequence[int]) -> Tensor:
        """(3,) log π after a prefix; of the nucleus alone."""
        logits = language_model.model(torch.tensor([[*PROMPT, *prefix]])).logits[0, -1].double()
        log_probs = logits.log_softmax(dim=-1)
        if self.top_p == 1:
            return log_probs
        descending, order = log_probs.detach().exp().sort(descending=True)
        kept = order[descending.cumsum(dim=0) - descending < self.top_p]
        return logits.masked_fill(~torch.isin(torch.arange(3), kept), -math.inf).log_softmax(dim=-1)

    @cached_property
    def possible(self) -> list[tuple[int, ...]]:
        """The responses that the behaviour policy can write."""
        return [response for response in RESPONSES if self.old_log_probs[response].sum() > -math.inf]

    @cached_property
    def probabilities(self) -> list[float]:
        """Of each of them."""
        return [float(self.old_log_probs[response].sum().exp()) for response in self.possible]

    @cached_property
    def whole(self) -> EnumeratedTask:
        """The same without a nucleus."""
        task = EnumeratedTask(self.kl_coef, self.scored, self.off_policy, reference=self.reference)
        task.policy = self.policy
        return task

    @cached_property
    def ref_log_probs(self) -> dict[tuple[int, ...], Tensor]:
        """(T,) log π_ref of each token of each response, over all tokens: a nucleus shapes the policy alone."""
        with torch.no_grad():
            return {response: self.whole.token_log_probs(self.reference, response) for response in RESPONSES}

    @cached_property
    def log_probs(self) -> dict[tuple[int, ...], Tensor]:
        """(T,) log π of each token of each response, with gradient: one graph for every loss that is plugged in."""
        return {response: self.token_log_probs(self.policy, response) for response in RESPONSES}

    @cached_property
    def old_log_probs(self) -> dict[tuple[int, ...], Tensor]:
        """The same of the policy that the responses are drawn from, without gradient."""
        with torch.no_grad():
            return {response: self.token_log_probs(self.behaviour, response) for response in RESPONSES}

    @cached_property
    def kls(self) -> dict[tuple[int, ...], Tensor]:
        """Σ_a π(a|s)·log π(a|s)/π_ref(a|s) of each state, with gradient."""
        return {state: self._kl(self.policy, state) for state in STATES}

    def _kl(self, language_model: LanguageModel, state: Sequence[int]) -> Tensor:
        log_p = self._distribution(language_model, state)
        log_q = self.whole._distribution(self.reference, state).detach()
        kept = log_p > -math.inf
        return (log_p[kept].exp() * (log_p - log_q)[kept]).sum()

    def returns(self, response: tuple[int, ...], log_probs: Tensor) -> Tensor:
        """Score − β·Σ log π/π_ref of a whole response, with gradient through the KL."""
        score = self.score([self.policy.decode(list(response))])[0]
        return score - self.kl_coef * (log_probs - self.ref_log_probs[response]).sum()

    def gradient(self) -> Tensor:
        """∇J of the policy, over all weights."""
        objective = torch.zeros((), dtype=torch.float64)
        for response in self.possible:
            log_probs = self.log_probs[response]
            objective = objective + log_probs.sum().exp() * self.returns(response, log_probs)
        return self.flat(objective)

    def gradient_of_fixed_states(self) -> Tensor:
        """−β·Σ_s d(s)·∇KL(π(·|s)‖π_ref(·|s)), d of the behaviour policy: what a KL in the loss can know of."""
        total = torch.zeros((), dtype=torch.float64)
        for state in STATES:
            with torch.no_grad():
                visits = self.token_log_probs(self.behaviour, state).sum().exp() if state else torch.tensor(1.0)
            total = total + visits * self.kls[state]
        return self.flat(-self.kl_coef * total)

    def values(self, *, later_kl: bool = False) -> dict[tuple[int, ...], float]:
        """V of each state: what the behaviour policy is still paid, the KL of the tokens that are written counted.

        ``later_kl``: only that of later states is, as with ``kl_in="both"``.
        """
        found = {}
        for state in STATES:
            weights, outcomes = [], []
            for response, probability in zip(self.possible, self.probabilities, strict=True):
                if response[: len(state)] == state:
                    k1 = self.old_log_probs[response] - self.ref_log_probs[response]
                    score = self.score([self.policy.decode(list(response))])[0]
                    weights.append(probability)
                    outcomes.append(score - self.kl_coef * float(k1[len(state) :].sum()))
            found[state] = sum(w * x for w, x in zip(weights, outcomes, strict=True)) / sum(weights) if weights else 0.0
            if later_kl:
                found[state] += self.kl_coef * float(self._kl(self.behaviour, state).detach())
        return found

    def flat(self, scalar: Tensor) -> Tensor:
        """Its gradient with respect to all weights of the policy, in one float64 vector."""
        weights = list(self.policy.model.parameters())
        gradients = torch.autograd.grad(scalar, weights, retain_graph=True, allow_unused=True, materialize_grads=True)
        return torch.cat([gradient.double().flatten() for gradient in gradients])

    # --- samples ------------------------------------------------------------------------------------------------------

    @contextmanager
    def behaving(self) -> Iterator[None]:
        """While this lasts, the policy has the weights of the one that the responses are drawn from."""
        own, others = self.policy.model.parameters(), self.behaviour.model.parameters()
        pairs = list(zip(own, others, strict=True)) if self.off_policy else []
        _swap(pairs)
        try:
            yield
        finally:
            _swap(pairs)

    def samples(self, group_size: int, groups: int = 1) -> Iterator[tuple[float, Rollout]]:
        """Everything that so many groups of responses can be, with its probability; their order counts for nothing."""
        of_one = list(_multisets(self.probabilities, group_size))
        for picks in combinations_with_replacement(range(len(of_one)), groups):
            weight = _orders(picks) * prod(of_one[pick][0] for pick in picks)
            yield weight, self.rollout([self.possible[i] for pick in picks for i in of_one[pick][1]])

    def proportional(self, group_size: int, total: int = 16384) -> Rollout:
        """One batch of ``total`` responses in which each group appears as often as it is likely: an endless batch."""
        groups = list(_multisets(self.probabilities, group_size))
        wanted = [weight * (total // group_size) for weight, _ in groups]
        counts = [int(count) for count in wanted]
        largest = sorted(range(len(groups)), key=lambda i: counts[i] - wanted[i])
        for i in largest[: total // group_size - sum(counts)]:
            counts[i] += 1
        picked = [chosen for count, (_, chosen) in zip(counts, groups, strict=True) for _ in range(count)]
        return self.rollout([self.possible[i] for chosen in picked for i in chosen])

    def rollout(self, responses: Sequence[tuple[int, ...]]) -> Rollout:
        """What `collect` would return if these had been drawn."""
        tokens = TokenBatch.from_tokens([PROMPT] * len(responses), [list(response) for response in responses])
        texts = [self.policy.decode(list(response)) for response in responses]
        scores = torch.tensor(self.score(texts))
        rewards = torch.zeros(tokens.input_ids.shape)
        rewards[torch.arange(len(responses)), tokens.lengths - 1] = scores
        nothing = torch.zeros(len(responses), dtype=torch.bool)
        return Rollout(
            tokens=tokens,
            rewards=rewards,
            sampled_log_probs=self._at_their_places(tokens, responses),
            terminated=~nothing,
            truncated=nothing,
            scores=scores,
            prompts=["a b"] * len(responses),
            texts=texts,
            finish_reasons=["eos" if response[-1] == EOS else "length" for response in responses],
            action_masks=None,
            chosen_prompts=[0] * len(responses),
        )

    def _at_their_places(self, tokens: TokenBatch, responses: Sequence[tuple[int, ...]]) -> Tensor:
        """(B, T) log-probs of the policy that writes the responses."""
        written = torch.cat([self.old_log_probs[response] for response in responses]).float()
        return unpack(written, tokens.response_mask)


def _multisets(probabilities: Sequence[float], size: int) -> Iterator[tuple[float, tuple[int, ...]]]:
    """Each multiset of ``size`` independent draws, with its probability."""
    for chosen in combinations_with_replacement(range(len(probabilities)), size):
        yield _orders(chosen) * prod(probabilities[i] for i in chosen), chosen


def _orders(chosen: Sequence[int]) -> int:
    """In how many orders these can have been drawn."""
    return factorial(len(chosen)) // prod(factorial(chosen.count(i)) for i in set(chosen))


def _swap(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """By reference, not by value: graphs that were made with the first weights stay good for them."""
    for own, other in pairs:
        own.data, other.data = other.data, own.data


@torch.no_grad()
def _move(language_model: LanguageModel, other: LanguageModel, share: float) -> None:
    """Bring the weights a part of the way to another's."""
    pairs = zip(language_model.model.parameters(), other.model.parameters(), strict=True)
    for weight, target in pairs:
        weight.lerp_(target, share)
