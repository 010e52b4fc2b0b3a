"""The actor (a language model) and the critic (a value head) of a token-level trainer, and the frozen reference.

What lives here: which weights there are and which of them learn (all, the upper layers, or LoRA adapters), one
teacher-forced pass for log-probs, values and entropies (`ActorCritic.forward`), the reference, and saving.
What does not: sampling (``rollout.py``), losses, optimisers. The forward pass itself is in `textgen_env.lm.log_probs`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from gymnasium.vector import VectorEnv
from safetensors.torch import save_file
from torch import Tensor, nn

from textgen_env.lm.adapters import save_merged, trainable
from textgen_env.lm.backbone import unwrap
from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.log_probs import LogitsAt, logits_at, read_states, response_log_probs
from textgen_env.lm.sampling import PLAIN, SamplingParams, takes_sampling
from textgen_env.lm.token_batch import TokenBatch

from .training.setting_checks import COUNT, COUNT_OR_ZERO, INTEGER, check, choice


@dataclass
class ActorConfig:
    """Which weights of the actor learn. A policy with these alone has no critic."""

    lora_rank: int = 0
    """Rank of LoRA adapters on all linear layers; 0 trains the weights themselves."""
    lora_alpha: int = 32
    """LoRA scale: the update is alpha / rank · B·A."""
    frozen_layers: int = 0
    """Transformer blocks, from the input up, that do not learn; any number above 0 freezes the embeddings too."""

    def __post_init__(self) -> None:
        rules = {"lora_rank": COUNT_OR_ZERO, "lora_alpha": COUNT}
        check(self, {**rules, "frozen_layers": INTEGER})  # how many there are, only the model knows


@dataclass
class PolicyConfig(ActorConfig):
    """Which weights the agent has and which of them learn."""

    critic: Literal["shared", "detached", "separate"] = "shared"
    """Value head on the actor's last hidden state; on the same without a gradient into it, so that learning values does
    not move the policy; or on a second model of its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, {"critic": choice("shared", "detached", "separate")})


class TokenEvaluation(NamedTuple):
    """What actor and critic say of each response token: all (B, T) float32, 0 elsewhere."""

    log_probs: Tensor  # log π(a_t|s_t)
    values: Tensor | None  # V(s_t); if there is a critic
    entropy: Tensor | None  # H(π(·|s_t)), nats; if asked for
    kl: Tensor | None = None  # KL(π(·|s_t)‖π_ref(·|s_t)), nats, exactly; if there are logits of a reference
    ref_log_probs: Tensor | None = None  # log π_ref(a_t|s_t), a constant; likewise


Evaluation = TokenEvaluation  # its former name


class ValueHead(nn.Module):
    """V(s) from the last hidden state at s: normalise → linear, d to 2d → ReLU → linear, 2d to 1. Always in fp32.

    The norm makes one learning rate fit models whose states are of any scale, and the hidden layer finds what states
    made for the next token do not show to a linear map. The last layer starts at zero: V is a constant at first.

    Args:
        hidden_size: d.
        generator: source of the first layer's weights, U(−1/√d, 1/√d).
        detached: no gradient goes into the states.
    """

    def __init__(self, hidden_size: int, generator: torch.Generator, *, detached: bool = False) -> None:
        super().__init__()
        self.detached = detached
        # skip_init, since nn.Linear would draw from the global generator
        self.hidden = nn.utils.skip_init(nn.Linear, hidden_size, 2 * hidden_size)
        self.out = nn.utils.skip_init(nn.Linear, 2 * hidden_size, 1)
        nn.init.kaiming_uniform_(self.hidden.weight, a=math.sqrt(5), generator=generator)
        for parameter in (self.hidden.bias, self.out.weight, self.out.bias):
            nn.init.zeros_(parameter)

    def forward(self, states: Tensor) -> Tensor:
        """(N, d) states of any floating type → (N,) values."""
        states = (states.detach() if self.detached else states).to(self.out.weight.dtype)
        return self.out(self.hidden(nn.functional.layer_norm(states, states.shape[-1:])).relu()).squeeze(-1)

    @torch.no_grad()
    def start_at(self, value: float) -> None:
        """Let V start at ``value`` everywhere; a head that has learned anything is left alone."""
        if not self.out.weight.any():
            self.out.bias.fill_(value)


class ActorCritic(nn.Module):
    """A language model, with a value head unless its config knows no critic; dropout is always off.

    Calling it is the pass that is trained, so that the hooks of DDP and FSDP see it.

    Args:
        language_model: the actor. Its weights are trained in place: give it one that nobody else uses.
        config: critic, LoRA and frozen layers; an `ActorConfig` makes a policy without a critic.
        generator: source of the initial weights of LoRA and of the value head; None takes seed 0. V starts at 0.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        config: ActorConfig | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config = config or PolicyConfig()
        frozen = self.config.frozen_layers
        model: nn.Module = language_model.model
        kind = getattr(self.config, "critic", None)
        self.critic = copy.deepcopy(unwrap(model).base_model) if kind == "separate" else None
        if self.critic is not None:
            trainable(self.critic, frozen_layers=frozen)
        rank, alpha = self.config.lora_rank, self.config.lora_alpha
        model = trainable(model, lora_rank=rank, lora_alpha=alpha, frozen_layers=frozen, generator=generator)
        if rank:
            language_model = LanguageModel.from_modules(model, language_model.tokenizer, name=language_model.source)
        self.language_model = language_model
        self.actor: nn.Module = model
        self.value_head: ValueHead | None = None
        if kind is not None:
            hidden_size = unwrap(model).config.get_text_config().hidden_size
            generator = generator or torch.Generator().manual_seed(0)
            self.value_head = ValueHead(hidden_size, generator, detached=kind == "detached").to(self.device)
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.actor.parameters()).device

    def forward(
        self,
        batch: TokenBatch,
        sampling: SamplingParams = PLAIN,
        *,
        mask: Tensor | None = None,
        with_entropy: bool = False,
        ref_logits: LogitsAt | None = None,
    ) -> TokenEvaluation:
        """Teacher-forced log π(a_t|s_t) and V(s_t) of every response token, with gradient.

        Args:
            batch: B texts.
            sampling: what the tokens were sampled with.
            mask: bool (V,), or (N, V) of the N response tokens: what was allowed.
            with_entropy: also the entropies.
            ref_logits: what `Reference.logits` returned for the batch: also the exact KL to it.

        Raises:
            RuntimeError: a module is in training mode; dropout would make the ratios of PPO wrong without a word.
        """
        if any(module.training for module in self.modules()):
            raise RuntimeError("the policy is in training mode; call policy.eval(): dropout must be off here too")
        scores = response_log_probs(
            self.actor,
            batch,
            sampling,
            vocab_size=self.language_model.vocab_size,
            mask=mask,
            with_entropy=with_entropy,
            readout=self.value_head if self.critic is None else None,
            ref_logits=ref_logits,
        )
        values = scores.readout if self.critic is None else self.critic_values(batch)
        return TokenEvaluation(scores.log_probs, values, scores.entropy, scores.kl, scores.ref_log_probs)

    @takes_sampling
    def evaluate(self, *batch: Tensor, **options: Any) -> TokenEvaluation:
        """The former name of a call: of a `TokenBatch`, or of its three tensors."""
        return cast(TokenEvaluation, self(TokenBatch.of(*batch), **options))

    def critic_values(self, batch: TokenBatch) -> Tensor:
        """(B, T) V of a separate critic at the states before the response tokens, 0 elsewhere."""
        assert self.critic is not None
        assert self.value_head is not None
        return read_states(self.critic, batch, self.value_head)

    @torch.no_grad()
    def final_values(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """V of the state after the last token, (B,): what a trajectory that was cut is bootstrapped with."""
        probe = final_states(input_ids, attention_mask)
        values: Tensor = self(probe).values
        return values[probe.response_mask.bool()]

    def reference(self) -> Reference:
        """log π_ref under the weights as they are *now*.

        With LoRA it is the same model with its adapters switched off; otherwise a frozen copy.
        """
        vocab_size = self.language_model.vocab_size
        if not self.config.lora_rank:
            return frozen_reference(copy.deepcopy(self.actor), vocab_size)
        adapted: Any = self.actor
        return Reference(adapted, vocab_size, adapted.disable_adapter)

    @contextmanager
    def actor_frozen(self) -> Iterator[None]:
        """While this lasts, only the critic learns: the value head, and the backbone of a separate critic."""
        learning = [parameter for parameter in self.actor.parameters() if parameter.requires_grad]
        for parameter in learning:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in learning:
                parameter.requires_grad_(True)

    def parameter_groups(self, lr: float, value_lr: float = 0.0) -> list[dict[str, Any]]:
        """What learns: the actor (and a separate critic) at ``lr``, the value head, if any, at ``value_lr``."""
        head = [] if self.value_head is None else list(self.value_head.parameters())
        others = {id(p) for p in head}
        backbone = [p for p in self.parameters() if p.requires_grad and id(p) not in others]
        return [{"params": backbone, "lr": lr}, *([{"params": head, "lr": value_lr}] if head else [])]

    def save(self, path: str | Path) -> None:
        """Write a folder that transformers' ``from_pretrained`` loads (LoRA merged), with the critic beside it.

        Files: the model's and tokenizer's own; ``critic.safetensors`` (value head, and a separate critic's backbone);
        with LoRA also ``adapter/``, which peft loads onto the original weights.
        """
        path = Path(path)
        model: Any = self.actor
        if self.config.lora_rank:
            model.save_pretrained(path / "adapter")
        save_merged(model, self.language_model.tokenizer, path)
        parts = {"value_head": self.value_head, "critic": self.critic}
        critic = {f"{name}.{k}": v for name, part in parts.items() if part for k, v in part.state_dict().items()}
        if critic:
            save_file({k: v.clone().contiguous() for k, v in critic.items()}, path / "critic.safetensors")


def final_states(input_ids: Tensor, attention_mask: Tensor) -> TokenBatch:
    """Texts with one more token, whichever: the state before it is that after the last token. (B, T + 1)"""
    lengths, rows = attention_mask.sum(dim=1), torch.arange(len(input_ids), device=input_ids.device)
    ids, mask = (torch.cat([x, torch.zeros_like(x[:, :1])], dim=1) for x in (input_ids, attention_mask))
    response = torch.zeros_like(mask)
    mask[rows, lengths] = response[rows, lengths] = 1
    return TokenBatch(ids, mask, response)


class Reference:
    """log π_ref of response tokens: what KL is measured from. Built once, before the policy begins to learn.

    Args:
        model: a causal LM that does not change, or one that is right inside of ``around``.
        vocab_size: number of actions.
        around: makes a context in which the model is read (adapters off).
    """

    def __init__(
        self,
        model: nn.Module,
        vocab_size: int,
        around: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.model, self.vocab_size, self._around = model, vocab_size, around

    @torch.no_grad()
    def __call__(self, batch: TokenBatch, sampling: SamplingParams = PLAIN, *, mask: Tensor | None = None) -> Tensor:
        """(B, T) float32, 0 off the response tokens.

        Args:
            batch: B texts.
            sampling: that of the policy. Its temperature counts; top-k and top-p shape the policy alone, since a token
                outside the reference's own nucleus would cost infinite KL.
            mask: bool (V,), or (N, V) of the N response tokens: what was allowed.
        """
        with self._around():
            shared = sampling.of_reference
            return response_log_probs(self.model, batch, shared, vocab_size=self.vocab_size, mask=mask).log_probs

    def logits(self, batch: TokenBatch) -> LogitsAt:
        """Indices of some of the N response tokens → raw logits (n, V); the body is run once, the head when asked."""
        with self._around():
            found = logits_at(self.model, batch)

        def at(index: Tensor) -> Tensor:
            with self._around():
                return found(index)[:, : self.vocab_size]

        return at


def frozen_reference(model: nn.Module, vocab_size: int) -> Reference:
    """log π_ref under a given model, which is frozen."""
    return Reference(model.requires_grad_(False).eval(), vocab_size)


def reference_of(venv: VectorEnv, policy: ActorCritic) -> Reference:
    """What a trainer measures KL from unless it is told: the environment's reference, if it was given one of its own.

    Otherwise the policy itself, as it is now.
    """
    env = cast(Any, venv.unwrapped)
    if env.reference is env.language_model:
        return policy.reference()
    return frozen_reference(env.reference.model, env.reference.vocab_size)
