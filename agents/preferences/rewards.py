"""Rewards of whole texts: one or several sequence classifiers, made from a causal language model.

What lives here: the model, what it reads of a pair, and saving. What does not: how it learns (``../reward_model.py``),
and scoring with what was saved (`textgen_env.scorers.classifier`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from textgen_env.lm.adapters import save_merged, trainable
from textgen_env.lm.backbone import unwrap
from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.token_batch import TokenBatch
from textgen_env.scorers.classifier import Classifier
from textgen_env.scorers.text_model import TextModel

from ..training.seeds import derived_seed
from .pairs import Pair


class RewardModel(nn.Module):
    """One or several sequence classifiers with a single output, made from a causal language model of transformers.

    A reward is read at the last token of prompt and response, as `textgen_env.scorers.Classifier` reads it. Heads start
    at zero: every reward is 0 at first, every preference even. Members come to differ by what they learn from.

    Args:
        language_model: whose weights and tokenizer each member begins with; it is left alone.
        members: how many.
        fresh_layers, frozen_layers, lora_rank, lora_alpha: see `RewardModelConfig`; the heads learn as a whole with
            LoRA, too.
        seed: of the initial weights of fresh blocks and adapters, with the member's number.

    Raises:
        ValueError: transformers knows no sequence classifier of this kind; ``fresh_layers`` or ``frozen_layers`` is out
            of range.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        members: int = 1,
        *,
        fresh_layers: int | None = 0,
        frozen_layers: int = 0,
        lora_rank: int = 0,
        lora_alpha: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.language_model = language_model
        seeds = [derived_seed(seed, number) for number in range(members)]
        made: list[Any] = [_classifier(language_model, fresh_layers, own) for own in seeds]
        text_model = TextModel.from_modules("classifier", made[0], language_model.tokenizer)
        lora: dict[str, Any] = {"lora_rank": lora_rank, "lora_alpha": lora_alpha}
        for member, own in zip(made, seeds, strict=True):
            generator = torch.Generator().manual_seed(own)
            body = trainable(member.base_model, frozen_layers=frozen_layers, generator=generator, **lora)
            setattr(member, member.base_model_prefix, body)
        self.members = nn.ModuleList(made)
        self.eval()
        forms = ["prompt+completion", *(["chat"] if text_model.tokenizer.chat_template else [])]
        self._scorers = {form: Classifier(text_model, output="logit", text=form) for form in forms}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def forward(self, tokens: TokenBatch) -> Tensor:
        """(members, B) rewards of B whole texts, with gradient, float32."""
        rows, last = torch.arange(len(tokens.lengths), device=self.device), tokens.lengths - 1
        inputs = {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask, "use_cache": False}
        members: list[Any] = list(self.members)
        states = [member.base_model(**inputs).last_hidden_state[rows, last] for member in members]  # (B, d)
        return torch.stack([m.score(s).squeeze(-1).float() for m, s in zip(members, states, strict=True)])

    def encode(self, pair: Pair) -> tuple[list[int], list[int]]:
        """The tokens of prompt and a, and of prompt and b, as a `Classifier` scores them.

        Raises:
            ValueError: the prompt is a conversation, and the tokenizer has no chat template.
        """
        prompt = pair.as_prompt
        form = "prompt+completion" if prompt.messages is None else "chat"
        if form not in self._scorers:
            raise ValueError(f"prompt={prompt.text!r} is a conversation, but the tokenizer has no chat template")
        messages = None if prompt.messages is None else [dict(message) for message in prompt.messages]
        a, b = (self._scorers[form].encode(prompt.text, text, messages)["input_ids"] for text in (pair.a, pair.b))
        return list(a), list(b)

    def batch(self, texts: Sequence[Sequence[int]]) -> TokenBatch:
        """Whole texts as tensors, on the model's device."""
        return TokenBatch.from_tokens(texts, [[]] * len(texts), self.language_model.pad_token_id).to(self.device)

    @torch.no_grad()
    def differences(self, pairs: Sequence[Pair], batch_size: int = 32) -> Tensor:
        """(members, N) r(a) − r(b) on the CPU: what `choose_by_disagreement` takes."""
        texts = [ids for pair in pairs for ids in self.encode(pair)]
        parts = [self(self.batch(texts[i : i + batch_size])) for i in range(0, len(texts), batch_size)]
        rewards = torch.cat(parts, dim=1).view(len(self.members), -1, 2).cpu()
        return rewards[..., 0] - rewards[..., 1]

    def parameter_groups(self, lr: float, value_lr: float = 0.0) -> list[dict[str, Any]]:
        """What learns: backbones at ``lr``, heads at ``value_lr``."""
        heads = [parameter for member in self.members for parameter in cast(Any, member).score.parameters()]
        others = {id(parameter) for parameter in heads}
        backbones = [p for p in self.parameters() if p.requires_grad and id(p) not in others]
        return [{"params": backbones, "lr": lr}, {"params": heads, "lr": value_lr}]

    def save(self, path: str | Path) -> None:
        """Write a folder that transformers and `Classifier` load, LoRA merged; further members: ``member-1``, …"""
        for number, member in enumerate(self.members):
            folder = Path(path) / f"member-{number}" if number else Path(path)
            save_merged(_merged(member), self.language_model.tokenizer, folder)


def _merged(member: Any) -> Any:
    """A member with its adapters, if any, in its weights."""
    if not hasattr(member.base_model, "merge_and_unload"):
        return member
    member = copy.deepcopy(member)
    setattr(member, member.base_model_prefix, member.base_model.merge_and_unload())
    return member


FEW_WEIGHTS = 10_000_000
"""A language model of fewer has learned next to nothing but its task: see ``fresh_layers``."""


def _classifier(language_model: LanguageModel, fresh_layers: int | None, seed: int) -> nn.Module:
    """A sequence classifier with the backbone of a causal language model, its top blocks fresh, and a new head."""
    source: Any = unwrap(language_model.model)
    kept, config = _without_top(source.base_model, fresh_layers), copy.deepcopy(source.config)
    config.num_labels, config.pad_token_id = 1, language_model.pad_token_id
    try:
        with torch.random.fork_rng(devices=[]):  # transformers draws from the global generator
            torch.manual_seed(seed)
            model = AutoModelForSequenceClassification.from_config(config, dtype=source.dtype)
        model.base_model.load_state_dict({**model.base_model.state_dict(), **kept})
        nn.init.zeros_(model.score.weight)
    except (ValueError, AttributeError, RuntimeError) as error:
        message = f"model={language_model.source!r} cannot be made a sequence classifier with a head 'score': {error}"
        raise ValueError(message) from error
    return model.to(source.device)


def _without_top(backbone: Any, fresh_layers: int | None) -> dict[str, Tensor]:
    """The weights of a backbone but for those of its top blocks.

    Raises:
        ValueError: there are fewer blocks than that.
    """
    prefix, blocks = max(
        ((name, module) for name, module in backbone.named_modules() if isinstance(module, nn.ModuleList)),
        key=lambda found: len(found[1]),
    )
    if fresh_layers is None:
        few = sum(p.numel() for p in backbone.parameters()) < FEW_WEIGHTS
        fresh_layers = len(blocks) if few else 0
    if not 0 <= fresh_layers <= len(blocks):
        raise ValueError(f"fresh_layers={fresh_layers} must be from 0 to the {len(blocks)} blocks of the model")
    fresh = tuple(f"{prefix}.{number}." for number in range(len(blocks) - fresh_layers, len(blocks)))
    return {name: value for name, value in backbone.state_dict().items() if not name.startswith(fresh)}
