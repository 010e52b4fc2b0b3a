"""The language model as a policy network in plain torch, for libraries that take any `nn.Module`.

`LMHead` reads what `LMFeatures` observes and trains the last layer alone, at the cost of one matrix product; `LMLogits`
reads tokens and trains everything. Neither knows a library; Stable-Baselines3 has a policy of its own, `sb3_policy.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from textgen_env.lm.backbone import SplitModel, split
from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.log_probs import states


class LMHead(nn.Linear):
    """The last layer of the reference model as an actor for `LMFeatures` observations.

    It starts as the reference model itself, so that the first KL is 0: features (…, d + 1) to logits (…, V). The share
    of the budget that is left, which a language model does not see, starts with weight 0.

    Args:
        language_model: the reference model of the environment; its weights are copied.
        temperature: divides the logits, as in the environment.

    Raises:
        ValueError: the model does more to its logits than one matrix product (Gemma 2, Cohere, …).
    """

    def __init__(self, language_model: LanguageModel, temperature: float = 1.0) -> None:
        head, vocab_size = _split(language_model).head, language_model.vocab_size
        if not isinstance(head, nn.Linear):
            raise ValueError(f"model={language_model.source!r} transforms its logits: its last layer is no actor alone")
        super().__init__(head.in_features + 1, vocab_size, bias=head.bias is not None)
        with torch.no_grad():
            self.weight.zero_()
            self.weight[:, :-1] = head.weight[:vocab_size] / temperature
            if head.bias is not None:
                self.bias.copy_(head.bias[:vocab_size] / temperature)

    @classmethod
    def of(cls, env: Any) -> LMHead:
        """The head of an environment's reference, at its temperature; single or batched, with any wrappers."""
        return cls(env.unwrapped.reference, env.unwrapped.temperature)


class LMLogits(nn.Module):
    """A whole language model as a policy: from the tokens of the observation to logits and the last hidden state.

    Without gradient and for a batch of `rows` (a rollout), the prefix cache answers at the cost of one decode step.

    Args:
        language_model: whose weights are the parameters. Not the environment's own reference, unless that is to move.
        rows: the number of slots that roll out.
        temperature: divides the logits, as in the environment.
    """

    def __init__(self, language_model: LanguageModel, rows: int = 1, temperature: float = 1.0) -> None:
        super().__init__()
        self.model = language_model.model
        self.temperature = temperature
        self._vocab_size = language_model.vocab_size
        self._cache = language_model.prefix_cache(rows)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Right-padded tokens (…, L) to logits (…, V) and hidden states (…, d), both at the last token."""
        batch = input_ids.shape[:-1]
        ids, mask = input_ids.reshape(-1, input_ids.shape[-1]), attention_mask.reshape(-1, input_ids.shape[-1])
        lengths = mask.sum(-1)
        if len(ids) == self._cache.rows and not torch.is_grad_enabled():
            logits, hidden = self._cache.next_logits_and_hidden(ids, lengths)
        else:
            width = int(lengths.max())
            last = torch.arange(width, device=ids.device) == lengths.unsqueeze(1) - 1
            hidden, logits_at = states(self.model, ids[:, :width], mask[:, :width], last)
            logits = logits_at(torch.arange(len(ids), device=ids.device))[:, : self._vocab_size].float()
        return (logits / self.temperature).reshape(*batch, -1), hidden.float().reshape(*batch, -1)


def _split(language_model: LanguageModel) -> SplitModel:
    halves = split(language_model.model)
    if halves is None:
        raise ValueError(f"model={language_model.source!r} cannot be taken apart into a body and a head")
    return halves
