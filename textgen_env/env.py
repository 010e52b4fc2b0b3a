"""The single environment: a language model as a `gymnasium.Env` whose actions are tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from textgen_env.action_masks import check_slots
from textgen_env.base_env import RENDER_MODES, TextGenBase, as_actions, as_sequences, check_seed, prompt_choice
from textgen_env.config import spelled_out
from textgen_env.episode import StepResult
from textgen_env.lm.language_model import LanguageModel
from textgen_env.notices import shown, warn_user
from textgen_env.saved_state import clone_slot, restore_slot
from textgen_env.token_sequences import step_sequences

Observation = dict[str, NDArray[Any]]
ACTIVE = np.ones(1, dtype=np.bool_)  # in an engine with one slot


class TextGenEnv(TextGenBase, gym.Env[Observation, np.int64]):
    """Text generation as a Markov decision process: the state is a prefix, an action is the next token.

    ## Action Space
    `Discrete(n)`, n = the tokens that the model can write: the width of its logits without the padding rows of its
    embedding. `env.unwrapped.action_masks()` tells on demand which are allowed.

    ## Observation Space
    `Dict` of three right-padded arrays of length L = max_prompt_tokens + max_new_tokens, with a responder plus
    max_turns · max_reply_tokens: `input_ids` (int64), `attention_mask` (int8, 1 on tokens) and `response_mask` (int8, 1
    on tokens that the agent wrote). The remaining budget, max_new_tokens − response_mask.sum(), can be read from it, so
    that the horizon is part of the state.

    ## Starting State
    A prompt drawn uniformly from the set by the environment's own generator, or the one in
    `reset(options={"prompt": text | messages | {"prompt": …, "references": […]} | index})`. A conversation is written
    out by the tokenizer's chat template. A prompt longer than max_prompt_tokens is cut as `truncation` says, with a
    warning.

    ## Rewards
    At the end the scorer's judgement of the whole response, in the scorer's own unit; 0 before, unless the scorer is
    dense. With kl_coef = β > 0 each step also pays for the KL to the reference, in one of three ways:

    * bound, after `env.unwrapped.bind_policy(fn)`: −β·KL(π‖π_ref), by `kl_estimator`;
    * unbound: β·log π_ref(a|s), the half of k1 that needs no policy. Together with an entropy bonus of β in the agent
      it is the same objective, since −KL = E[log π_ref] + H(π); an agent without it is pushed towards greedy text, so
      the first such step warns once;
    * delegated, after `env.unwrapped.delegate_kl()`: nothing, the agent or a hook adds it from `info["ref_logprob"]`.

    With a responder, what the environment pays for a turn (`Reply.reward`) is added to the token that ended it.

    Every reward is a finite number. Where there is none (an action to which policy or reference gives probability 0,
    NaN in weights, overflow), `step` raises, and the episode stands where it was.

    ## Episode End
    Terminates at an EOS token, when the response contains a stop string, and at max_new_tokens: a horizon that belongs
    to the task, where the score is paid. With length_limit="truncate" that last case truncates instead. Do not put a
    `TimeLimit` around it (or max_episode_steps): it would cut episodes without their score. The first `reset` that
    cuts a running episode, and names neither seed nor prompt, warns of it.

    With a responder, an EOS token or a turn string ends a turn: the environment replies (tokens that are not the
    agent's) and the next turn begins, up to max_turns. It may terminate the episode, cut it at the task's horizon, or
    say nothing, which ends it as if there were no environment. Where the environment fails, the episode is truncated
    and not scored.

    ## Information
    Each step: `reward_parts` (named, they add up to the reward exactly) and, when a reference is on, `ref_logprob`.
    Where the environment replied: `reply` (the text), `reply_cut` (True) if it was longer than max_reply_tokens, and
    `reply_info`, what it has to say besides.
    At the end also `text` (what the response adds to the prompt, without special tokens and stop string), `prompt`
    (the text; of a conversation what the user said last), `finish_reason` ("eos", "stop", "length"), `score`,
    `response_length` (the agent's tokens, EOS counted), `ref_logprob_sum` and, bound, `kl_sum` (nats); `scorer_info` if
    the scorer keeps counters. With a responder also `transcript` (all that was said after the prompt), more reasons
    ("environment", "horizon", "failed"), and `error` instead of `score` after a failure; `score` holds what the
    environment paid, too. `reset` returns `prompt`, and with a responder `opening`.

    ## Arguments
    * `model`: an embedded or fetched name, a directory, a .gguf file or a hub id (safetensors or GGUF only).
    * `reference`: likewise; default: `model`. Same vocabulary.
    * `prompts`: an iterable of texts, conversations (lists of `{"role", "content"}`) or mappings `{"prompt" or
      "messages", "references", …}`; a .jsonl or .json path, the name of a set, or a mapping for the `datasets` library
      (see `load_prompts`).
    * `scorer`: a name, a mapping `{"name": …, options}`, or a callable
      `scorer(completions, *, prompts, references, **extra) -> Sequence[float | None]`.
    * `kl_coef` β ≥ 0; `kl_estimator`: "k1", "k2", "k3", or "full" (the exact sum over the vocabulary). As a
      reward only k1 gives policy gradients the right direction (docs/gradients.md).
    * `max_prompt_tokens`, `max_new_tokens`, `min_new_tokens` (no EOS before).
    * `truncation` of longer prompts: "left" (the words next to the response stay, and a BOS token), "turns" (of a
      conversation the oldest messages go; what the system says and the user's last message stay), or "error".
    * `stop_strings`: texts that end an episode; a special token's text stands for that token. `forbidden_tokens`: ids
      or tokens that are no actions. `reference_top_p`: mask all but the reference's nucleus; 1 masks none.
      `reference_top_k`: mask all but the k tokens that the reference finds most likely; 0 masks none. Both are taken of
      the tokens that are allowed otherwise, and renormalise the reference. A masked action is an error.
    * `responder`: an environment that answers back: a name, a mapping `{"name": …, options}`, a function
      `f(text) -> str | Reply | None`, or an object (see `textgen_env.responders.Responder`); `scorer` may be None then.
      `turn_strings`: texts that end a turn, as EOS does. `max_turns`: turns of the agent, of which the last is not
      answered. `max_reply_tokens`: a longer reply is cut.
    * `length_limit`: "terminate" or "truncate".
    * `temperature` > 0: divides the logits of policy and reference alike before the KL.
    * `device`, `dtype`: of the models. `render_mode`: "human", "ansi", "rgb_array".

    ## References
    Ziegler et al., "Fine-tuning language models from human preferences" (2019); Ramamurthy et al., "Is reinforcement
    learning (not) for natural language processing?" (2022).

    ## Version History
    * v0: first release.

    Raises:
        TypeError, ValueError: an argument that is unknown, missing or out of range; the message names it.
    """

    metadata: dict[str, Any] = {"render_modes": list(RENDER_MODES), "render_fps": 8}

    @spelled_out
    def __init__(self, *, render_mode: str | None = None, **arguments: Any) -> None:
        self._set_up(1, arguments, render_mode)
        self.observation_space, self.action_space = self._spaces()  # type: ignore[assignment]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict]:
        """Begin an episode.

        Args:
            seed: restarts the generator that draws prompts.
            options: `{"prompt": text | messages | mapping | index}` plays a given prompt. With `"response": text | ids`
                beside it the agent has written that already; what those tokens cost in KL is not told.

        Raises:
            TypeError, ValueError, IndexError: a seed, option or prompt that is none; nothing has changed.
            RuntimeError: the scorer sees the policy, and none is bound.
        """
        self.engine.reward.check_policy()
        seed, choice = check_seed(seed), prompt_choice(options, ("prompt", "response"))
        prompt = None if choice is None else self.engine.starts.named(choice)
        responses = self._responses([(options or {}).get("response")], [prompt])
        self._note_cut([0], meant=seed is not None or prompt is not None)
        super().reset(seed=seed)
        self.engine.start({0: prompt or self.engine.starts.draw(self.np_random)}, [self.np_random], responses)
        self._print([0])
        return self.engine.episodes.observation(0), self._reset_info(0)

    def step(self, action: int | np.integer[Any]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Append a token.

        Args:
            action: an element of the action space.

        Raises:
            gymnasium.error.ResetNeeded: before `reset` or after the end.
            TypeError: the action is no integer.
            ValueError: the action is out of range or masked, or its KL is not finite.
            TypeError, ValueError: what an environment that answers back said is no reply.
            ScorerError: the scorer failed. As with all of these, the episode stands where it was.
        """
        actions = as_actions("action", action)
        if actions.shape != ():
            raise ValueError(f"action={shown(action)} must be one integer, got shape {actions.shape}")
        return self._returned(self.engine.step(actions.reshape(1), ACTIVE))

    def step_tokens(
        self, tokens: Sequence[int] | NDArray[np.int64], *, discount: float = 1.0
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Append several tokens as one step: what they bring together is what `step` would bring one by one.

        It stops where the episode or the agent's turn ends, so that an environment that answers back answers once, to
        the last token. `info` has `steps`, how many tokens were written, `unwritten`, how many were not (if any),
        `ref_logprob` and, with a bound policy, `kl`, summed over them.

        Args:
            tokens: k of them, at least one.
            discount: γ of one token, in [0, 1]: the reward, like each of its parts, is Σ γ^i·r_i, and γ^k is what a
                learner discounts the next value by (Sutton, Precup & Singh, "Between MDPs and semi-MDPs", 1999).

        Raises:
            What `step` raises, and then none of the tokens has been written; ValueError: no tokens.
        """
        sequences = as_sequences("tokens", [tokens], 1)
        return self._returned(step_sequences(self.engine, sequences, discount))

    def _returned(self, result: StepResult) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        self._print([0])
        return (
            self.engine.episodes.observation(0),
            float(result.rewards[0]),
            bool(result.terminated[0]),
            bool(result.truncated[0]),
            self._step_info(result, 0),
        )

    def clone_state(self) -> dict[str, Any]:
        """The episode as it stands, for `restore_state`, as plain JSON values: neither models nor generators.

        Raises:
            TypeError, RuntimeError: a responder that cannot branch, or not now; see `Responder`.
        """
        return clone_slot(self.engine, 0)

    def restore_state(self, state: Any) -> Observation:
        """Go on from where `clone_state` was taken, here or in an environment with the same arguments.

        The reference's keys and values are not read again as long as a row of its cache still holds them.

        Returns:
            The observation.

        Raises:
            TypeError, ValueError: no such state; nothing has changed.
        """
        restore_slot(self.engine, 0, state)
        return self.engine.episodes.observation(0)

    def action_masks(self, slots: Sequence[int] | NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
        """bool (n,), True where an action is allowed in the present state.

        Args:
            slots: for callers that also know the vector environment; with [0], the only slot, the result is (1, n).

        Raises:
            TypeError, ValueError: another slot.
        """
        masks = self.engine.action_masks(check_slots(slots, 1))
        return masks[0] if slots is None else masks

    def bind_policy(self, policy: Callable[[Observation], Any] | LanguageModel | None) -> None:
        """Let the reward pay the exact KL of the agent's policy, and a scorer that sees the policy see it.

        Args:
            policy: `fn(observation) -> logits` (n,) before temperature and masks, which are applied to policy and
                reference alike; a `LanguageModel` or its prefix cache, asked at no cost when it was just asked for the
                same prefix; None unbinds.
        """
        self.engine.bind_policy(policy, batched=False)

    def render(self) -> Any:
        """The episode so far: a text with ANSI colours ("ansi") or uint8 (H, W, 3) ("rgb_array")."""
        if self.render_mode is None:
            warn_user("render() needs render_mode: gym.make(id, render_mode='ansi')")
            return None
        return None if self.render_mode == "human" else self._render(0)

    def close(self) -> None:
        """Release the caches of the models; may be called twice."""
        self.engine.close()

    def _generators(self) -> list[np.random.Generator]:
        return [self.np_random]
