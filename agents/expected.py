"""Expected policy gradients: at chosen states the gradient is a sum over actions, not what one sampled action says.

What lives here: which states and actions, what the actions are worth, loss, settings, and the command (``python -m
textgen_env.agents.expected``). What does not: playing on from a state (``branching.py``), the loop
(``training/on_policy.py``), the run (``training/run.py``).

∇J = E[Σ_t ∇log π(a_t|s_t)·R] holds state by state: any term may be exchanged for Σ_a ∇π(a|s_t)·Q(s_t, a), its mean over
the action. Here that is done where it is cheap and where it matters. An action that ends the response is worth its
score; of others Q is the mean of responses that are played on. A task whose response is one token has an exact gradient
at every prompt, without any noise of actions.

What keeps it unbiased: whether a state is chosen is known before its token is drawn; the likeliest actions count with
their probability, and those drawn from the rest, in proportion to π, share what is left of it; and what is taken off Q
does not depend on those draws.

References:
    Sutton et al., "Comparing policy-gradient algorithms" (2001): the all-action gradient.
    Ciosek & Whiteson, "Expected policy gradients" (2018).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from textgen_env.lm.log_probs import predicting, states
from textgen_env.lm.sampling import warp_logits
from textgen_env.lm.token_batch import TokenBatch

from .advantages import leave_one_out, self_critical
from .branching import Branching, Node
from .losses import approx_kl, ratio_error, reinforce_loss
from .policy import ActorConfig, ActorCritic, Reference
from .rollout import Rollout
from .training.batch import Batch
from .training.command_line import run as run_program
from .training.extra import OmitArgPrefixes
from .training.groups import GroupConfig, GroupTrainer
from .training.kl_in import charged_kl
from .training.run import Run, run_of_command_line
from .training.run_settings import RunSettings
from .training.setting_checks import COUNT, COUNT_OR_ZERO, NOT_NEGATIVE, TEXT, check, choice, optional
from .training.trainer import join


@dataclass
class ExpectedConfig(GroupConfig):
    """Settings of the algorithm, beside those of every one that plays groups, which say how they are checked."""

    at: Literal["first", "every", "entropy", "after"] = "first"
    """At which states the expectation is taken: before the first token, before each --every-th, where the policy's
    entropy is at least --min-entropy, or where what is written ends with the text --after."""
    every: int = 4
    """Tokens between two states of at="every"."""
    min_entropy: float = 1.0
    """Nats, of at="entropy"."""
    after: str | None = None
    """The text of at="after", such as "Answer:"."""
    actions: int = 8
    """How many of the likeliest actions are tried at each state; 0: all that have any probability."""
    sampled: int = 1
    """How many of the other actions are drawn."""
    continuations: int = 1
    """Responses that are played on from each action that does not end one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = dict.fromkeys(("every", "sampled", "continuations"), COUNT)
        kinds = {"at": choice("first", "every", "entropy", "after"), "min_entropy": NOT_NEGATIVE}
        check(self, {**counts, **kinds, "actions": COUNT_OR_ZERO, "after": optional(TEXT)})
        if (self.at == "after") != (self.after is not None):
            raise ValueError(f'after={self.after!r} goes with at="after", and at={self.at!r} was given')
        if self.importance_weights != "none":
            raise ValueError(f"importance_weights={self.importance_weights!r} are of sampled actions: use REINFORCE")
        if self.reset_share:
            raise ValueError(f"reset_share={self.reset_share} must be 0: states are played from the prompt on")


@dataclass
class ExpectedSettings(RunSettings):
    """Train a language model with expected policy gradients."""

    policy: OmitArgPrefixes[ActorConfig] = field(default_factory=ActorConfig)
    """Which weights learn."""
    expected: OmitArgPrefixes[ExpectedConfig] = field(default_factory=ExpectedConfig)
    """The algorithm."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expected.check_slots(self.num_envs)


class Support(NamedTuple):
    """The actions that were tried at S different states, K each; some may have weight 0. All but masks are (S, K)."""

    actions: Tensor
    weights: Tensor  # π(a|s), or a drawn action's share of what the likeliest have left
    log_probs: Tensor  # log π(a|s) before the update; 0 where the weight is
    advantages: Tensor  # Q(s, a) less a number of the state's
    masks: Tensor | None  # (S, V) bool, what may be written; None: everything


@dataclass
class ExpectedBatch(Batch):
    """Advantages are 0 where the expectation is taken instead."""

    states: Tensor | None = None  # (B, T) int64, the number of the state in the support; −1: not chosen
    support: Support | None = None


class ExpectedPolicyGradient(GroupTrainer):
    """Leave-one-out REINFORCE, and expectations over actions at chosen states; see `OnPolicyTrainer` for the arguments.

    A group of one has no baseline at the other states; where all are chosen, none is needed.

    Raises:
        ValueError: the environment answers, or the sampler is narrowed by a lagging mask.
    """

    def __init__(
        self,
        venv: gym.vector.VectorEnv,
        policy: ActorCritic,
        config: ExpectedConfig | None = None,
        *,
        reference: Reference | None = None,
        seed: int = 1,
        total_updates: int = 100,
    ) -> None:
        config = config or ExpectedConfig()
        super().__init__(venv, policy, config, reference=reference, seed=seed, total_updates=total_updates)
        if self.env.engine.turns is not None:
            raise ValueError("actions are tried inside of a response, and this environment answers: use REINFORCE")
        if self.lagging_mask is not None:
            raise ValueError(f"mask_top_p={config.mask_top_p} narrows the sampler by a copy: use REINFORCE with it")

    @torch.no_grad()
    def advantages(self, rollout: Rollout) -> ExpectedBatch:
        """Score a rollout, whose groups are adjacent, and try actions at the chosen states."""
        if cut := int(rollout.bootstrapped.sum()):
            raise ValueError(f"{cut} responses were cut from outside, without a score; take the limit of steps away")
        if rollout.begun is not None:
            raise ValueError(
                "responses that begin with given tokens are for other trainers: states are played from the prompt"
            )
        scores = self.score(rollout)
        mask = rollout.response_mask
        rewards = rollout.rewards - self.kl.value * charged_kl(scores, mask, "reward")
        returns, size = rewards.sum(dim=1), self.config.group_size
        advantages = leave_one_out(returns, mask, size) if size > 1 else self_critical(returns, 0 * returns, mask)
        branching = Branching(self.venv, self.policy.language_model, sampling=self.sampling, generator=self.sampler)
        numbers, nodes = self._states(rollout, scores.micro_batches, branching)
        support = self._support(branching, nodes) if nodes else None
        advantages = torch.where(numbers >= 0, 0.0, advantages)
        batch = ExpectedBatch(rollout, *scores[:4], rewards, advantages, returns[:, None] * mask)
        batch.states, batch.support = numbers, support
        told = {"expected_states": float(len(nodes)), "expected_decodes": float(branching.forwards)}
        batch.metrics = {**self.describe(batch, scores.entropy), **told}
        return batch

    # --- which states -------------------------------------------------------------------------------------------------

    def _states(
        self, rollout: Rollout, micro_batches: Sequence[Tensor], branching: Branching
    ) -> tuple[Tensor, list[Node]]:
        """(B, T) the number of each chosen state, −1 elsewhere; and the different ones, each played up to there."""
        if rollout.chosen_prompts is None:
            raise ValueError("rollout.chosen_prompts is None: what was played is played on; collect with prompts=")
        numbers, found = torch.full_like(rollout.input_ids, -1), dict[tuple[Hashable, tuple[int, ...]], int]()
        prompts: dict[Hashable, Any] = {}
        for row, column in self._chosen(rollout, micro_batches).nonzero().tolist():
            prompt = rollout.chosen_prompts[row]
            key = prompt if isinstance(prompt, int) else ("row", row)  # others may not be hashable
            prompts[key] = prompt
            written = rollout.input_ids[row, :column][rollout.response_mask[row, :column].bool()]
            numbers[row, column] = found.setdefault((key, tuple(written.tolist())), len(found))
        roots = {key: branching.root(prompt) for key, prompt in prompts.items()}
        nodes, texts = [roots[key] for key, _ in found], [written for _, written in found]
        for at in range(max(map(len, texts), default=0)):
            going = [i for i, written in enumerate(texts) if len(written) > at]
            steps = branching.step([nodes[i] for i in going], [texts[i][at] for i in going], [0.0] * len(going))
            for i, node in zip(going, steps, strict=True):
                nodes[i] = node
        return numbers, nodes

    def _chosen(self, rollout: Rollout, micro_batches: Sequence[Tensor]) -> Tensor:
        """(B, T) bool: the tokens before which the expectation is taken, whatever they and those after them are."""
        mask, cfg = rollout.response_mask.bool(), self.config
        before = mask.cumsum(dim=1) - 1  # tokens written so far
        if cfg.at == "first":
            return mask & (before == 0)
        if cfg.at == "every":
            return mask & (before % cfg.every == 0)
        if cfg.at == "entropy":
            parts = [self.evaluate(rollout, rows, with_entropy=True).entropy for rows in micro_batches]
            entropies = join(rollout.tokens, micro_batches, parts)  # type: ignore[arg-type]
            return mask & (entropies >= cfg.min_entropy)
        chosen = torch.zeros_like(mask)
        for row, columns in enumerate(mask):
            written, decode = rollout.input_ids[row, columns].tolist(), self.policy.language_model.decode
            ends = [decode(written[:at]).endswith(cfg.after) for at in range(len(written))]
            chosen[row, columns] = torch.tensor(ends, device=mask.device)
        return chosen

    # --- which actions, and what they are worth -----------------------------------------------------------------------

    def _support(self, branching: Branching, nodes: Sequence[Node]) -> Support:
        log_probs = branching.read(nodes).log_probs
        actions, weights, top = self._actions(log_probs)
        of_actions = log_probs.gather(1, actions)
        tried = (weights > 0).nonzero().tolist()
        chosen = [int(actions[s, k]) for s, k in tried]
        told = [float(of_actions[s, k]) for s, k in tried]
        children = branching.step([nodes[s] for s, _ in tried], chosen, told)
        q = torch.zeros_like(weights)
        q[weights > 0] = self.values(branching, [nodes[s] for s, _ in tried], children).to(q)
        baseline = (weights * q)[:, :top].sum(dim=1) / weights[:, :top].sum(dim=1)  # of no action that was drawn
        masks = None
        if self.env.restricts_actions:
            masks = torch.from_numpy(np.stack([node.mask for node in nodes])).to(actions.device)
        advantages = torch.where(weights > 0, q - baseline[:, None], 0.0)
        return Support(actions, weights, torch.where(weights > 0, of_actions, 0.0), advantages, masks)

    def _actions(self, log_probs: Tensor) -> tuple[Tensor, Tensor, int]:
        """(S, K) actions and their weights, and how many of the K are the likeliest."""
        probs, vocab_size = log_probs.exp(), log_probs.shape[1]
        top = min(self.config.actions or vocab_size, vocab_size)
        weights, actions = probs.topk(top, dim=1)
        if top == vocab_size:
            return actions, weights, top
        rest, count = probs.scatter(1, actions, 0.0), self.config.sampled
        left = rest.sum(dim=1, keepdim=True)
        drawn = torch.multinomial(torch.where(left > 0, rest, 1.0), count, True, generator=self.sampler)
        return torch.cat([actions, drawn], 1), torch.cat([weights, (left / count).expand(-1, count)], 1), top

    def values(self, branching: Branching, nodes: Sequence[Node], children: Sequence[Node]) -> Tensor:
        """(n,) float64 estimates of Q: what is paid from n actions on, KL included.

        Args:
            branching: where the nodes are from.
            nodes: n states.
            children: the nodes behind an action of each.
        """
        count = [1 if child.ended else self.config.continuations for child in children]
        rows = [row for row, times in enumerate(count) for _ in range(times)]
        ends, masks = self._play_out(branching, [nodes[row] for row in rows], [children[row] for row in rows])
        paid = [end.rewards - nodes[row].rewards for row, end in zip(rows, ends, strict=True)]
        total = torch.tensor(paid, dtype=torch.float64)
        if self.reference is not None:
            total -= self.kl.value * self._kl([nodes[row] for row in rows], ends, masks)
        sums = torch.zeros(len(children), dtype=torch.float64).index_add(0, torch.tensor(rows), total)
        return sums / torch.tensor(count)

    def _play_out(
        self, branching: Branching, nodes: Sequence[Node], children: Sequence[Node]
    ) -> tuple[list[Node], list[list[Any]] | None]:
        """The ends of responses, and where it matters what was allowed at each token from the action on."""
        if self.reference is None or not self.env.restricts_actions:
            return branching.play_out(children), None
        paths = branching.paths(children)
        masks = [[node.mask, *(n.mask for n in path.nodes[:-1])] for node, path in zip(nodes, paths, strict=True)]
        return [path.nodes[-1] for path in paths], masks

    def _kl(self, nodes: Sequence[Node], ends: Sequence[Node], masks: Sequence[Sequence[Any]] | None) -> Tensor:
        """(n,) float64 Σ log π/π_ref of the tokens between."""
        assert self.reference is not None
        found, device = [], self.policy.device
        for rows in torch.arange(len(ends)).split(self.config.micro_batch_size):
            few = rows.tolist()
            texts = TokenBatch.from_tokens(
                [nodes[row].prefix for row in few], [ends[row].tokens[len(nodes[row].tokens) :] for row in few]
            ).to(device)
            mask = None
            if masks is not None:
                mask = torch.from_numpy(np.stack([one for row in few for one in masks[row]])).to(device)
            found.append(self.reference(texts, self.sampling, mask=mask).double().sum(dim=1).cpu())
        return torch.tensor([end.log_prob for end in ends], dtype=torch.float64) - torch.cat(found)

    # --- the loss -----------------------------------------------------------------------------------------------------

    def loss(self, batch: ExpectedBatch, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        """−E[Σ_t A·log π(a_t|s_t) + Σ_s Σ_a w·A(s, a)·π/π_old(a|s)]: s the chosen states, t all others."""
        assert batch.states is not None
        constants = (batch.old_log_probs, batch.advantages, batch.rollout.response_mask, batch.states)
        old_log_probs, advantages, mask, numbers = batch.rollout.cut(rows, *constants)  # (b, t)
        with torch.set_grad_enabled(not torch.equal(numbers >= 0, mask.bool())):  # or nothing is left to REINFORCE
            new = self.evaluate(batch.rollout, rows)
        loss = reinforce_loss(new.log_probs, advantages, mask) - self._expected(batch, rows, numbers)
        told = (new.log_probs, old_log_probs, mask)
        parts = {"approx_kl": approx_kl(*told), "ratio_error": ratio_error(*told)}
        return loss, {name: part.detach() for name, part in {"loss": loss, **parts}.items()}

    def _expected(self, batch: ExpectedBatch, rows: Tensor, numbers: Tensor) -> Tensor:
        """Σ over the chosen states of some responses, over the number of responses."""
        tokens, where = batch.rollout.rows(rows), numbers >= 0
        if batch.support is None or not where.any():
            return torch.zeros((), device=numbers.device)
        end = int(where.any(dim=0).nonzero().max())  # nothing behind the last of them is read
        number, support = numbers[where], batch.support
        _, logits_at = states(
            self.policy.actor, tokens.input_ids[:, :end], tokens.attention_mask[:, :end], predicting(where)[:, :end]
        )
        logits = logits_at(torch.arange(len(number), device=number.device))[:, : self.policy.language_model.vocab_size]
        allowed = None if support.masks is None else support.masks[number]
        log_probs = warp_logits(logits, self.sampling, mask=allowed).log_softmax(dim=-1)
        taken = log_probs.gather(1, support.actions[number])  # (n, K)
        weights = support.weights[number]
        ratio = (torch.where(weights > 0, taken, 0.0) - support.log_probs[number]).exp()
        return (weights * ratio * support.advantages[number]).sum() / len(rows)

    def weight(self, batch: Batch, rows: Tensor) -> int:
        """The loss is a mean over responses."""
        return len(rows)


def make_run(arguments: Sequence[str] | None = None) -> Run:
    """Everything up to the first update; see `main`."""

    def make_trainer(run: Run) -> ExpectedPolicyGradient:
        return ExpectedPolicyGradient(run.venv, run.policy, run.settings.expected, **run.options)

    return run_of_command_line("textgen_env.agents.expected", ExpectedSettings, make_trainer, arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m textgen_env.agents.expected --help``"""
    make_run(arguments).execute()


if __name__ == "__main__":
    run_program(make_run)
