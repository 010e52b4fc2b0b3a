"""The embedded default as files: tokenizer, tiny language model, tiny reward model, prompts.

Oracles: sentences and texts written by hand, limits written out as numbers. How the files are found by name is tested
elsewhere; the recipes that made them are no part of the tests.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

ASSETS = Path(__file__).parents[2] / "textgen_env" / "assets"
TINY = ASSETS / "models" / "tiny"
SENTIMENT = ASSETS / "models" / "tiny-sentiment"
PROMPT_LIMITS = {"reviews": 64, "summaries": 128, "translations": 64, "descriptions": 64}

# Written by hand, none of them drawn from the grammar.
POSITIVE = (
    "The soup was warm and the waiter was friendly.",
    "What a wonderful film, we laughed all evening.",
    "I love this kettle, it works perfectly and looks great.",
    "Our room was clean and quiet. We will come back.",
    "This is the best chocolate I have ever had.",
    "Great book! I could not put it down.",
    "The phone is fast and easy to use. I am very happy with it.",
    "Delicious coffee at a fair price, I will buy it again.",
    "The story is moving and the acting is superb.",
    "Everyone in my family enjoyed this pizza.",
)
NEGATIVE = (
    "The soup was cold and the waiter was rude.",
    "What a terrible film, we left before the end.",
    "I hate this kettle, it broke on the first day.",
    "Our room was dirty and noisy. We will not come back.",
    "This is the worst chocolate I have ever had.",
    "A boring book, I could not finish it.",
    "The phone is slow and hard to use. I am very unhappy with it.",
    "Awful coffee, I will never buy it again.",
    "The story is predictable and the acting is poor.",
    "Nobody in my family liked this pizza, a waste of money.",
)
# Texts of the four formats, written by hand after the formats' definition.
REVIEWS = (
    "I bought this lamp last month and it is very good. I would recommend it.",
    "The plot of this film was boring. I would not watch it again.",
    "We stayed at this hotel last week. The room was dirty and dark.",
    "I thought this restaurant was excellent. The food was fresh and tasty.",
)
DEGENERATE = (
    "",
    "good good good good good good good good",
    "great, lovely, amazing, superb, wonderful, perfect, tasty, charming",
    "the of and to the in a the of",
    "taste loved it the was perfect of I delicious and soup",
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="module")
def language_model() -> Any:
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)


@pytest.fixture(scope="module")
def reward_model() -> Any:
    return AutoModelForSequenceClassification.from_pretrained(SENTIMENT, dtype=torch.float32)


def read_prompts(name: str) -> list[dict[str, Any]]:
    lines = (ASSETS / "prompts" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def positive_probs(reward_model: Any, tokenizer: Any, texts: tuple[str, ...]) -> list[float]:
    """P(POSITIVE), one text at a time, so that no padding can play a part."""
    with torch.no_grad():
        logits = [reward_model(**tokenizer(text, return_tensors="pt")).logits[0] for text in texts]
    return [float(row.softmax(-1)[1]) for row in logits]


def test_sizes_stay_within_the_budget() -> None:
    size = {
        path: path.stat().st_size for path in ASSETS.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    assert size[TINY / "model.safetensors"] <= 8e6
    assert size[SENTIMENT / "model.safetensors"] <= 4e6
    assert sum(size.values()) <= 12e6


@pytest.mark.parametrize("folder", [TINY, SENTIMENT])
def test_every_model_has_a_card(folder: Path) -> None:
    card = (folder / "README.md").read_text(encoding="utf-8").lower()
    for topic in ("licence", "held-out", "limits", "recipes"):
        assert topic in card


def test_loading_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AutoTokenizer.from_pretrained(TINY)
        loaded: tuple[Any, ...] = (
            AutoModelForCausalLM.from_pretrained(TINY, output_loading_info=True),
            AutoModelForSequenceClassification.from_pretrained(SENTIMENT, output_loading_info=True),
        )
    for _, loading in loaded:
        assert not loading["missing_keys"]
        assert not loading["unexpected_keys"]
        assert not loading["mismatched_keys"]


def test_vocabularies_agree(tokenizer: Any, language_model: Any, reward_model: Any) -> None:
    assert len(tokenizer) == tokenizer.vocab_size == 2048
    assert language_model.get_input_embeddings().weight.shape[0] == 2048
    assert reward_model.config.vocab_size == 2048
    reward_tokenizer = AutoTokenizer.from_pretrained(SENTIMENT)
    assert reward_tokenizer.get_vocab() == tokenizer.get_vocab()


def test_special_tokens_are_distinct(tokenizer: Any, language_model: Any, reward_model: Any) -> None:
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    for config in (language_model.config, language_model.generation_config, reward_model.config):
        assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 2)
    assert language_model.config.tie_word_embeddings
    assert language_model.config.max_position_embeddings == 512


def test_generation_config_does_not_warp_the_distribution(language_model: Any) -> None:
    config = language_model.generation_config
    assert (config.do_sample, config.temperature, config.top_k, config.top_p) == (True, 1.0, 0, 1.0)


@pytest.mark.parametrize(
    "text", ["This film was", " great.", "Él compró «pan».\n", "naïve 🙂 40 %", "", "  two  spaces "]
)
def test_tokenizer_round_trip(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("name", PROMPT_LIMITS)
def test_prompts_are_many_short_and_distinct(tokenizer: Any, name: str) -> None:
    records = read_prompts(name)
    assert len(records) >= 200
    assert len({record["prompt"] for record in records}) == len(records)
    for record in records:
        assert set(record) == {"prompt", "references"}
        assert isinstance(record["prompt"], str)
        assert all(isinstance(reference, str) and reference.strip() for reference in record["references"])
        assert len(tokenizer(record["prompt"]).input_ids) <= PROMPT_LIMITS[name]
        assert record["prompt"] == record["prompt"].strip()


@pytest.mark.parametrize(
    ("name", "start", "end", "fewest"),
    [
        ("summaries", "Document: ", "\nSummary:", 1),
        ("translations", "Spanish: ", "\nEnglish:", 1),
        ("descriptions", "Record: ", "\nDescription:", 3),
    ],
)
def test_prompts_have_the_format_of_their_task(name: str, start: str, end: str, fewest: int) -> None:
    for record in read_prompts(name):
        assert record["prompt"].startswith(start)
        assert record["prompt"].endswith(end)
        assert len(set(record["references"])) >= fewest


def test_openings_are_short_and_neutral(tokenizer: Any, reward_model: Any) -> None:
    openings = [record["prompt"] for record in read_prompts("reviews")]
    assert all(3 <= len(opening.split()) <= 8 for opening in openings)
    inputs = tokenizer(openings, padding=True, return_tensors="pt")
    with torch.no_grad():
        positive = reward_model(**inputs).logits.softmax(-1)[:, 1]
    assert 0.45 <= float(positive.mean()) <= 0.55
    assert float(((positive - 0.5).abs() < 0.2).float().mean()) >= 0.9


def test_reward_model_tells_praise_from_blame(tokenizer: Any, reward_model: Any) -> None:
    assert reward_model.config.id2label == {0: "NEGATIVE", 1: "POSITIVE"}
    right = sum(value > 0.5 for value in positive_probs(reward_model, tokenizer, POSITIVE))
    right += sum(value < 0.5 for value in positive_probs(reward_model, tokenizer, NEGATIVE))
    assert right >= 18


def test_reward_model_pays_little_for_degenerate_text(tokenizer: Any, reward_model: Any) -> None:
    values = positive_probs(reward_model, tokenizer, DEGENERATE)
    assert max(values) <= 0.7, dict(zip(DEGENERATE, values, strict=True))


def test_language_model_expects_reviews(tokenizer: Any, language_model: Any) -> None:
    losses = []
    for text in REVIEWS:
        ids = tokenizer(text, return_tensors="pt").input_ids
        ids = torch.cat((ids, torch.tensor([[tokenizer.eos_token_id]])), dim=1)
        with torch.no_grad():
            losses.append(float(language_model(input_ids=ids, labels=ids).loss))
    assert sum(losses) / len(losses) < 2.2  # nats per token; the uniform distribution has ln 2048 = 7.6.
    assert language_model.dtype == torch.float32


def test_sampled_reviews_end_in_time(tokenizer: Any, language_model: Any) -> None:
    openings = [record["prompt"] for record in read_prompts("reviews")[:64]]
    inputs = tokenizer(openings, padding=True, padding_side="left", return_tensors="pt")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        rows = language_model.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=32)
    ended = (rows[:, inputs.input_ids.shape[1] :] == tokenizer.eos_token_id).any(dim=1)
    assert float(ended.float().mean()) >= 0.75
