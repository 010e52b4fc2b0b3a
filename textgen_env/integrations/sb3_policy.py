"""Stable-Baselines3: an actor-critic policy that is a language model with a value head.

In rollouts a forward is a decode step (`lm/prefix_cache.py`); in updates, transitions of one episode share one
teacher-forced forward (`lm/log_probs.py`) if they come in order, as `sb3_buffer.EpisodeRolloutBuffer` hands them out.
What it is trained on, and the KL, are other modules' affair.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from textgen_env.integrations.sb3_buffer import check_tokens
from textgen_env.lm.adapters import trainable
from textgen_env.lm.backbone import HALF, unwrap
from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.log_probs import predicting, response_log_probs, states
from textgen_env.lm.prefix_cache import PrefixCache
from textgen_env.lm.sampling import SamplingParams, sample, warp_logits
from textgen_env.lm.token_batch import TokenBatch
from textgen_env.notices import warn_user

MOST_CACHES = 3  # training, evaluation and single observations; further batch sizes push the oldest out


class LanguageModelMixin:
    """What turns one of SB3's actor-critic policies into a language model.

    Args:
        observation_space, action_space, lr_schedule: SB3 gives them; tokens in, tokens out.
        model: name, folder, GGUF file or hub id, loaded anew; or a `LanguageModel`, which is copied.
        lora_rank: rank of LoRA adapters on all linear layers; 0 trains the weights themselves.
        lora_alpha: the adapters' update is alpha / rank · B·A.
        frozen_layers: blocks, from the input up, that do not learn; above 0 the embeddings do not either.
        temperature: divides the logits; must be the environment's.
        value_scale: factor on the value head's output. SB3 has one learning rate for all parameters, and a value head
            needs a larger one than a language model; under Adam this is a learning rate `value_scale` times as large.
        exact_entropy: False lets SB3 estimate the entropy by −log π(a|s), which saves time with `ent_coef=0`.
        dtype: "float32", or "bfloat16" with LoRA (whose adapters stay float32).
        optimizer_class, optimizer_kwargs: as in SB3.

    Raises:
        ValueError: spaces that are not tokens of this model, or a setting out of range.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        *,
        model: str | LanguageModel = "tiny",
        lora_rank: int = 0,
        lora_alpha: int = 32,
        frozen_layers: int = 0,
        temperature: float = 1.0,
        value_scale: float = 10.0,
        exact_entropy: bool = True,
        dtype: str = "float32",
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.AdamW,
        optimizer_kwargs: dict[str, Any] | None = None,
        use_sde: bool = False,
    ) -> None:
        given = {name: value for name, value in locals().items() if name in OPTIONS}
        if optimizer_kwargs is None:
            optimizer_kwargs = (
                {"betas": (0.9, 0.95), "weight_decay": 0.0} if optimizer_class is torch.optim.AdamW else {}
            )
        super().__init__(  # type: ignore[call-arg]
            observation_space,
            action_space,
            lr_schedule,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )
        self.options = given
        self.temperature, self.value_scale, self.exact_entropy = temperature, value_scale, exact_entropy
        self.sampling = SamplingParams(temperature)
        language_model = copy.deepcopy(model) if isinstance(model, LanguageModel) else LanguageModel(model, dtype=dtype)
        _check_spaces(observation_space, action_space, language_model)
        self.vocab_size = language_model.vocab_size
        self.actor = trainable(
            language_model.model, lora_rank=lora_rank, lora_alpha=lora_alpha, frozen_layers=frozen_layers
        )
        _warn_of_lost_steps(self.actor, lora_rank)
        self.value_net = nn.Linear(unwrap(self.actor).config.get_text_config().hidden_size, 1)
        nn.init.zeros_(self.value_net.weight)
        nn.init.zeros_(self.value_net.bias)
        self._caches: dict[int, PrefixCache] = {}
        self.optimizer = optimizer_class(self.parameters(), lr=lr_schedule(1), **optimizer_kwargs)  # type: ignore[attr-defined, call-arg]

    def _build(self, lr_schedule: Schedule) -> None:
        """SB3 builds its networks here; ours are built by `__init__`."""

    def _get_constructor_parameters(self: Any) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": self._dummy_schedule,
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
            **self.options,
        }

    @property
    def q_net(self) -> nn.Module:
        """What DQN asks a policy for; a language model values no actions.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            f"{type(self).__name__} is an actor-critic, for PPO, A2C, TRPO and MaskablePPO. DQN and QR-DQN value every "
            'action: use "MlpPolicy" on LMFeatures(TopKActions(env, k), candidates=k) of textgen_env.wrappers'
        )

    quantile_net = q_net  # what QR-DQN asks for

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that learn: TRPO asks each for a gradient, and optimisers need no others."""
        for name, parameter in super().named_parameters(*args, **kwargs):  # type: ignore[misc]
            if parameter.requires_grad:
                yield name, parameter

    def train(self: Any, mode: bool = True) -> Any:
        """Set `training`, which tells updates from rollouts; dropout stays off in both."""
        super().train(mode)  # type: ignore[misc]
        self.actor.eval()
        return self

    # --- rollouts: one decode step ------------------------------------------------------------------------------------

    def forward(self: Any, obs: dict[str, Tensor], deterministic: bool = False, action_masks: Any = None) -> Any:
        """Actions (n,), values (n, 1) and log-probabilities (n,) of n prefixes, by one decode step."""
        logits, values = self._next(obs)
        logits = self._warp(logits, action_masks)
        if deterministic:
            log_probs, actions = logits.log_softmax(dim=-1).max(dim=-1)
        else:
            actions, log_probs = sample(logits)
        log_probs.scored_by = self  # how the rollout buffer comes to know who wrote this
        return actions, values, log_probs

    def _predict(self: Any, observation: Any, deterministic: bool = False, action_masks: Any = None) -> Tensor:
        return self.forward(observation, deterministic, action_masks)[0]

    @torch.no_grad()
    def _next(self: Any, obs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Raw logits (n, V) and values (n, 1), through the cache that belongs to batches of n."""
        ids, lengths = _prefixes(obs)
        if len(ids) not in self._caches:
            if len(self._caches) == MOST_CACHES:
                del self._caches[next(iter(self._caches))]
            self._caches[len(ids)] = PrefixCache(self.actor, len(ids), vocab_size=self.vocab_size)
        logits, hidden = self._caches[len(ids)].next_logits_and_hidden(ids[:, : int(lengths.max())], lengths)
        return logits, self._values(hidden)

    # --- updates: one forward for the transitions of an episode -------------------------------------------------------

    def evaluate_actions(self: Any, obs: dict[str, Tensor], actions: Tensor, action_masks: Any = None) -> Any:
        """Values (N, 1), log-probabilities (N,) and entropies (N,) or None of N transitions, with gradient."""
        texts = share_forwards(*_prefixes(obs), actions)
        scores = response_log_probs(
            self.actor,
            texts,
            self.sampling,
            vocab_size=self.vocab_size,
            mask=None if action_masks is None else torch.as_tensor(action_masks, dtype=torch.bool),
            with_entropy=self.exact_entropy,
            readout=lambda hidden: self._values(hidden).squeeze(1),
        )
        written = texts.response_mask.bool()  # SB3 wants one row per transition
        values, log_probs, entropy = (
            None if part is None else part[written] for part in (scores.readout, scores.log_probs, scores.entropy)
        )
        return values.unsqueeze(1), log_probs, entropy  # type: ignore[union-attr]

    def get_distribution(self: Any, obs: dict[str, Tensor], action_masks: Any = None) -> Any:
        """The distribution over all tokens at N prefixes, (N, V) in memory: what TRPO asks for."""
        if not self.training:
            logits = self._next(obs)[0]
        else:
            # the fused attention kernels have no second derivative, which TRPO's Fisher products need
            kernel: AbstractContextManager[Any] = (
                sdpa_kernel(SDPBackend.MATH) if torch.is_grad_enabled() else nullcontext()
            )
            with kernel:
                hidden, logits_at = self._shared_states(obs)
                logits = logits_at(torch.arange(len(hidden), device=hidden.device))[:, : self.vocab_size]
        return self.action_dist.proba_distribution(action_logits=self._warp(logits, action_masks))

    def predict_values(self: Any, obs: dict[str, Tensor]) -> Tensor:
        """Values (n, 1) of n prefixes."""
        return self._values(self._shared_states(obs)[0]) if self.training else self._next(obs)[1]

    def _shared_states(self: Any, obs: dict[str, Tensor]) -> Any:
        texts = share_forwards(*_prefixes(obs))
        return states(self.actor, texts.input_ids, texts.attention_mask, predicting(texts.response_mask))

    def _values(self: Any, hidden: Tensor) -> Tensor:
        return self.value_scale * self.value_net(hidden.float())

    def _warp(self: Any, logits: Tensor, action_masks: Any) -> Tensor:
        mask = None if action_masks is None else torch.as_tensor(action_masks, dtype=torch.bool)
        return warp_logits(logits, self.sampling, mask=mask)


OPTIONS = (
    "model",
    "lora_rank",
    "lora_alpha",
    "frozen_layers",
    "temperature",
    "value_scale",
    "exact_entropy",
    "dtype",
)


class LMActorCriticPolicy(LanguageModelMixin, ActorCriticPolicy):  # type: ignore[misc]
    """A language model as policy of PPO, A2C or TRPO on an environment whose actions are tokens.

    Example::

        venv = SB3VecEnv(gym.make_vec("textgen/Sentiment-v0", num_envs=16))
        PPO(LMActorCriticPolicy, venv, rollout_buffer_class=EpisodeRolloutBuffer, policy_kwargs={"model": "tiny"},
            learning_rate=1e-4, gamma=1.0, n_steps=64, batch_size=256).learn(20_000, callback=KLPenaltyCallback(0.05))

    `save` and `load` are SB3's own; loading builds the model from the same source and then takes the saved weights.
    An environment that masks tokens needs `MaskablePPO` with `MaskableLMActorCriticPolicy`. See `LanguageModelMixin`
    for the arguments, which go into `policy_kwargs`.
    """


def share_forwards(ids: Tensor, lengths: Tensor, actions: Tensor | None = None) -> TokenBatch:
    """Put transitions together into as few texts as their order allows.

    Transition i + 1 continues i if its prefix is that of i followed by i's action. A run of such transitions is one
    text, its last prefix and action; any other transition is a text of its own. Right for any order, cheap for whole
    episodes. The N response tokens are the actions, in their order.

    Args:
        ids: (N, L) int64 prefixes, right-padded; lengths: (N,) int64.
        actions: (N,) int64; None takes those that the prefixes show (the last ones of the runs do not matter then).
    """
    width = ids.shape[1]
    columns = torch.arange(width, device=ids.device)
    followed_by = ids[1:].gather(1, lengths[:-1, None].clamp(max=width - 1)).squeeze(1)  # what i + 1 has in i's place
    if actions is None:
        actions = torch.cat([followed_by, followed_by.new_zeros(1)])
    same = ((ids[1:] == ids[:-1]) | (columns >= lengths[:-1, None])).all(dim=1)
    goes_on = same & (lengths[1:] == lengths[:-1] + 1) & (followed_by == actions[:-1])
    edge = goes_on.new_ones(1)
    firsts, lasts = (torch.cat(parts).nonzero().flatten() for parts in ((edge, ~goes_on), (~goes_on, edge)))
    start, end = lengths[firsts, None], lengths[lasts, None]  # response columns start … end, both included
    texts = nn.functional.pad(ids[lasts], (0, 1)).scatter(1, end, actions[lasts, None])[:, : int(end.max()) + 1]
    columns = torch.arange(texts.shape[1], device=ids.device)
    return TokenBatch(texts, (columns <= end).long(), ((columns >= start) & (columns <= end)).long())


def _prefixes(obs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(n, L) int64 and (n,) int64 of an observation, which may have been turned into floats on its way."""
    return obs["input_ids"].long(), obs["attention_mask"].long().sum(dim=1)


def _check_spaces(observation_space: Any, action_space: Any, model: LanguageModel) -> None:
    check_tokens(observation_space)
    if getattr(action_space, "n", None) != model.vocab_size:
        raise ValueError(
            f"action_space={action_space} is not Discrete({model.vocab_size}), the tokens of model={model.source!r}"
        )


def _warn_of_lost_steps(actor: nn.Module, lora_rank: int) -> None:
    if not lora_rank and unwrap(actor).dtype in HALF:
        warn_user("dtype: half-precision weights round small steps of the optimiser away; use lora_rank or float32")
