"""The comparison of methods: its rewards that say nothing, its runs, its table."""

from __future__ import annotations

import json
import random
import shlex
from pathlib import Path

import pytest
import torch

from benchmarks.controls import Shuffled, constant
from benchmarks.methods import METHODS, Method, MethodsSettings, measure
from benchmarks.report import methods_table
from textgen_env.agents.dpo import DPOSettings
from textgen_env.agents.grpo import GRPOSettings
from textgen_env.agents.reinforce import ReinforceSettings
from textgen_env.agents.training.command_line import parse
from textgen_env.agents.training.environments import make_environments
from textgen_env.scorers.base import call_scorer, part_names
from textgen_env.scorers.registry import get_scorer

SETTINGS = {"reinforce": ReinforceSettings, "grpo": GRPOSettings, "dpo": DPOSettings}


def number(completions: list[str], **_: object) -> list[float]:
    return [float(text) for text in completions]


def paid(scorer: Shuffled, texts: list[str], sizes: list[int]) -> list[float]:
    """What texts are paid, in calls of these sizes."""
    scores, left = [], list(texts)
    for size in sizes:
        call, left = left[:size], left[size:]
        scores += call_scorer(scorer, call, prompts=[""] * size)
    return scores


def test_shuffled_scores_are_those_of_other_texts():
    """As large and as varied as the true ones, and without any relation, even where texts come one by one."""
    rng = random.Random(0)
    texts = [f"{rng.gauss(3, 2):.4f}" for _ in range(6000)]
    true = torch.tensor([float(text) for text in texts])
    found = torch.tensor(paid(Shuffled(number, seed=1), texts, [1, 2, 3] * 1000))
    assert set(found.tolist()) <= set(true.tolist())
    assert float(found.mean()) == pytest.approx(float(true.mean()), abs=0.2)
    assert float(found.std()) == pytest.approx(float(true.std()), rel=0.1)
    assert abs(float(torch.corrcoef(torch.stack([true, found]))[0, 1])) < 0.05  # 4 standard errors


def test_shuffled_draws_are_the_seeds():
    texts = [str(n) for n in range(100)]
    one, again, other = (paid(Shuffled(number, seed=seed), texts, [10] * 10) for seed in (1, 1, 2))
    assert one == again != other


def test_shuffled_scores_come_from_a_scorer_that_is_fitted_to_the_task():
    """CIDEr does not work without. The environment pays them as a part of another name than the true score."""
    scorer = Shuffled("cider", seed=0)
    references = [["a cat sits on the mat"], ["a dog runs in the park"], ["birds fly over the sea"]]
    scorer.fit_references(references)
    true = get_scorer("cider")
    true.fit_references(references)
    columns = {"prompts": [""] * 2, "references": references[:2]}
    texts = ["a cat sits on a mat", "the dog runs in the park"]
    assert set(call_scorer(scorer, texts, **columns)) <= set(call_scorer(true, texts, **columns))
    assert part_names(scorer) == ("shuffled",)


def test_the_constant_reward_is_one():
    assert call_scorer(constant, ["", "a", "b c"], prompts=[""] * 3) == [0.5] * 3


@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method.name}-{method.task}")
def test_commands_are_those_of_the_trainers(method: Method):
    trainer, *flags = shlex.split(method.command)
    for reward, more in method.rewards(3).items():
        settings = parse(SETTINGS[trainer], trainer, [*flags, *more])
        assert settings.env == f"textgen/{method.task}-v0"
        assert (settings.scorer is None) == (reward == "true" or trainer == "dpo")
    assert make_environments(parse(SETTINGS[trainer], trainer, flags))[1].unwrapped.scorer.name.startswith(
        method.scorer[:5]
    )


SMALL = (
    "--updates 1 --num-envs 8 --episodes 8 --minibatch-size 8 --micro-batch-size 8 --eval-prompts 16 --eval-every None "
    "--optimum-samples 0 --lr 1e-3"
)


def test_runs_are_judged_by_the_tasks_own_scorer_whatever_they_were_paid(tmp_path: Path):
    """BLEU of the embedded model is some .85 on this task; a constant reward pays ½, and RLOO is not moved by it."""
    out = tmp_path / "lines.jsonl"
    method = Method("RLOO", "reinforce", "Translate", "bleu", SMALL)
    records = {record["reward"]: record for record in measure(MethodsSettings(seeds=[1]), [method])}
    assert list(records) == ["true", "constant", "shuffled"]
    assert len({record["score_before"] for record in records.values()}) == 1
    assert records["true"]["score_before"] > 0.6
    assert records["constant"]["gain"] == pytest.approx(0, abs=1e-9)
    assert records["constant"]["kl_per_response"] == pytest.approx(0, abs=1e-9)
    assert records["shuffled"]["kl_per_response"] != records["true"]["kl_per_response"] != 0
    out.write_text("".join(json.dumps(record) + "\n" for record in records.values()))
    assert list(measure(MethodsSettings(seeds=[1], out=out), [method])) == []  # a rerun skips what is there
    assert list(measure(MethodsSettings(seeds=[1], only=["another"]), [method])) == []


def test_table_has_the_mean_and_its_interval_by_students_t():
    """Gains .1, .2 and .3: s = .1, and 4.303·.1/√3 = .248 (97.5 % of Student's t with two degrees of freedom)."""
    base = {"benchmark": "methods", "task": "T", "score_before": 0.5, "kl_per_response": 1.0, "cpu_seconds": 60.0}
    records = [
        {**base, "method": "A", "reward": reward, "seed": seed, "gain": gain, "score_after": 0.5 + gain}
        for reward, gains in {"true": (0.1, 0.2, 0.3), "constant": (0.0, 0.0, 0.0), "shuffled": (-0.1,)}.items()
        for seed, gain in enumerate(gains)
    ]
    records += [{**base, "method": "B", "reward": "true", "seed": 1, "gain": 0.1, "score_after": 0.6}]
    first, second = methods_table(records).splitlines()[2:]
    assert first == "| A | T | 0.500 → 0.700 | +0.200 ± 0.248 | +0.000 ± 0.000 | -0.100 | 1.00 | 60 |"
    assert second == "| B | T | 0.500 → 0.600 | +0.100 | – | – | 1.00 | 60 |"
