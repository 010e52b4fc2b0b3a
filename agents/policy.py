"""The actor (a language model) and the critic (a value head) of a token-level trainer.

What lives here: which weights there are and which of them learn (all, the upper layers, or LoRA adapters), one
teacher-forced `ActorCritic.evaluate` for log-probs, values and entropies, the frozen reference, and saving.
What does not: sampling (``rollout.py``), losses, optimisers. The forward pass itself is in `textgen_env.lm.log_probs`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from textgen_env.lm.adapters import save_merged, trainable
from textgen_env.lm.backbone import unwrap
from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.log_probs import predicting, response_log_probs, states, unpack

from .setting_checks import COUNT, COUNT_OR_ZERO, INTEGER, check, choice


@dataclass
class PolicyConfig:
    """Which weights the agent has and which of them learn."""

    critic: Literal["shared", "separate"] = "shared"
    """Value head on the actor's last hidden state, or on a second model of its own."""
    lora_rank: int = 0
    """Rank of LoRA adapters on all linear layers; 0 trains the weights themselves."""
    lora_alpha: int = 32
    """LoRA scale: the update is alpha / rank · B·A."""
    frozen_layers: int = 0
    """Transformer blocks, from the input up, that do not learn; any number above 0 freezes the embeddings too."""

    def __post_init__(self) -> None:
        rules = {"critic": choice("shared", "separate"), "lora_rank": COUNT_OR_ZERO, "lora_alpha": COUNT}
        check(self, {**rules, "frozen_layers": INTEGER})  # how many there are, only the model knows


class TokenEvaluation(NamedTuple):
    """What actor and critic say of each response token: all (B, T) float32, 0 elsewhere."""

    log_probs: Tensor  # log π(a_t|s_t)
    values: Tensor  # V(s_t)
    entropy: Tensor | None  # H(π(·|s_t)), nats; if asked for


Evaluation = TokenEvaluation  # its former name


class ValueHead(nn.Module):
    """V(s) from the last hidden state at s: normalise → linear, d to 2d → ReLU → linear, 2d to 1. Always in fp32.

    The norm makes one learning rate fit models whose states are of any scale, and the hidden layer finds what states
    made for the next token do not show to a linear map. The last layer starts at zero: V is a constant at first.

    Args:
        hidden_size: d.
        generator: source of the first layer's weights, U(−1/√d, 1/√d).
    """

    def __init__(self, hidden_size: int, generator: torch.Generator) -> None:
        super().__init__()
        # skip_init, since nn.Linear would draw from the global generator
        self.hidden = nn.utils.skip_init(nn.Linear, hidden_size, 2 * hidden_size)
        self.out = nn.utils.skip_init(nn.Linear, 2 * hidden_size, 1)
        nn.init.kaiming_uniform_(self.hidden.weight, a=math.sqrt(5), generator=generator)
        for parameter in (self.hidden.bias, self.out.weight, self.out.bias):
            nn.init.zeros_(parameter)

    def forward(self, states: Tensor) -> Tensor:
        """(N, d) states of any floating type → (N,) values."""
        states = states.to(self.out.weight.dtype)
        return self.out(self.hidden(nn.functional.layer_norm(states, states.shape[-1:])).relu()).squeeze(-1)

    @torch.no_grad()
    def start_at(self, value: float) -> None:
        """Let V start at ``value`` everywhere; a head that has learned anything is left alone."""
        if not self.out.weight.any():
            self.out.bias.fill_(value)


class ActorCritic(nn.Module):
    """A language model with a value head; dropout is always off.

    Args:
        language_model: the actor. Its weights are trained in place: give it one that nobody else uses.
        config: critic, LoRA and frozen layers.
        generator: source of the initial weights of LoRA and of the value head; None takes seed 0. V starts at 0.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        config: PolicyConfig | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config = config or PolicyConfig()
        model: nn.Module = language_model.model
        self.critic = copy.deepcopy(unwrap(model).base_model) if self.config.critic == "separate" else None
        if self.critic is not None:
            trainable(self.critic, frozen_layers=self.config.frozen_layers)
        model = trainable(
            model,
            lora_rank=self.config.lora_rank,
            lora_alpha=self.config.lora_alpha,
            frozen_layers=self.config.frozen_layers,
            generator=generator,
        )
        if self.config.lora_rank:
            language_model = LanguageModel.from_modules(model, language_model.tokenizer, name=language_model.source)
        self.language_model = language_model
        self.actor: nn.Module = model
        hidden_size = unwrap(model).config.get_text_config().hidden_size
        head = ValueHead(hidden_size, generator or torch.Generator().manual_seed(0))
        self.value_head = head.to(next(model.parameters()).device)
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.value_head.out.weight.device

    def evaluate(
        self, input_ids: Tensor, attention_mask: Tensor, response_mask: Tensor, **sampling: Any
    ) -> TokenEvaluation:
        """Teacher-forced log π(a_t|s_t) and V(s_t) of every response token, with gradient.

        Args:
            input_ids, attention_mask, response_mask: (B, T), right-padded.
            sampling: what the tokens were sampled with, see `textgen_env.lm.log_probs.response_log_probs`.

        Raises:
            RuntimeError: a module is in training mode; dropout would make the ratios of PPO wrong without a word.
        """
        if any(module.training for module in self.modules()):
            raise RuntimeError("the policy is in training mode; call policy.eval(): dropout must be off here too")
        scores = response_log_probs(
            self.actor,
            input_ids,
            attention_mask,
            response_mask,
            vocab_size=self.language_model.vocab_size,
            **sampling,
        )
        if self.critic is None:
            values = unpack(self.value_head(scores.hidden), response_mask)
        else:
            values = self.critic_values(input_ids, attention_mask, response_mask)
        entropy = None if scores.entropy is None else unpack(scores.entropy, response_mask)
        return TokenEvaluation(unpack(scores.log_probs, response_mask), values, entropy)

    def critic_values(self, input_ids: Tensor, attention_mask: Tensor, response_mask: Tensor) -> Tensor:
        """(B, T) V of a separate critic at the states before the response tokens, 0 elsewhere; (B, T) ×3."""
        assert self.critic is not None
        hidden, _ = states(self.critic, input_ids, attention_mask, predicting(response_mask))
        return unpack(self.value_head(hidden), response_mask)

    @torch.no_grad()
    def final_values(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """V of the state after the last token, (B,): what a trajectory that was cut is bootstrapped with."""
        lengths = attention_mask.sum(dim=1)
        rows = torch.arange(len(input_ids), device=input_ids.device)
        # one more column with any token: the state before it is the final one
        ids, mask = (torch.cat([x, torch.zeros_like(x[:, :1])], dim=1) for x in (input_ids, attention_mask))
        probe = torch.zeros_like(mask)
        mask[rows, lengths] = probe[rows, lengths] = 1
        return self.evaluate(ids, mask, probe).values[rows, lengths]

    def reference(self) -> Callable[..., Tensor]:
        """log π_ref of the response tokens under the weights as they were: (B, T) ×3, **sampling → (B, T).

        With LoRA it is the same model with its adapters switched off; otherwise a frozen copy is taken *now*.
        """
        if not self.config.lora_rank:
            return frozen_scorer(copy.deepcopy(self.actor), self.language_model.vocab_size)
        adapted: Any = self.actor

        @torch.no_grad()
        def log_probs(*batch: Tensor, **sampling: Any) -> Tensor:
            with adapted.disable_adapter():
                return response_grid(adapted, *batch, vocab_size=self.language_model.vocab_size, **sampling)

        return log_probs

    def parameter_groups(self, lr: float, value_lr: float) -> list[dict[str, Any]]:
        """What learns: the actor (and a separate critic) at ``lr``, the value head at ``value_lr``."""
        head = {id(p) for p in self.value_head.parameters()}
        backbone = [p for p in self.parameters() if p.requires_grad and id(p) not in head]
        return [{"params": backbone, "lr": lr}, {"params": list(self.value_head.parameters()), "lr": value_lr}]

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
        critic = {f"value_head.{k}": v for k, v in self.value_head.state_dict().items()}
        if self.critic is not None:
            critic |= {f"critic.{k}": v for k, v in self.critic.state_dict().items()}
        save_file({k: v.clone().contiguous() for k, v in critic.items()}, path / "critic.safetensors")


def frozen_scorer(model: nn.Module, vocab_size: int) -> Callable[..., Tensor]:
    """log π_ref under a given model, which is frozen: (B, T) ×3, **sampling → (B, T). See `ActorCritic.reference`."""
    model.requires_grad_(False).eval()

    @torch.no_grad()
    def log_probs(*batch: Tensor, **sampling: Any) -> Tensor:
        return response_grid(model, *batch, vocab_size=vocab_size, **sampling)

    return log_probs


def response_grid(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, response_mask: Tensor, **options: Any
) -> Tensor:
    """The log-probs of `response_log_probs` (same arguments) as (B, T), 0 off the response tokens."""
    return unpack(
        response_log_probs(model, input_ids, attention_mask, response_mask, **options).log_probs, response_mask
    )
