"""A dialogue partner that is a language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.sampling import SamplingParams, sample, warp_logits
from textgen_env.messages import render_chat
from textgen_env.notices import shown

if TYPE_CHECKING:
    from textgen_env.episode import Prompt


class Partner:
    """A language model says what the other side of a dialogue says.

    What it reads: where the prompt is a conversation, the same conversation from its own side (what the user said is
    its own, what the agent said is the user's) through its own chat template, behind `instruction`; where it is a text,
    all that was said so far. Each reply depends on the episode's seed, on the turn and on what was said.

    Args:
        model: a name, a path or a `LanguageModel`, whose weights nobody changes; one that is being trained should be
            copied first.
        max_tokens: of a reply.
        temperature: at which it is sampled; 0 takes the likeliest token.
        top_p: of the nucleus.
        instruction: a system message for the partner, where the prompt is a conversation.
        turns: the episode ends with the agent's turn after so many replies; None: as long as the environment lets it.
        device, dtype: of a model that is named.

    Raises:
        TypeError, ValueError: an argument out of range; no such model.
    """

    def __init__(
        self,
        model: str | Path | LanguageModel = "tiny",
        max_tokens: int = 32,
        temperature: float = 1.0,
        top_p: float = 1.0,
        instruction: str = "",
        turns: int | None = None,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> None:
        for name, count in (("max_tokens", max_tokens), ("turns", turns)):
            if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
                raise ValueError(f"partner: {name}={shown(count)} must be a whole number ≥ 1")
        if not 0 <= temperature < float("inf"):
            raise ValueError(f"partner: temperature={shown(temperature)} must be a number ≥ 0")
        if not isinstance(model, LanguageModel):
            model = LanguageModel(model, device=device, dtype=dtype, role="partner")
        self.model = model
        self.max_tokens, self.instruction, self.turns = max_tokens, instruction, turns
        self.greedy, self.sampling = temperature == 0, SamplingParams(temperature or 1.0, top_p=top_p)
        self._dialogues: dict[int, dict[str, Any]] = {}  # by slot, as JSON

    def reset(self, slots: Sequence[int], prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[str]:
        """Open with nothing: the prompt is what was said first."""
        for slot, prompt, seed in zip(slots, prompts, seeds, strict=True):
            messages = None if prompt.messages is None else [dict(message) for message in prompt.messages]
            self._dialogues[slot] = {"seed": seed, "turn": 0, "text": prompt.text, "messages": messages}
        return [""] * len(slots)

    def respond(self, slots: Sequence[int], texts: Sequence[str]) -> list[str | None]:
        """One reply to each, all decoded together; None once there have been ``turns``."""
        going = [slot for slot in slots if self.turns is None or self._dialogues[slot]["turn"] < self.turns]
        for slot, text in zip(slots, texts, strict=True):
            _say(self._dialogues[slot], "assistant", text)
        replies = dict(zip(going, self._write(going), strict=True)) if going else {}
        for slot, reply in replies.items():
            _say(self._dialogues[slot], "user", reply)
            self._dialogues[slot]["turn"] += 1
        return [replies.get(slot) for slot in slots]

    # --- writing ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _write(self, slots: Sequence[int]) -> list[str]:
        starts = [self._read(self._dialogues[slot]) for slot in slots]
        generators = [_generator(self._dialogues[slot]) for slot in slots]
        written: list[list[int]] = [[] for _ in slots]
        cache, ends = self.model.prefix_cache(len(slots)), set(self.model.eos_token_ids)
        active = list(range(len(slots)))
        for _ in range(self.max_tokens):
            texts = [starts[row] + written[row] for row in active]
            lengths = np.array([len(text) for text in texts])
            ids = np.full((len(texts), lengths.max()), self.model.pad_token_id, dtype=np.int64)
            for row, text in zip(ids, texts, strict=True):
                row[: len(text)] = text
            logits = cache.next_logits(ids, lengths, rows=np.array(active))
            for at, row in enumerate(active):
                written[row].append(self._choose(logits[at : at + 1], generators[row]))
            active = [row for row in active if written[row][-1] not in ends]
            if not active:
                break
        return [
            self.model.token_text.continuation(start, [token for token in reply if token not in ends])
            for start, reply in zip(starts, written, strict=True)
        ]

    def _choose(self, logits: torch.Tensor, generator: torch.Generator) -> int:
        if self.greedy:
            return int(logits.argmax())
        return int(sample(warp_logits(logits, self.sampling), generator=generator)[0])

    def _read(self, dialogue: Mapping[str, Any]) -> list[int]:
        """What the model reads, of which the left part goes where it is too long for its positions."""
        if dialogue["messages"] is None:
            ids = self.model.encode(dialogue["text"])
        else:
            sides = {"user": "assistant", "assistant": "user"}
            own = [message | {"role": sides.get(message["role"], message["role"])} for message in dialogue["messages"]]
            first = [{"role": "system", "content": self.instruction}] if self.instruction else []
            ids = self.model.encode_as_is(render_chat(self.model.tokenizer, [*first, *own]))
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return ids if positions is None else ids[-(positions - self.max_tokens) :]

    # --- keeping ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The dialogues, by slot."""
        return {str(slot): _copy(dialogue) for slot, dialogue in self._dialogues.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with these."""
        self._dialogues = {int(slot): _copy(dialogue) for slot, dialogue in state.items()}

    def clone_state(self, slot: int) -> dict[str, Any]:
        """A slot's dialogue."""
        return _copy(self._dialogues[slot])

    def restore_state(self, slot: int, state: Mapping[str, Any]) -> None:
        """Go on with it."""
        self._dialogues[slot] = _copy(state)


def _say(dialogue: dict[str, Any], role: str, text: str) -> None:
    dialogue["text"] += text
    if dialogue["messages"] is not None:
        dialogue["messages"].append({"role": role, "content": text})


def _copy(dialogue: Mapping[str, Any]) -> dict[str, Any]:
    messages = dialogue["messages"]
    return {**dialogue, "messages": messages if messages is None else [dict(message) for message in messages]}


def _generator(dialogue: Mapping[str, Any]) -> torch.Generator:
    """Of one reply, so that a dialogue can be taken up at any turn."""
    words = np.random.SeedSequence([dialogue["seed"], dialogue["turn"]]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0]) % 2**63)
