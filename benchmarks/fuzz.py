"""Random play against a plain model of the MDP: any step whose result differs from it ends the program with an error.

    python -m benchmarks.fuzz --steps 1000000

What lives here: drawing environments, actions (legal and not), resets, saved states; and `Slot`, which says in the
plainest way what should have come out: lists, whole decodes, the model's own forward without padding or memory. What
does not: speed (``throughput.py``). The reported rate is that of the checks, not of the environment.
"""

from __future__ import annotations

import json
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.vector import AutoresetMode

from benchmarks.report import keep
from textgen_env import NOOP  # which registers the environments, too

PROMPTS = [
    *("The food", "I", " x", "naïve café 🙂", "लड़की खेल", "한국어", "a\nb\tc", "z" * 300),
    *("<eos>", "\u202eabc", "Why?\x1b[2J"),  # a special token, a bidi override, a terminal escape
]
ILLEGAL = [-2, 10**9, 2**62, 1.5, float("nan"), None, "a"]
TOLERANCE = 2e-4  # nats between the cached reference and a plain forward in float32


@dataclass
class Settings:
    """Fuzz the vector environment."""

    steps: int = 1_000_000
    """Tokens appended, all slots together."""
    seed: int = 0
    """Draws environments and everything that happens in them."""
    per_env: int = 20_000
    """Tokens before the next environment is drawn."""
    plain_forwards: float = 0.002
    """Share of the tokens whose log π_ref is compared with a forward of the whole prefix."""
    out: Path | None = None
    """Also append the JSON lines to this file."""


def pay(completions: list[str], **_: Any) -> list[float]:
    """A reward that any change of the text moves."""
    return [score_of(text) for text in completions]


def score_of(text: str) -> float:
    """Between −1 and 1."""
    return float(np.sin(sum((index + 1) * ord(letter) for index, letter in enumerate(text))))


class Dense:
    """The same as a potential: pays at every token."""

    dense = True

    def __call__(self, completions: list[str], **_: Any) -> list[float]:
        """One number per text."""
        return pay(completions)


@dataclass
class Slot:
    """What a slot should hold: the tokens of its prompt and those written since, in lists."""

    prompt: list[int]
    response: list[int] = field(default_factory=list)
    paid: float = 0.0


class Violation(AssertionError):
    """The environment did something else than the plain model."""


class Play:
    """One environment drawn by a generator, and its plain model.

    Args:
        rng: draws the arguments and all that happens.
        plain_forwards: share of the tokens to compare with a plain forward.
    """

    def __init__(self, rng: np.random.Generator, plain_forwards: float) -> None:
        self.rng, self.plain_forwards, self.ends = rng, plain_forwards, Counter[str]()
        limit = int(rng.integers(1, 24))
        self.arguments: dict[str, Any] = {
            "num_envs": int(rng.integers(1, 9)),
            "autoreset_mode": str(rng.choice([mode.value for mode in AutoresetMode])),
            "max_prompt_tokens": int(rng.integers(2, 40)),
            "max_new_tokens": limit,
            "min_new_tokens": int(rng.integers(0, limit + 1)) if rng.random() < 0.4 else 0,
            "stop_strings": [str(s) for s in rng.choice(["e", "th", " a", ".", "\n"], rng.integers(0, 3), False)],
            "forbidden_tokens": rng.integers(3, 500, rng.integers(0, 30)).tolist() if rng.random() < 0.5 else [],
            "length_limit": str(rng.choice(["terminate", "truncate"])),
            "kl_coef": float(rng.choice([0.0, 0.0, 0.1])),
            "temperature": float(rng.choice([1.0, 0.7, 2.0])),
        }
        self.dense = bool(rng.random() < 0.3)
        self.make()
        self.slots: list[Slot | None] = [None] * self.n
        self.reset(np.ones(self.n, dtype=bool))

    def make(self) -> None:
        """The environment, from its arguments."""
        scorer = Dense() if self.dense else pay
        self.env = gym.make_vec("textgen/TextGen-v0", prompts=PROMPTS, scorer=scorer, **self.arguments)
        self.inner: Any = self.env.unwrapped
        self.lm, self.n = self.inner.language_model, self.arguments["num_envs"]

    def check(self, right: Any, what: str) -> None:
        """Raise unless something holds."""
        if not right:
            raise Violation(f"{what}\narguments: {self.arguments}\nslots: {self.slots}")

    def reset(self, mask: np.ndarray) -> None:
        """Restart some slots, by seed, by prompt or by chance."""
        options: dict[str, Any] = {} if mask.all() else {"reset_mask": mask}
        if self.rng.random() < 0.5:
            options["prompt"] = [str(text) for text in self.rng.choice(PROMPTS, self.n)]
        seed = int(self.rng.integers(2**31)) if self.rng.random() < 0.5 else None
        observation, infos = self.env.reset(seed=seed, options=options)
        for row in np.flatnonzero(mask):
            self.begin(row, observation, infos["prompt"][row])
            if "prompt" in options:
                self.check(infos["prompt"][row] == options["prompt"][row], f"slot {row} plays another prompt")

    def begin(self, row: int, observation: Any, prompt: str) -> None:
        """The prefix of a new episode: the prompt's tokens, cut on the left, BOS kept."""
        ids, limit = self.lm.tokenizer.encode(prompt), self.arguments["max_prompt_tokens"]
        if len(ids) > limit:
            bos = ids[:1] if ids[0] == self.lm.bos_token_id else []
            ids = bos + ids[len(ids) - limit + len(bos) :]
        self.slots[row] = Slot(ids)
        self.observe(row, observation)

    def observe(self, row: int, observation: Any) -> None:
        """The arrays of a slot against its lists."""
        slot = self.slots[row]
        assert slot is not None
        tokens = slot.prompt + slot.response
        width = observation["input_ids"].shape[1]
        filled = np.arange(width) < len(tokens)
        written = filled & (np.arange(width) >= len(slot.prompt))
        self.check(observation["input_ids"][row][filled].tolist() == tokens, f"input_ids of slot {row}")
        self.check((observation["input_ids"][row][~filled] == self.lm.pad_token_id).all(), f"padding of slot {row}")
        self.check((observation["attention_mask"][row] == filled).all(), f"attention_mask of slot {row}")
        self.check((observation["response_mask"][row] == written).all(), f"response_mask of slot {row}")

    def text(self, slot: Slot) -> str | None:
        """The response by whole decodes; None where half a character leaves it open."""
        decode = self.lm.tokenizer.decode
        whole, prompt = (decode(ids, skip_special_tokens=True) for ids in (slot.prompt + slot.response, slot.prompt))
        return None if "\ufffd" in whole or not whole.startswith(prompt) else whole[len(prompt) :]

    def allowed(self, slot: Slot) -> np.ndarray:
        """Which actions the arguments permit, (V,) bool."""
        mask = np.ones(self.lm.vocab_size, dtype=bool)
        mask[self.arguments["forbidden_tokens"]] = False
        if len(slot.response) < self.arguments["min_new_tokens"]:
            mask[sorted(self.lm.eos_token_ids)] = False
        return mask

    def actions(self) -> np.ndarray:
        """A legal token for each running slot, EOS more often than by chance, or `NOOP`; compares masks."""
        actions = np.zeros(self.n, dtype=np.int64)
        masks = self.inner.action_masks() if self.rng.random() < 0.05 else None
        for row, slot in enumerate(self.slots):
            if slot is None or self.rng.random() < 0.02:
                actions[row] = NOOP if slot or self.disabled else 0
                continue
            legal = self.allowed(slot)
            if masks is not None:
                self.check((masks[row] == legal).all(), f"action mask of slot {row}")
            eos = self.rng.choice(sorted(self.lm.eos_token_ids))
            actions[row] = eos if self.rng.random() < 0.05 and legal[eos] else self.rng.choice(np.flatnonzero(legal))
        return actions

    @property
    def disabled(self) -> bool:
        """Whether ended slots wait."""
        return self.arguments["autoreset_mode"] == AutoresetMode.DISABLED.value

    def provoke(self, actions: np.ndarray) -> None:
        """An illegal action must be refused, and nothing may have moved."""
        running = [row for row, slot in enumerate(self.slots) if slot is not None]
        if not running:
            return
        bad: Any = ILLEGAL[self.rng.integers(len(ILLEGAL))]
        wrong = actions.astype(object)
        wrong[self.rng.choice(running)] = bad
        if isinstance(bad, float):
            wrong = wrong.astype(float)
        before = json.dumps(self.inner.state_dict(), default=str)
        try:
            self.env.step(wrong)
        except (ValueError, TypeError):
            pass
        else:
            self.check(False, f"action {bad!r} was taken")
        self.check(json.dumps(self.inner.state_dict(), default=str) == before, f"action {bad!r} left a trace")

    def revive(self) -> None:
        """Save the state as JSON, and go on in an environment that was made anew."""
        state = json.loads(json.dumps(self.inner.state_dict()))
        self.env.close()
        self.make()
        self.inner.load_state_dict(state)

    def step(self) -> int:
        """One step of all slots; returns the tokens appended."""
        if self.rng.random() < 0.01:
            self.revive()
        actions = self.actions()
        if self.rng.random() < 0.01:
            self.provoke(actions)
        before = list(self.slots)
        observation, rewards, terminated, truncated, infos = self.env.step(actions)
        for row, slot in enumerate(before):
            if slot is None:  # restarted in this step, or waits
                self.check(not rewards[row] or self.disabled, f"slot {row} was paid while it did not play")
                if not self.disabled:
                    self.begin(row, observation, infos["prompt"][row])
                continue
            if actions[row] == NOOP:
                self.observe(row, observation)
                told = "_reward_parts" in infos and infos["_reward_parts"][row]
                self.check(not (rewards[row] or terminated[row] or truncated[row] or told), f"slot {row} did not wait")
                continue
            self.settle(row, slot, int(actions[row]), observation, rewards, (terminated, truncated), infos)
        waiting = np.array([slot is None for slot in self.slots])
        if self.disabled and waiting.any() and (waiting.all() or self.rng.random() < 0.3):
            self.reset(waiting)
        return sum(slot is not None and action != NOOP for slot, action in zip(before, actions.tolist(), strict=True))

    def settle(self, row: int, slot: Slot, action: int, observation: Any, rewards: Any, flags: Any, infos: Any) -> None:
        """What one slot's token should have brought."""
        ref = self.plain_ref_log_prob(slot, action) if self.rng.random() < self.plain_forwards else None
        slot.response.append(action)
        text = self.text(slot)
        stops = [text.find(stop) for stop in self.arguments["stop_strings"] if text is not None and stop in text]
        reason = self.reason(action, stops, len(slot.response))
        ended = bool(flags[0][row] or flags[1][row])
        same_step = self.arguments["autoreset_mode"] == AutoresetMode.SAME_STEP.value
        info = self.info_of(row, infos, final=ended and same_step)
        if text is not None:
            self.check(ended == (reason is not None), f"slot {row}: ended {ended}, reason {reason}")
        self.check(np.isfinite(rewards[row]), f"reward of slot {row}: {rewards[row]}")
        parts = info["reward_parts"]
        self.check(sum(parts.values()) == rewards[row], f"parts of slot {row} do not add up: {parts}, {rewards[row]}")
        if ref is not None:
            self.check(abs(info["ref_logprob"] - ref) < TOLERANCE, f"ref_logprob {info['ref_logprob']}, plain {ref}")
        if text is not None:
            score = score_of(text[: min(stops)] if stops else text) if self.dense or ended else 0.0
            self.check(abs(parts["score"] - (score - slot.paid)) < 1e-9, f"slot {row}: score part {parts}, {score}")
            slot.paid = score
        else:
            slot.paid += parts["score"]
        if not ended:
            self.observe(row, observation)
            return
        self.finish(row, slot, text, stops, reason, flags, info)
        if same_step:
            self.begin(row, observation, infos["prompt"][row])
        else:
            self.observe(row, observation)
            self.slots[row] = None

    def finish(self, row: int, slot: Slot, text: Any, stops: Any, reason: Any, flags: Any, info: Any) -> None:
        """The end of an episode."""
        cut = info["finish_reason"] == "length" and self.arguments["length_limit"] == "truncate"
        self.check((bool(flags[0][row]), bool(flags[1][row])) == (not cut, cut), f"flags of slot {row}")
        self.check(info["response_length"] == len(slot.response), f"response_length of slot {row}")
        if text is not None:
            self.check(info["finish_reason"] == reason, f"slot {row}: {info['finish_reason']}, should be {reason}")
            self.check(info["text"] == (text[: min(stops)] if stops else text), f"text of slot {row}: {info['text']!r}")
            self.check(abs(info["score"] - slot.paid) < 1e-9, f"score of slot {row}")
        self.ends[info["finish_reason"]] += 1

    def reason(self, action: int, stops: list[int], length: int) -> str | None:
        """Why an episode should end here: EOS before a stop string before the limit."""
        if action in self.lm.eos_token_ids:
            return "eos"
        if stops:
            return "stop"
        return "length" if length == self.arguments["max_new_tokens"] else None

    def info_of(self, row: int, infos: dict[str, Any], *, final: bool) -> dict[str, Any]:
        """One slot's `info`, taken out of the arrays."""
        source = infos["final_info"] if final else infos
        if final and not isinstance(source, dict):
            return dict(source[row])
        pick = {key: value[row] for key, value in source.items() if key[0] != "_" and not isinstance(value, dict)}
        parts = source["reward_parts"]
        pick["reward_parts"] = {name: float(value[row]) for name, value in parts.items() if name[0] != "_"}
        return pick

    @torch.no_grad()
    def plain_ref_log_prob(self, slot: Slot, action: int) -> float | None:
        """log π_ref of an action by a forward of the whole prefix: no padding, no memory."""
        if self.arguments["kl_coef"] == 0:
            return None
        logits = self.lm.model(torch.tensor([slot.prompt + slot.response])).logits[0, -1, : self.lm.vocab_size]
        logits = (logits.double() / self.arguments["temperature"]).masked_fill(
            torch.from_numpy(~self.allowed(slot)), -torch.inf
        )
        return float(logits.log_softmax(-1)[action])


def fuzz(settings: Settings) -> Iterator[dict[str, Any]]:
    """One record per environment drawn."""
    done, number = 0, 0
    while done < settings.steps:
        begin, played = time.perf_counter(), 0
        play = Play(np.random.default_rng([settings.seed, number]), settings.plain_forwards)
        while played < min(settings.per_env, settings.steps - done):
            played += play.step()
        done, number = done + played, number + 1
        play.env.close()
        seconds = time.perf_counter() - begin
        yield {"benchmark": "fuzz", "seed": settings.seed, "env": number - 1, "steps": played, "total": done,
               "ends": dict(play.ends), "seconds": round(seconds, 1), "arguments": play.arguments}  # fmt: skip


def main() -> None:
    """See the module's docstring."""
    warnings.simplefilter("ignore", UserWarning)  # long prompts are cut and the policy is unknown: both on purpose
    torch.set_num_threads(1)
    settings = tyro.cli(Settings)
    records = keep(fuzz(settings), settings.out)
    ends: Counter[str] = sum((Counter(record["ends"]) for record in records), Counter())
    print(f"{sum(r['steps'] for r in records):,} steps, {len(records)} environments, ends {dict(ends)}: no violation")


if __name__ == "__main__":
    main()
