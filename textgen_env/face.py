"""What the single and the batched environment have in common: spaces, properties, infos, frames and their saved state.

A face translates between an `Engine` and Gymnasium; stepping itself is written out in `env.py` and `vector_env.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from textgen_env.engine import Engine
from textgen_env.episode import Prompt, StepResult
from textgen_env.kl import FixedKLCoefficient
from textgen_env.language_model import LanguageModel
from textgen_env.prompts import as_prompt
from textgen_env.render import Frame, render_ansi, render_rgb
from textgen_env.settings import Settings

CLEAR = "\x1b[2J\x1b[H"  # wipe the terminal and go to its upper left corner
RENDER_MODES = ("human", "ansi", "rgb_array")


class Face:
    """Mixed into both environments.

    Attributes:
        engine: the slots behind the face.
    """

    engine: Engine
    render_mode: str | None

    def _set_up(self, slots: int, arguments: dict[str, Any], render_mode: str | None) -> None:
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise ValueError(f"render_mode={render_mode!r} must be one of {', '.join(RENDER_MODES)} or None")
        self.render_mode = render_mode
        self.engine = Engine(slots, Settings.parse(type(self).__name__, arguments))

    def _spaces(self) -> tuple[spaces.Dict, spaces.Discrete]:
        """Observation and action space of one slot."""
        width = self.max_prompt_tokens + self.max_new_tokens
        ids = max(self.language_model.vocab_size, self.language_model.pad_token_id + 1)
        observation = spaces.Dict(
            {
                "input_ids": spaces.Box(0, ids - 1, (width,), np.int64),
                "attention_mask": spaces.MultiBinary(width),
                "response_mask": spaces.MultiBinary(width),
            }
        )
        return observation, spaces.Discrete(self.language_model.vocab_size)

    # --- what the MDP is ----------------------------------------------------------------------------------------------

    @property
    def language_model(self) -> LanguageModel:
        """The model whose tokens are the actions; its weights load only when something asks for logits."""
        return self.engine.language_model

    @property
    def reference(self) -> LanguageModel:
        """The model that the KL penalty holds the policy to."""
        return self.engine.reference

    @property
    def prompts(self) -> list[Prompt]:
        """The set that episodes draw from."""
        return self.engine.prompts

    @property
    def scorer(self) -> Any:
        """The callable that judges whole responses."""
        return self.engine.scorer

    @property
    def kl_coef(self) -> float:
        """β, in reward per nat; may be set at any time (0 switches the penalty off)."""
        return self.engine.kl.coef

    @kl_coef.setter
    def kl_coef(self, value: float) -> None:
        self.engine.kl.coef = FixedKLCoefficient(value).value

    @property
    def kl_estimator(self) -> str:
        """ "k1", "k2", "k3" or "full"; see `textgen_env.kl`."""
        return self.engine.kl.estimator

    @property
    def temperature(self) -> float:
        """Divides the logits of policy and reference alike."""
        return self.engine.settings.temperature

    @property
    def max_prompt_tokens(self) -> int:
        """Longer prompts are cut on the left."""
        return self.engine.settings.max_prompt_tokens

    @property
    def max_new_tokens(self) -> int:
        """The length limit of a response."""
        return self.engine.settings.max_new_tokens

    def delegate_kl(self, report_ref_logprob: bool = True) -> None:
        """Announce that the caller adds the KL itself, as a library hook or a trainer that scores whole rollouts does.

        Rewards then carry no KL part and no warning is given.

        Args:
            report_ref_logprob: whether `info` still has `ref_logprob`; without it the reference is never run.
        """
        self.engine.delegate_kl(report_ref_logprob=report_ref_logprob)

    # --- infos and frames ---------------------------------------------------------------------------------------------

    def _reset_info(self, row: int) -> dict[str, Any]:
        prompt = self.engine.current[row]
        assert prompt is not None
        return {"prompt": prompt.text}

    def _step_info(self, result: StepResult, at: int) -> dict[str, Any]:
        """The `info` of one slot's step, as the single face returns it."""
        info: dict[str, Any] = {"reward_parts": {name: float(part[at]) for name, part in result.reward_parts.items()}}
        if result.ref_log_prob is not None:
            info["ref_logprob"] = float(result.ref_log_prob[at])
        return info | result.endings.get(at, {})

    def _frame(self, row: int) -> Frame:
        """What there is to draw of a slot."""
        engine = self.engine
        prompt, reason = engine.current[row], engine.finish_reasons[row]
        before, response = engine.prefixes.halves(row)
        rewards, ref_log_probs, kls = (column[row, : len(response)].tolist() for column in engine.token_columns)
        parts = dict(zip(engine.part_names, engine.potentials[row].tolist(), strict=True)) if reason else {}
        return Frame(
            prompt=prompt.text if prompt else "",
            pieces=engine.language_model.token_text.shown_pieces(before, response),
            rewards=rewards,
            ref_log_probs=_if_known(ref_log_probs),
            kls=_if_known(kls),
            finish_reason=reason.value if reason else None,
            score=sum(parts.values()) if reason else None,
            reward_parts=parts,
        )

    def _render(self, row: int) -> Any:
        frame = self._frame(row)
        return render_rgb(frame) if self.render_mode == "rgb_array" else render_ansi(frame)

    def _print(self, rows: Iterable[int]) -> None:
        """In "human" mode, print the episodes of these rows: the running one redrawn in place, ended ones one by one.

        Only a terminal can be redrawn; anything else (a pipe, a notebook) is spared the drafts.
        """
        if self.render_mode != "human":
            return
        for row in rows:
            in_place = sys.stdout.isatty() and len(self.engine.playing) == 1
            if in_place or not self.engine.playing[row]:
                sys.stdout.write(f"{CLEAR if in_place else ''}{render_ansi(self._frame(row))}\n")
        sys.stdout.flush()

    # --- saved state --------------------------------------------------------------------------------------------------

    def _generators(self) -> Sequence[np.random.Generator]:
        """One per slot."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """The episodes in flight and every slot's generator, as plain JSON values: what a checkpoint keeps."""
        return {
            "engine": self.engine.state_dict(),
            "generators": [generator.bit_generator.state for generator in self._generators()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, in an environment made with the same arguments.

        Raises:
            ValueError: the state has another number of slots.
        """
        generators = self._generators()
        if len(state["generators"]) != len(generators):
            raise ValueError(f"the state has {len(state['generators'])} slots, this environment {len(generators)}")
        self.engine.load_state_dict(state["engine"])
        for generator, saved in zip(generators, state["generators"], strict=True):
            generator.bit_generator.state = saved


def _if_known(values: list[float]) -> list[float] | None:
    return None if np.isnan(values).any() else values


def prompt_choice(options: dict[str, Any] | None, known: tuple[str, ...] = ("prompt",)) -> Any:
    """The prompt that reset options name, or None.

    Raises:
        ValueError: an option that does not exist.
    """
    options = options or {}
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"options={unknown} unknown to reset; it takes {', '.join(known)}")
    choice = options.get("prompt")
    if isinstance(choice, str):
        return as_prompt(choice, "options['prompt']")
    return choice
