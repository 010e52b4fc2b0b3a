"""What there is to draw of a slot: an engine's episode as a `Frame`. How it is drawn is `render.py`'s business."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from textgen_env.engine import Engine
from textgen_env.episode import FinishReason
from textgen_env.render import Frame


def frame_of(engine: Engine, slot: int) -> Frame:
    """The episode of a slot, running or ended."""
    episodes = engine.episodes
    prompt, reason = episodes.prompts[slot], episodes.finish_reasons[slot]
    pieces, by_agent = _pieces(engine, slot)
    rewards, ref_log_probs, kls = (
        _on_pieces(episodes.per_token(slot, column), by_agent) for column in episodes.token_columns
    )
    paid = [*episodes.potentials[slot].tolist(), float(episodes.environment_rewards[slot])]
    scored = reason is not None and reason is not FinishReason.FAILED
    parts = dict(zip(engine.part_names, paid, strict=False)) if scored else {}
    return Frame(
        prompt=prompt.text if prompt else "",
        pieces=pieces,
        rewards=rewards,
        ref_log_probs=_if_known(ref_log_probs),
        kls=_if_known(kls),
        finish_reason=reason.value if reason else None,
        score=sum(parts.values()) if scored else None,
        reward_parts=parts,
        by_agent=by_agent,
    )


def _pieces(engine: Engine, slot: int) -> tuple[list[str], list[bool]]:
    """The text of a slot's episode in the pieces that are drawn, and which of them are the agent's tokens."""
    episodes, text = engine.episodes, engine.language_model.token_text
    ids = episodes.input_ids[slot, : episodes.lengths[slot]].tolist()
    pieces: list[str] = []
    by_agent: list[bool] = []
    for written, (start, end) in zip(episodes.environment_texts[slot], episodes.turns(slot), strict=True):
        tokens = text.shown_pieces(ids[:start], ids[start:end])
        pieces += [written, *tokens] if written else tokens
        by_agent += [False] * bool(written) + [True] * len(tokens)
    return pieces, by_agent


def _on_pieces(values: NDArray[np.float64], by_agent: Sequence[bool]) -> list[float]:
    """Numbers of the agent's tokens at its pieces; 0 at those of the environment."""
    left = iter(values.tolist())
    return [next(left) if own else 0.0 for own in by_agent]


def _if_known(values: list[float]) -> list[float] | None:
    return None if np.isnan(values).any() else values
