"""Random dialogues against a plain account of them: any difference ends the program with an error.

    python -m benchmarks.fuzz_dialogues --turns 100000

The agent writes random tokens, many of them bytes that are no whole characters; the environment answers with random
texts, ends, rewards and failures. What lives here: `Dialogue`, which keeps what was written in lists, and compares ids,
masks, rewards and ends after each step, log π_ref of each of the agent's tokens with one plain forward of the final
sequence, and now and then a state, saved in the middle of a turn, with the environment that it was saved from.
What does not: episodes without an environment that answers (``fuzz.py``).
"""

from __future__ import annotations

import json
import random
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro

from benchmarks.fuzz import TOLERANCE, Violation, pay, score_of
from benchmarks.report import keep
from textgen_env.responders import Reply

TEXTS = ["The food", "naïve café 🙂", "한국어", "<eos>", "a?b#c\n", "\u202eabc\x1b[2J"]
PROMPTS = [*TEXTS, *([{"role": "user", "content": text}] for text in TEXTS)]
LETTERS = "ab ?#\n\x00éल한🙂\u0301\u200d"
COMPARED = 6  # steps after a state was loaded


@dataclass
class Settings:
    """Fuzz dialogues."""

    turns: int = 100_000
    """Turns of the agent's, all slots together."""
    seed: int = 0
    """Draws environments and everything that happens in them."""
    per_env: int = 2_500
    """Turns before the next environment is drawn."""
    out: Path | None = None
    """Also append the JSON lines to this file."""


class Answers:
    """Answers by the number of the turn and its text, in all ways there are; keeps what it said last."""

    def __init__(self) -> None:
        self.count: dict[int, int] = {}
        self.said: dict[int, Any] = {}

    def reset(self, slots: Sequence[int], prompts: Sequence[Any], seeds: Sequence[int]) -> list[str]:
        """Some episodes open with a text, behind prompts that are texts."""
        self.count |= dict.fromkeys(slots, 0)
        drawn = [random.Random(seed) for seed in seeds]
        return [
            _text(rng) if prompt.messages is None and rng.random() < 0.5 else ""
            for prompt, rng in zip(prompts, drawn, strict=True)
        ]

    def respond(self, slots: Sequence[int], texts: Sequence[str]) -> list[Any]:
        """One answer each."""
        for slot, text in zip(slots, texts, strict=True):
            self.count[slot] += 1
            self.said[slot] = _answer(random.Random(f"{self.count[slot]} {text}"))
        return [self.said[slot] for slot in slots]

    def state_dict(self) -> dict[str, Any]:
        """How often each slot was answered."""
        return {str(slot): count for slot, count in self.count.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.count = {int(slot): count for slot, count in state.items()}


def _answer(rng: random.Random) -> Any:
    kind, text = rng.random(), _text(rng)
    if kind < 0.06:
        return None if kind < 0.03 else TimeoutError("late")
    return Reply(text, rng.choice([0.0, 0.5, -1.0]), terminated=kind > 0.96, truncated=0.92 < kind <= 0.96)


def _text(rng: random.Random) -> str:
    return rng.choice(["", "<eos>", "x" * 200, "", ""]) + "".join(rng.choices(LETTERS, k=rng.randrange(9)))


@dataclass
class Dialogue:
    """What a slot should hold.

    Attributes:
        tokens: all ids, as they were written.
        mask: 1 where the agent wrote.
        turns: the agent's tokens, turn by turn.
        ref_log_probs: what the environment said of each of the agent's tokens.
        framed: whether a chat template stands around replies.
        answered: turns that the environment was asked about.
        paid: by the environment.
    """

    tokens: list[int]
    mask: list[int]
    framed: bool
    turns: list[list[int]] = field(default_factory=lambda: [[]])
    ref_log_probs: list[float] = field(default_factory=list)
    answered: int = 0
    paid: float = 0.0


class Play:
    """One environment drawn by a generator, and the account of each slot.

    Args:
        rng: draws the arguments and all that happens.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.turns, self.compared, self.ends = rng, 0, 0, Counter[str]()
        self.n = int(rng.choice([1, 3, 8, 32, 48]))
        self.arguments: dict[str, Any] = {
            "max_prompt_tokens": 40,
            "max_new_tokens": int(rng.integers(1, 40)),
            "max_turns": int(rng.integers(1, 7)),
            "max_reply_tokens": int(rng.integers(12, 40)),
            "turn_strings": ["?"] if rng.random() < 0.7 else [],
            "stop_strings": ["#"] if rng.random() < 0.5 else [],
            "kl_coef": float(rng.choice([0.0, 0.1])),
            "temperature": float(rng.choice([1.0, 0.7])),
        }
        self.env, self.answers = self.make()
        self.lm = self.env.language_model
        self.bytes = [
            n for n in range(self.lm.vocab_size) if len(self.lm.tokenizer.convert_ids_to_tokens(n) or "") == 1
        ]
        self.pieces = [self.lm.tokenizer.decode([n]) for n in range(self.lm.vocab_size)]
        self.slots: list[Dialogue | None] = [None] * self.n
        self.reset()

    def make(self) -> tuple[Any, Answers]:
        """An environment, from the arguments."""
        answers, fixed = Answers(), {"autoreset_mode": "Disabled", "model": "tiny", "scorer": pay}
        env = gym.make_vec("textgen/TextGen-v0", self.n, prompts=PROMPTS, responder=answers, **fixed, **self.arguments)
        return env.unwrapped, answers

    def check(self, right: Any, what: str) -> None:
        """Raise unless something holds."""
        if not right:
            raise Violation(f"{what}\narguments: {self.arguments}\nslots: {self.slots}")

    def reset(self) -> None:
        """Begin new dialogues where the last ones are over."""
        over = np.array([slot is None for slot in self.slots])
        seed = int(self.rng.integers(2**31))
        observation, _ = self.env.reset(seed=seed, options={} if over.all() else {"reset_mask": over})
        for row in np.flatnonzero(over):
            tokens = self.row(observation, row)
            framed = self.env.engine.episodes.prompts[row].messages is not None
            self.slots[row] = Dialogue(tokens, [0] * len(tokens), framed)
            self.observe(row, observation)

    def row(self, observation: Any, row: int) -> list[int]:
        """The ids of a slot."""
        return list(observation["input_ids"][row][: int(observation["attention_mask"][row].sum())].tolist())

    def observe(self, row: int, observation: Any) -> None:
        """The arrays of a slot against its lists."""
        slot = self.slots[row]
        assert slot is not None
        length = len(slot.tokens)
        self.check(self.row(observation, row) == slot.tokens, f"input_ids of slot {row}")
        self.check(observation["response_mask"][row][:length].tolist() == slot.mask, f"response_mask of slot {row}")
        self.check(not observation["response_mask"][row][length:].any(), f"response_mask behind slot {row}")
        self.check((observation["input_ids"][row][length:] == self.lm.pad_token_id).all(), f"padding of slot {row}")

    def actions(self) -> np.ndarray:
        """A random token for each slot that plays, or none."""
        actions = np.full(self.n, -1)
        for row, slot in enumerate(self.slots):
            if slot is None or self.rng.random() < 0.05:
                continue
            kind = self.rng.random()
            pool = (
                sorted(self.lm.eos_token_ids)
                if kind < 0.2
                else self.bytes
                if kind < 0.8
                else range(3, self.lm.vocab_size)
            )
            actions[row] = self.rng.choice(pool)
        return actions

    def step(self) -> None:
        """One step of all slots, in two environments where a state was just loaded."""
        actions = self.actions()
        other = self.loaded() if self.rng.random() < 0.004 else None
        before = dict(self.answers.count)
        result = self.env.step(actions)
        for row in np.flatnonzero(actions >= 0):
            self.settle(row, int(actions[row]), before[row], result)
        if other is not None:
            self.compare(other, actions, result)
        if any(slot is None for slot in self.slots):
            self.reset()

    def loaded(self) -> Any:
        """An environment made anew, from the state of this one as JSON."""
        other, answers = self.make()
        other.load_state_dict(json.loads(json.dumps(self.env.state_dict())))
        self.check(answers.count == self.answers.count, "the responder's state")
        return other

    def compare(self, other: Any, actions: np.ndarray, result: Any) -> None:
        """The same steps in an environment that was saved and loaded, as long as no dialogue ends; then go on there."""
        for _ in range(COMPARED):
            again = other.step(actions)
            for name in result[0]:
                self.check((again[0][name] == result[0][name]).all(), f"{name} after loading")
            exact = self.arguments["kl_coef"] == 0  # a cache that is filled at once tells the last bits otherwise
            close = (again[1] == result[1]) if exact else np.isclose(again[1], result[1], atol=TOLERANCE, rtol=0)
            self.check(close.all() and (again[2] == result[2]).all() and (again[3] == result[3]).all(), "after loading")
            self.compared += 1
            if any(slot is None for slot in self.slots):
                break
            actions, before = self.actions(), dict(self.answers.count)
            result = self.env.step(actions)
            for row in np.flatnonzero(actions >= 0):
                self.settle(row, int(actions[row]), before[row], result)
        other.close()

    def settle(self, row: int, action: int, asked_before: int, result: Any) -> None:
        """What one slot's token should have brought."""
        observation, rewards, terminated, truncated, infos = result
        slot = self.slots[row]
        assert slot is not None
        slot.tokens.append(action)
        slot.mask.append(1)
        slot.turns[-1].append(action)
        if self.arguments["kl_coef"]:
            slot.ref_log_probs.append(float(infos["ref_logprob"][row]))
        reason, asks = self.reason(slot, action)
        self.check(self.answers.count[row] == asked_before + asks, f"slot {row} was asked, or not")
        paid = 0.0
        if asks:
            reason, paid = self.answer(row, slot, reason, observation, infos)
        self.observe(row, observation)
        ends = {None: (False, False), "horizon": (False, True), "failed": (False, True)}
        flags = bool(terminated[row]), bool(truncated[row])
        self.check(flags == ends.get(reason, (True, False)), f"slot {row}: {flags}, should be {reason}")
        parts = {name: values[row] for name, values in infos["reward_parts"].items() if name[0] != "_"}
        self.check(sum(parts.values()) == rewards[row], f"parts of slot {row}: {parts}, {rewards[row]}")
        self.check(parts.get("environment", 0.0) == paid, f"slot {row} was paid {parts}, not {paid}")
        if reason is not None:
            self.finish(row, slot, reason, infos)

    def reason(self, slot: Dialogue, action: int) -> tuple[str | None, bool]:
        """Why the episode would end if nobody answered, and whether the environment is asked."""
        turn, eos = slot.turns[-1], action in self.lm.eos_token_ids
        stopped = any(text in self.pieces[token] for text in self.arguments["stop_strings"] for token in turn)
        over = any(text in self.pieces[token] for text in self.arguments["turn_strings"] for token in turn)
        limit = sum(slot.mask) >= self.arguments["max_new_tokens"]
        if not stopped and (eos or over):
            self.turns += 1
            return "eos" if eos else "stop", slot.answered + 1 < self.arguments["max_turns"]
        return "eos" if eos else "stop" if stopped else "length" if limit else None, False

    def answer(self, row: int, slot: Dialogue, reason: str | None, observation: Any, infos: Any) -> tuple[Any, float]:
        """Take up what the environment wrote: why the episode ends, and what was paid."""
        slot.answered += 1
        said = self.answers.said[row]
        if not isinstance(said, Reply):
            return ("failed" if isinstance(said, Exception) else reason), 0.0
        written = self.row(observation, row)[len(slot.tokens) :]
        self.check(len(written) <= self.arguments["max_reply_tokens"], f"the reply of slot {row} is too long")
        closes = slot.framed and slot.turns[-1][-1] not in self.lm.eos_token_ids
        plain = written[1:] if closes and written[0] in self.lm.eos_token_ids else written
        self.check(not set(plain) & set(self.lm.tokenizer.all_special_ids), f"special tokens in slot {row}")
        head, tail = ("\nUser: ", "\nAssistant:") if slot.framed else ("", "")
        text = self.lm.tokenizer.decode(plain, skip_special_tokens=False)
        self.check(text.startswith(head) and text.endswith(tail), f"the frame of slot {row}: {text!r}")
        text = text[len(head) : len(text) - len(tail)]
        cut = "_reply_cut" in infos and bool(infos["_reply_cut"][row])
        fits = said.text.startswith(text.rstrip("\ufffd")) if cut else text == said.text
        self.check(fits, f"slot {row} reads {text!r}, the environment said {said.text!r}")
        slot.tokens += written
        slot.mask += [0] * len(written)
        slot.turns.append([])
        slot.paid += said.reward
        limit = sum(slot.mask) >= self.arguments["max_new_tokens"]
        ends = "environment" if said.terminated else "horizon" if said.truncated else "length" if limit else None
        return ends, said.reward

    def finish(self, row: int, slot: Dialogue, reason: str, infos: Any) -> None:
        """The end of an episode: its score, and log π_ref of all the agent's tokens by one plain forward."""
        self.check(infos["finish_reason"][row] == reason, f"slot {row}: {infos['finish_reason'][row]}, not {reason}")
        self.check(infos["response_length"][row] == sum(slot.mask), f"response_length of slot {row}")
        scored = "_score" in infos and bool(infos["_score"][row])
        self.check(scored == (reason != "failed"), f"slot {row} ended by {reason}, scored {scored}")
        own = [self.lm.tokenizer.decode(turn, skip_special_tokens=True) for turn in slot.turns]
        if scored and not any("\ufffd" in text for text in own):
            own[-1] = own[-1].partition("#")[0] if self.arguments["stop_strings"] else own[-1]
            wanted = score_of("".join(own)) + slot.paid
            self.check(abs(infos["score"][row] - wanted) < 1e-9, f"slot {row}: {infos['score'][row]}, not {wanted}")
        if slot.ref_log_probs:
            gap = np.abs(np.array(slot.ref_log_probs) - self.plain_log_probs(slot)).max()
            self.check(gap < TOLERANCE, f"slot {row}: log π_ref is off by {gap}")
        self.ends[reason] += 1
        self.slots[row] = None

    @torch.no_grad()
    def plain_log_probs(self, slot: Dialogue) -> np.ndarray:
        """log π_ref of the agent's tokens by a forward of the whole: no padding, no memory."""
        logits = self.lm.model(torch.tensor([slot.tokens])).logits[0, :, : self.lm.vocab_size].double()
        log_probs = (logits / self.arguments["temperature"]).log_softmax(-1)
        places = np.flatnonzero(slot.mask)
        return log_probs[places - 1, [slot.tokens[place] for place in places]].numpy()


def fuzz(settings: Settings) -> Iterator[dict[str, Any]]:
    """One record per environment drawn."""
    done, number = 0, 0
    while done < settings.turns:
        begin = time.perf_counter()
        play = Play(np.random.default_rng([settings.seed, number]))
        while play.turns < min(settings.per_env, settings.turns - done):
            play.step()
        done, number = done + play.turns, number + 1
        play.env.close()
        yield {"benchmark": "fuzz_dialogues", "seed": settings.seed, "env": number - 1, "turns": play.turns,
               "total": done, "ends": dict(play.ends), "steps_after_loading": play.compared,
               "seconds": round(time.perf_counter() - begin, 1), "arguments": play.arguments}  # fmt: skip


def main() -> None:
    """See the module's docstring."""
    warnings.simplefilter("ignore", UserWarning)  # that prompts are cut and the environment fails is on purpose
    torch.set_num_threads(1)
    settings = tyro.cli(Settings)
    records = keep(fuzz(settings), settings.out)
    ends: Counter[str] = sum((Counter(record["ends"]) for record in records), Counter())
    print(f"{sum(r['turns'] for r in records):,} turns, {len(records)} environments, ends {dict(ends)}: no violation")


if __name__ == "__main__":
    main()
