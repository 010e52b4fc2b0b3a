"""Episodes in flight as plain JSON values, and back. What is read is checked as a whole before anything changes.

The engine knows what to keep; the generators of the slots are the environments' own (`base_env.py`).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from textgen_env.config import check_kl_coef
from textgen_env.episode import Episodes, FinishReason, Prompt, mask_of
from textgen_env.notices import shown
from textgen_env.prompts import as_prompt, prompt_as_dict
from textgen_env.scorers import scorer_name

if TYPE_CHECKING:
    from textgen_env.engine import Engine


@dataclass(frozen=True, slots=True)
class SavedSlot:
    """One slot's episode; see the attributes of `Episodes` for what each is. Without a prompt none has begun."""

    prompt: Prompt | None
    token_ids: list[int]
    response_mask: list[int]
    handovers: list[int]
    environment_texts: list[str]
    playing: bool
    finish_reason: FinishReason | None
    potentials: list[float]
    environment_reward: float
    tokens: list[list[float]]


def engine_state(engine: Engine) -> dict[str, Any]:
    """Everything that an engine has to go on from: its episodes, β, and the scorer's running statistics."""
    return {
        "made_with": engine.made_with,
        "slots": [_slot_state(engine.episodes, slot) for slot in range(len(engine.episodes))],
        "kl_coef": engine.kl.coef,
        "scorer": engine.reward.bound.state_dict(),
    } | _turns_state(engine)


def load_engine_state(engine: Engine, state: Any, where: str = "state['engine']") -> None:
    """Put an engine where `engine_state` was taken.

    Raises:
        TypeError, ValueError: the state is not one of an engine like this; nothing has changed.
    """
    coef = check_kl_coef(entry(state, "kl_coef", object, where))
    if "made_with" in state and state["made_with"] != (ours := engine.made_with):
        raise ValueError(f"{where}['made_with']: the state is of one made with {state['made_with']}; this has {ours}")
    saved = entry(state, "slots", list, where)
    if len(saved) != len(engine.episodes):
        raise ValueError(f"the state has {len(saved)} slots, this environment {len(engine.episodes)}")
    slots = [_read_slot(engine, slot, f"{where}['slots'][{row}]") for row, slot in enumerate(saved)]
    failed = {} if engine.turns is None else _failed_openings(engine, state, where)
    _load_kept(engine, state, where)
    if engine.turns is not None:
        engine.turns.failed_openings = failed
    engine.kl.coef = coef
    for row, slot in enumerate(slots):
        _put_slot(engine.episodes, row, slot)


def clone_slot(engine: Engine, slot: int) -> dict[str, Any]:
    """The episode of one slot, to go on from in any slot of an engine like this: JSON values, no models.

    Raises:
        TypeError, RuntimeError: an environment that answers back cannot branch, or not now; see `Turns.clone_state`.
    """
    responder = {} if engine.turns is None else {"responder": engine.turns.clone_state(slot)}
    return {"made_with": engine.made_with, "slot": _slot_state(engine.episodes, slot), **responder}


def restore_slot(engine: Engine, slot: int, state: Any, where: str = "state") -> None:
    """Let what `clone_slot` returned go on in a slot.

    Raises:
        TypeError, ValueError: it is none of an engine like this; nothing has changed.
    """
    if entry(state, "made_with", Mapping, where) != engine.made_with:
        raise ValueError(
            f"{where}['made_with']: the state is of one made with {state['made_with']}; this has {engine.made_with}"
        )
    saved = _read_slot(engine, entry(state, "slot", Mapping, where), f"{where}['slot']")
    if engine.turns is not None:
        engine.turns.restore_state(slot, entry(state, "responder", object, where))
    _put_slot(engine.episodes, slot, saved)


def _turns_state(engine: Engine) -> dict[str, Any]:
    """What there is to keep of an environment that answers back."""
    if engine.turns is None:
        return {}
    engine.turns.check_saving(bool(engine.episodes.playing.any()))
    return {"responder": engine.turns.state_dict(), "failed_openings": engine.turns.failed_openings}


def _failed_openings(engine: Engine, state: Any, where: str) -> dict[str, str]:
    failed: dict[str, str] = entry(state, "failed_openings", Mapping, where)
    known = {str(slot) for slot in range(len(engine.episodes))}
    if not set(failed) <= known or not all(isinstance(error, str) for error in failed.values()):
        raise ValueError(f"{where}['failed_openings']={shown(failed)} must map slots of this environment to errors")
    return failed


def _load_kept(engine: Engine, state: Any, where: str) -> None:
    """Hand scorer and responder what they kept; if one does not take it, both what they had before."""
    keepers: dict[str, Any] = {"scorer": engine.reward.bound}
    if engine.turns is not None and entry(state, "responder", (Mapping, type(None)), where) is not None:
        keepers["responder"] = engine.turns
    kept = {name: entry(state, name, Mapping, where) for name in keepers}
    before = {name: keeper.state_dict() for name, keeper in keepers.items()}
    for name, keeper in keepers.items():
        try:
            keeper.load_state_dict(kept[name])
        except Exception as error:
            for other, had in before.items():
                if had:
                    keepers[other].load_state_dict(had)
            raise ValueError(
                f"{where}[{name!r}]={shown(kept[name])} is refused by {name} {scorer_name(keeper)!r}: {error!r}"
            ) from error


def made_with(engine: Engine) -> dict[str, Any]:
    """What two environments must share for one to go on with the other's state."""
    vocabulary = sorted(engine.language_model.tokenizer.get_vocab().items())
    config = engine.config
    replies = {} if engine.turns is None else {"replies": [config.max_turns, config.max_reply_tokens]}
    return replies | {
        "max_prompt_tokens": config.max_prompt_tokens,
        "max_new_tokens": config.max_new_tokens,
        "parts": list(engine.reward.part_names),
        "vocab_size": engine.language_model.vocab_size,
        "vocabulary": f"{zlib.crc32(repr(vocabulary).encode('utf-8', 'surrogatepass')):08x}",
    }


def _slot_state(episodes: Episodes, slot: int) -> dict[str, Any]:
    """A slot's episode as JSON values; per token of the row, or of the agent's alone (`tokens`)."""
    prompt, length = episodes.prompts[slot], episodes.lengths[slot]
    return {
        "prompt": None if prompt is None else prompt_as_dict(prompt),
        "token_ids": episodes.input_ids[slot, :length].tolist(),
        "response_mask": episodes.response_mask[slot, :length].tolist(),
        "handovers": list(episodes.handovers[slot]),
        "environment_texts": list(episodes.environment_texts[slot]),
        "playing": bool(episodes.playing[slot]),
        "finish_reason": episodes.finish_reasons[slot],
        "potentials": episodes.potentials[slot].tolist(),
        "environment_reward": float(episodes.environment_rewards[slot]),
        "tokens": [episodes.per_token(slot, column).tolist() for column in episodes.token_columns],
    }


def _read_slot(engine: Engine, saved: Any, where: str) -> SavedSlot:
    """Check what `_slot_state` wrote against an engine that is to take it up.

    Raises:
        TypeError, ValueError: an entry is missing, of the wrong type, or does not fit; the message names it.
    """
    if isinstance(saved, Mapping) and "response_length" in saved:
        saved = _of_former_release(saved, where)
    prompt = entry(saved, "prompt", (Mapping, type(None)), where)
    reason = entry(saved, "finish_reason", (str, type(None)), where)
    columns = entry(saved, "tokens", list, where)
    slot = SavedSlot(
        None if prompt is None else as_prompt(prompt, f"{where}['prompt']"),
        _list(saved, "token_ids", where, int),
        _list(saved, "response_mask", where, int),
        _list(saved, "handovers", where, int),
        _list(saved, "environment_texts", where, str),
        entry(saved, "playing", bool, where),
        FinishReason(reason) if reason in [known.value for known in FinishReason] else None,
        _list(saved, "potentials", where, (int, float)),
        entry(saved, "environment_reward", (int, float), where),
        [_list(columns, index, f"{where}['tokens']", (int, float)) for index in range(len(columns))],
    )
    fits = _fits(engine, slot)
    fits["finish_reason"] &= slot.finish_reason == reason
    for key, fit in fits.items():
        if not fit:
            raise ValueError(
                f"{where}[{key!r}]={shown(saved[key])} does not fit the rest of the state or this environment"
            )
    return slot


def _fits(engine: Engine, slot: SavedSlot) -> dict[str, bool]:
    """Whether each entry fits the others and the environment, by name."""
    config, episodes, tokens = engine.config, engine.episodes, len(slot.token_ids)
    begun, written = slot.prompt is not None, sum(slot.response_mask)
    ids = max(engine.language_model.vocab_size, engine.language_model.pad_token_id + 1)
    ends, texts = slot.handovers, slot.environment_texts
    dialogue = engine.turns is not None
    return {
        "prompt": begun == bool(slot.token_ids) and not (slot.playing and not begun),
        "token_ids": tokens <= episodes.input_ids.shape[1] and all(0 <= token < ids for token in slot.token_ids),
        "handovers": len(ends) == 2 * len(texts)
        and ends == sorted(ends)
        and begun <= ends[0] <= ends[-1] <= tokens
        and ends[0] <= config.max_prompt_tokens
        and (dialogue or ends[0] == ends[-1]),
        "environment_texts": 1 <= len(texts) <= (config.max_turns if dialogue else 1) and (dialogue or texts == [""]),
        "response_mask": slot.response_mask == mask_of(ends, tokens)
        and written <= config.max_new_tokens - slot.playing,
        "finish_reason": slot.finish_reason is None or (begun and not slot.playing),
        "potentials": len(slot.potentials) == len(engine.reward.part_names) and all(map(isfinite, slot.potentials)),
        "environment_reward": isfinite(slot.environment_reward) and (dialogue or slot.environment_reward == 0.0),
        "tokens": [len(column) for column in slot.tokens] == [written] * len(episodes.token_columns)
        and all(map(isfinite, slot.tokens[0])),
    }


def _of_former_release(saved: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A slot as it was saved when all that followed the prompt was the agent's."""
    token_ids, length = entry(saved, "token_ids", list, where), entry(saved, "response_length", int, where)
    prompt = len(token_ids) - length
    if not 0 <= length <= len(token_ids):
        raise ValueError(f"{where}['response_length']={length} does not fit the {len(token_ids)} tokens of the state")
    mask = [0] * prompt + [1] * length
    new = {"handovers": [prompt, prompt], "environment_texts": [""], "environment_reward": 0.0}
    return {"response_mask": mask, **new, **saved}


def _put_slot(episodes: Episodes, row: int, slot: SavedSlot) -> None:
    """Make a slot what was saved of it."""
    episodes.start(row, slot.prompt, slot.token_ids)
    written = np.flatnonzero(slot.response_mask)
    episodes.response_mask[row, written] = 1
    episodes.prompt_lengths[row], episodes.handovers[row] = slot.handovers[0], list(slot.handovers)
    episodes.environment_texts[row] = list(slot.environment_texts)
    episodes.playing[row], episodes.finish_reasons[row] = slot.playing, slot.finish_reason
    episodes.potentials[row], episodes.environment_rewards[row] = slot.potentials, slot.environment_reward
    for column, values in zip(episodes.token_columns, slot.tokens, strict=True):
        column[row, written] = values


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


def _list(saved: Any, key: Any, where: str, kind: Any) -> list[Any]:
    """A list of values of one kind, and nothing else."""
    values: list[Any] = entry(saved, key, list, where)
    for index in range(len(values)):
        entry(values, index, kind, f"{where}[{key!r}]")
    return values
