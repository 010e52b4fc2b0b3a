"""VinePPO beside PPO: the scorers by hand, every token counted, and that it runs."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from benchmarks.report import read
from benchmarks.vine import TASKS, TRAINERS, Counted, Ending, VineSettings, all_told, gain, main
from textgen_env.vector_env import NOOP

PROMPT = "Record: name: Old Fox | type: pub | food: Thai | area: by the river | price: cheap | family: no\nDescription:"


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Old Fox is a pub by the river that serves Thai food. Its prices are low. It is not for families.", 1),
        ("By the river there is a pub called Old Fox with Thai food. Its price range is cheap. No families.", 1),
        ("Old Fox is a pub by the river that serves Thai food. It is not for families.", 0),
        ("Old Fox is a pub by the river that serves Thai food. Its prices are high. It is not for families.", 0),
        ("Old Fox is a pub that serves Thai food. Its prices are low. It is not for families.", 0),
    ],
)
def test_all_told(text: str, score: int):
    assert all_told([text], prompts=[PROMPT]) == [score]


def test_the_ending_alone_counts():
    scorer = Ending(lambda completions: [float(text.count("a")) for text in completions], words=2)
    assert scorer(["a a a b a", "a a b b", "a"], prompts=["", "", ""]) == [1.0, 0.0, 1.0]


def test_tokens_are_counted_slot_by_slot():
    venv = Counted(gym.make_vec("textgen/Sentiment-v0", num_envs=3, autoreset_mode=AutoresetMode.DISABLED))
    venv.reset(seed=1)
    for actions in ([5, 6, 7], [5, NOOP, 7], [NOOP, NOOP, 7]):
        venv.step(np.array(actions))
    assert venv.written == 6


def test_early_gains_count():
    """The mean over the curve, less its beginning."""
    assert gain({"curve": [{"score": 0.5}, {"score": 0.9}, {"score": 0.7}]}) == pytest.approx(0.3)


@pytest.mark.slow
def test_it_runs_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    settings = VineSettings(
        tasks=tuple(TASKS)[:1],
        seeds=(1,),
        tokens=100,
        looks=1,
        prompts=4,
        flags="--episodes 4 --num-envs 4 --minibatch-size 4 --micro-batch-size 4",  # later flags count
        out=tmp_path / "vine.jsonl",
    )
    main(settings)
    main(settings)
    records = read([tmp_path / "vine.jsonl"])
    assert [record["trainer"] for record in records] == list(TRAINERS)
    assert all(record["curve"][-1]["tokens"] >= 100 for record in records)
    assert "score by tokens" in capsys.readouterr().out
