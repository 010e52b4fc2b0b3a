"""Episodes in flight as plain JSON values, and back. What is read is checked as a whole before anything changes.

The engine knows what to keep; the generators of the slots are the environments' own (`base_env.py`).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from textgen_env.config import check_kl_coef
from textgen_env.episode import FinishReason, Prompt
from textgen_env.notices import shown
from textgen_env.prompts import as_prompt, prompt_as_dict
from textgen_env.scorers import BoundScorer

if TYPE_CHECKING:
    from textgen_env.engine import Engine


@dataclass(frozen=True, slots=True)
class SavedSlot:
    """One slot's episode; see the attributes of `Engine` for what each is. Without a prompt none has begun."""

    prompt: Prompt | None
    token_ids: list[int]
    response_length: int
    playing: bool
    finish_reason: FinishReason | None
    potentials: list[float]
    tokens: list[list[float]]


def engine_state(engine: Engine) -> dict[str, Any]:
    """Everything that an engine has to go on from: its episodes, β, and the scorer's running statistics."""
    return {
        "made_with": _made_with(engine),
        "slots": [_slot_state(engine, row) for row in range(len(engine.playing))],
        "kl_coef": engine.kl.coef,
        "scorer": engine.reward.bound.state_dict(),
    }


def load_engine_state(engine: Engine, state: Any, where: str = "state['engine']") -> None:
    """Put an engine where `engine_state` was taken.

    Raises:
        TypeError, ValueError: the state is not one of an engine like this; nothing has changed.
    """
    coef = check_kl_coef(entry(state, "kl_coef", object, where))
    if "made_with" in state and state["made_with"] != (ours := _made_with(engine)):
        raise ValueError(f"{where}['made_with']: the state is of one made with {state['made_with']}; this has {ours}")
    saved = entry(state, "slots", list, where)
    if len(saved) != len(engine.playing):
        raise ValueError(f"the state has {len(saved)} slots, this environment {len(engine.playing)}")
    slots = [_read_slot(engine, slot, f"{where}['slots'][{row}]") for row, slot in enumerate(saved)]
    _load_scorer(engine.reward.bound, entry(state, "scorer", Mapping, where), where)
    engine.kl.coef = coef
    for row, slot in enumerate(slots):
        _put_slot(engine, row, slot)


def _load_scorer(scorer: BoundScorer, state: Any, where: str) -> None:
    """Hand the scorer its statistics; what it had before, if it does not take them."""
    before = scorer.state_dict()
    try:
        scorer.load_state_dict(state)
    except Exception as error:
        if before:
            scorer.load_state_dict(before)
        raise ValueError(f"{where}['scorer']={shown(state)} is refused by scorer {scorer.name!r}: {error!r}") from error


def _made_with(engine: Engine) -> dict[str, Any]:
    """What two environments must share for one to go on with the other's state."""
    vocabulary = sorted(engine.language_model.tokenizer.get_vocab().items())
    return {
        "max_prompt_tokens": engine.config.max_prompt_tokens,
        "max_new_tokens": engine.config.max_new_tokens,
        "parts": list(engine.reward.part_names),
        "vocab_size": engine.language_model.vocab_size,
        "vocabulary": f"{zlib.crc32(repr(vocabulary).encode('utf-8', 'surrogatepass')):08x}",
    }


def _slot_state(engine: Engine, row: int) -> dict[str, Any]:
    """A slot's episode as JSON values."""
    prompt, length = engine.current[row], int(engine.prefixes.response_lengths[row])
    return {
        "prompt": None if prompt is None else prompt_as_dict(prompt),
        "token_ids": engine.prefixes.input_ids[row, : engine.prefixes.lengths[row]].tolist(),
        "response_length": length,
        "playing": bool(engine.playing[row]),
        "finish_reason": engine.finish_reasons[row],
        "potentials": engine.reward.potentials[row].tolist(),
        "tokens": [column[row, :length].tolist() for column in engine.token_columns],
    }


def _read_slot(engine: Engine, saved: Any, where: str) -> SavedSlot:
    """Check what `_slot_state` wrote against an engine that is to take it up.

    Raises:
        TypeError, ValueError: an entry is missing, of the wrong type, or does not fit; the message names it.
    """
    prompt = entry(saved, "prompt", (Mapping, type(None)), where)
    token_ids = _numbers(saved, "token_ids", where, int)
    length = entry(saved, "response_length", int, where)
    playing = entry(saved, "playing", bool, where)
    reason = entry(saved, "finish_reason", (str, type(None)), where)
    potentials = _numbers(saved, "potentials", where, (int, float))
    columns = entry(saved, "tokens", list, where)
    tokens = [_numbers(columns, index, f"{where}['tokens']", (int, float)) for index in range(len(columns))]
    settings = engine.config
    fits = {
        "prompt": (prompt is None) == (not token_ids) and not (playing and prompt is None),
        "token_ids": all(0 <= token < _ids(engine) for token in token_ids),
        "response_length": 0 <= length <= min(len(token_ids), settings.max_new_tokens - playing),
        "finish_reason": reason in [None, *(known.value for known in FinishReason)]
        and (reason is None) == (playing or prompt is None),
        "potentials": len(potentials) == len(engine.reward.part_names) and all(map(math.isfinite, potentials)),
        "tokens": [len(column) for column in tokens] == [length] * len(engine.token_columns)
        and all(map(math.isfinite, tokens[0])),
    }
    fits["token_ids"] &= not token_ids if prompt is None else 1 <= len(token_ids) - length <= settings.max_prompt_tokens
    for key, fit in fits.items():
        if not fit:
            raise ValueError(
                f"{where}[{key!r}]={shown(saved[key])} does not fit the rest of the state or this environment"
            )
    return SavedSlot(
        None if prompt is None else as_prompt(prompt, f"{where}['prompt']"),
        token_ids,
        length,
        playing,
        None if reason is None else FinishReason(reason),
        potentials,
        tokens,
    )


def _put_slot(engine: Engine, row: int, slot: SavedSlot) -> None:
    """Make a slot what was saved of it."""
    prompt_tokens = len(slot.token_ids) - slot.response_length
    engine.prefixes.start(row, slot.token_ids[:prompt_tokens])
    for token in slot.token_ids[prompt_tokens:]:
        engine.prefixes.append(np.array([row]), np.array([token]))
    engine.current[row], engine.finish_reasons[row] = slot.prompt, slot.finish_reason
    engine.playing[row], engine.reward.potentials[row] = slot.playing, slot.potentials
    for column, values in zip(engine.token_columns, slot.tokens, strict=True):
        column[row] = np.nan
        column[row, : slot.response_length] = values


def entry(saved: Any, key: Any, kind: Any, where: str = "state") -> Any:
    """An entry of a saved mapping or list, of a kind.

    Raises:
        TypeError: `saved` is no mapping or list, or the entry is of another kind.
        ValueError: there is no such entry.
    """
    if not isinstance(saved, (Mapping, list)):
        raise TypeError(f"{where}={shown(saved)} must be what state_dict() returned, not {type(saved).__name__}")
    try:
        value = saved[key]
    except (KeyError, IndexError, TypeError):
        raise ValueError(f"{where} has no entry {key!r}; it must be what state_dict() returned") from None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{where}[{key!r}]={shown(value)} is of the wrong type, {type(value).__name__}")
    return value


def _numbers(saved: Any, key: Any, where: str, kind: Any) -> list[Any]:
    """A list of numbers, and nothing else."""
    values: list[Any] = entry(saved, key, list, where)
    for index in range(len(values)):
        entry(values, index, kind, f"{where}[{key!r}]")
    return values


def _ids(engine: Engine) -> int:
    return max(engine.language_model.vocab_size, engine.language_model.pad_token_id + 1)
