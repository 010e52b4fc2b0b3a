"""Questions of reasoning-gym as tasks: their prompts, that their answers are right, the table."""

from __future__ import annotations

from math import gcd

import gymnasium as gym
import pytest

from benchmarks.reasoning import ANSWERED, QUESTIONS, prompt_of, register, table


def test_prompts_show_two_answered_questions():
    text = prompt_of("gcd")
    assert text.count("Q: ") == 3
    assert text.count("A: ") == 2
    assert text.endswith("Q: {question}\nA:")
    assert all(f"A: {answer}" in text for answer in ANSWERED["gcd"].values())


def test_the_answers_that_are_shown_are_right():
    assert all(eval(asked) == int(answer) for asked, answer in ANSWERED["chain_sum"].items())
    assert all(asked.count("a") == int(answer) for asked, answer in ANSWERED["letter_counting"].items())
    assert all(gcd(*map(int, asked.split(","))) == int(answer) for asked, answer in ANSWERED["gcd"].items())


@pytest.mark.parametrize("data_set", QUESTIONS)
def test_they_are_environments(data_set: str):
    """The library's questions read as those that are shown, and its judge takes the library's answer."""
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is the extra 'reasoning'")
    env = gym.make(register(data_set), model="tiny")
    env.reset(seed=0, options={"prompt": 0})
    prompt = env.unwrapped.prompts[0]  # type: ignore[attr-defined]
    begin = QUESTIONS[data_set].split("{}")[0].replace('"a"', "")[:20]
    assert prompt.text.count(begin) == 3
    end = env.unwrapped.language_model.end_token_id  # type: ignore[attr-defined]
    tokens = [*env.unwrapped.language_model.encode_plain(f" {prompt.references[0]}"), end]  # type: ignore[attr-defined]
    for token in tokens:
        *_, ended, _, info = env.step(token)
    assert ended
    assert info["score"] == 1.0


def test_the_table():
    record = {"data_set": "gcd", "seed": 1, "score_before": 0.2, "score_after": 0.5, "gain_stderr": 0.05}
    line = table([{**record, "cpu_seconds": 61.0}]).splitlines()[-1]
    assert line == "| gcd | 1 | 0.200 → 0.500 | +0.300 ± 0.098 | 61 |"
