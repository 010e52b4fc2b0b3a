"""The command that judges policies: its numbers against plain forward passes, its file, what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from small_run import write_prompts
from transformers import AutoModelForCausalLM, AutoTokenizer

from textgen_env.agents.evaluate import EvaluateSettings, Judgement

LENGTH = '{"name": "length", "target": 3}'


def settings(model: Path, tmp_path: Path, **more: Any) -> EvaluateSettings:
    given = {
        "env": "textgen/TextGen-v0",
        "model": str(model),
        "prompts": str(write_prompts(tmp_path / "prompts.jsonl")),
        "scorer": LENGTH,
        "max_new_tokens": 5,
        "max_prompt_tokens": 4,
        "num_envs": 4,
        "eval_prompts": 6,
        "samples": 4,
        "best_of": (2, 4),
    }
    return EvaluateSettings(**{**given, **more})


def quiet() -> Console:
    return Console(quiet=True)


@pytest.fixture(scope="module")
def other_model(word_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same tokens with other weights."""
    path = tmp_path_factory.mktemp("models") / "other"
    model = AutoModelForCausalLM.from_pretrained(word_model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        model.lm_head.weight.add_(0.2 * torch.randn(model.lm_head.weight.shape, generator=generator))
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(word_model).save_pretrained(path)
    return path


@torch.no_grad()
def plain_log_prob(folder: Path, prompt: str, response: list[int]) -> float:
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    start = tokenizer(prompt)["input_ids"]
    logits = model(torch.tensor([start + response])).logits[0].double().log_softmax(-1)
    return float(sum(logits[len(start) + i - 1, token] for i, token in enumerate(response)))


def test_numbers_against_plain_forward_passes(word_model: Path, other_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    Judgement(settings(word_model, tmp_path, policy=str(other_model), output=str(output)), quiet()).execute()
    written = json.loads(output.read_text())
    sampled, greedy = (written["responses"]["policy"][way] for way in ("sampled", "greedy"))
    assert (len(sampled), len(greedy)) == (24, 6)
    assert [row["prompt"] for row in sampled[::4]] == [row["prompt"] for row in greedy]
    for row in (*sampled[:8], *greedy):
        told = row["prompt"], row["token_ids"]
        ours, ref = plain_log_prob(other_model, *told), plain_log_prob(word_model, *told)
        assert row["ref_log_prob"] == pytest.approx(ref, abs=1e-4)
        assert row["kl"] == pytest.approx(-ref if row in greedy else ours - ref, abs=1e-4)
    (metrics,) = written["metrics"].values()
    assert list(metrics) == ["greedy", "sampled", "best of 2", "best of 4"]
    scores = [row["score"] for row in sampled]
    assert metrics["sampled"]["score"]["value"] == pytest.approx(sum(scores) / 24)
    best = [max(scores[at : at + 4]) for at in range(0, 24, 4)]
    assert metrics["best of 4"]["score"]["value"] == pytest.approx(sum(best) / 6)
    for way in metrics.values():
        for name, estimate in way.items():
            assert estimate["low"] <= estimate["value"] <= estimate["high"], name


def test_greedy_is_the_likeliest_token(word_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    Judgement(settings(word_model, tmp_path, output=str(output)), quiet()).execute()
    tokenizer, model = (
        AutoTokenizer.from_pretrained(word_model),
        AutoModelForCausalLM.from_pretrained(word_model).eval(),
    )
    for row in json.loads(output.read_text())["responses"]["policy"]["greedy"]:
        ids = tokenizer(row["prompt"], return_tensors="pt")
        written = model.generate(**ids, max_new_tokens=5, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert row["token_ids"] == written.tolist()


def test_a_policy_beside_another(word_model: Path, other_model: Path, tmp_path: Path) -> None:
    run = settings(word_model, tmp_path, policy=str(other_model), against=str(word_model), judge=LENGTH)
    ours, theirs, both = Judgement(run, quiet()).execute().values()
    for way in ours:
        assert both[way]["score"].value == pytest.approx(ours[way]["score"].value - theirs[way]["score"].value)
        assert both[way]["judge"].value == pytest.approx(ours[way]["judge"].value - theirs[way]["judge"].value)
    assert theirs["sampled"]["kl_per_response"].value == pytest.approx(0.0, abs=1e-5)
    itself = settings(word_model, tmp_path, policy=str(word_model), against=str(word_model))
    equal = list(Judgement(itself, quiet()).execute().values())[-1]
    assert {way["win_rate"].value for way in equal.values()} == {0.5}


def test_the_judge_is_asked_as_an_environment_asks(word_model: Path, tmp_path: Path) -> None:
    """With the task's scorer as judge both say the same, of greedy and sampled responses."""
    found = Judgement(settings(word_model, tmp_path, judge=LENGTH), quiet()).execute()
    (metrics,) = found.values()
    for way in metrics.values():
        assert way["judge"] == pytest.approx(way["score"])  # a rollout's scores are float32


def test_what_is_wrong_is_named(word_model: Path, tmp_path: Path) -> None:
    for best_of in ((5,), (0,), (2.0,)):
        with pytest.raises(ValueError, match=r"best_of=.* must hold whole numbers from 1 to samples=4"):
            settings(word_model, tmp_path, best_of=best_of)
    with pytest.raises(ValueError, match=r"policy='tiny' must have the tokens of model="):
        Judgement(settings(word_model, tmp_path, policy="tiny"), quiet())
    with pytest.raises(FileNotFoundError, match="against"):
        Judgement(settings(word_model, tmp_path, against="no/such/folder"), quiet())
    with pytest.raises(ValueError, match="judge='{' begins like JSON"):
        Judgement(settings(word_model, tmp_path, judge="{"), quiet())


def test_the_command(word_model: Path, tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl")
    flags = ["--env", "textgen/TextGen-v0", "--model", str(word_model), "--prompts", str(prompts), "--scorer", LENGTH]
    flags += ["--max-new-tokens", "5", "--max-prompt-tokens", "4", "--eval-prompts", "6", "--samples", "2"]
    command = [sys.executable, "-m", "textgen_env.agents.evaluate", *flags, "--best-of"]
    shown = subprocess.run([*command, "2"], capture_output=True, text=True, check=True).stdout
    assert "best of 2" in shown
    assert "KL, nats per response" in shown
    refused = subprocess.run([*command, "3"], capture_output=True, text=True)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "best_of=(3,) must hold whole numbers from 1 to samples=2" in refused.stderr
