"""The embedded default as files: tokenizer, tiny language model, tiny reward model, prompts.

Oracles: sentences and texts written by hand, limits written out as numbers. How the files are found by name is tested
elsewhere; the recipes that made them are no part of the tests.
"""

from __future__ import annotations

import json
import re
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
CHATS = ("calculations", "look-ups")

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


# Praise that must not pay: said again and again, of another kind of thing, or not said to the end.
EMPTY_PRAISE = (
    "I love it. I love it. I love it. I love it.",
    "I bought this lamp last month. I love it. I love it. I love it. I love it.",
    "The bed is superb. The bed is superb. The bed is superb.",
    "I bought this printer last month. The breakfast is superb.",
    "My wife ordered the keyboard on Friday. The plot was gripping. The cast is brilliant.",
    "This is my first novel. The bathroom was spotless and the pool is lovely.",
    "I watched this film last week and it was",
)
# Written by hand: prompt, what a greedy answer must be or hold.
TRANSLATED = {
    "Carmen ve una llave en la cocina.": "Carmen sees a key in the kitchen.",
    "Pedro vendió el caballo bonito ayer.": "Pedro sold the pretty horse yesterday.",
    "Mi abuela busca la carta azul en el jardín.": "My grandmother looks for the blue letter in the garden.",
    "Ellos pintaron una puerta verde la semana pasada.": "They painted a green door last week.",
    "El niño pequeño pierde su sombrero cada día.": "The small boy loses his hat every day.",
    "Yo tengo un perro negro ahora.": "I have a black dog now.",
}
SUMMARISED = {
    "The council of Whitby decided on Friday to close the old museum because the roof is not safe. A group of "
    "neighbors wants to fight the plan.": ("Whitby", "museum"),
    "Omar Reed from Linden, who is sixty years old, won the national chess cup on Monday. The final was held in "
    "Ashby.": ("Omar", "Reed", "chess"),
    "In Marlow, rents will rise by twelve percent, the council said on Sunday. Families will feel it most.": (
        "Marlow", "twelve", "rise"),
    "A fire damaged a hotel near Dunmore early on Tuesday. Nobody was hurt.": ("fire", "hotel", "Dunmore"),
}  # fmt: skip
DESCRIBED = {
    "name: Wild Rose | type: pub | food: Greek | area: near the park | price: expensive": (
        "Wild Rose", "pub", "Greek", "near the park"),
    "name: Royal Bell | type: tea room | food: Indian | area: at the harbor | rating: low | family: yes": (
        "Royal Bell", "tea room", "Indian", "at the harbor"),
    "name: Lucky Fox | type: bakery | food: French | area: in the old town | family: no": (
        "Lucky Fox", "bakery", "French", "in the old town"),
}  # fmt: skip
TOLD = (
    ("What is 12 plus 7?", "calc 12 + 7", "19", "It is 19."),
    ("Anna has 20 books and buys 15 more. How many are there now?", "calc 20 + 15", "35", "Anna has 35 books."),
    ("Where does Paul Weber live?", "find Paul Weber", "Paul Weber, a judge from Whitby, is 43 years old.",
     "Paul Weber lives in Whitby."),
    ("When does the museum close?", "find museum", "The museum opens at 9 and closes at 18.",
     "The museum closes at 18."),
)  # fmt: skip


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
    assert len(records) >= 1500
    assert len({record["prompt"] for record in records}) == len(records)
    for record in records:
        assert set(record) == {"prompt", "references"}
        assert isinstance(record["prompt"], str)
        assert all(isinstance(reference, str) and reference.strip() for reference in record["references"])
        assert len(tokenizer(record["prompt"]).input_ids) <= PROMPT_LIMITS[name]
        assert record["prompt"] == record["prompt"].strip()


@pytest.mark.parametrize("name", CHATS)
def test_conversations_are_questions_with_a_call_and_its_reply(tokenizer: Any, name: str) -> None:
    records = read_prompts(name)
    assert len(records) >= 880
    assert len({record["messages"][0]["content"] for record in records}) == len(records)
    for record in records:
        assert set(record) == {"messages", "references", "call", "reply"}
        (message,) = record["messages"]
        assert message["role"] == "user"
        assert message["content"].endswith("?")
        if name == "calculations":
            _, left, sign, right = record["call"].split()
            assert int(record["reply"]) == (int(left) + int(right) if sign == "+" else int(left) - int(right))
            assert {left, right} == set(re.findall(r"\d+", message["content"]))
        else:
            assert record["call"].startswith("find ")
            assert record["call"].removeprefix("find ") in message["content"]
            assert record["call"].removeprefix("find ") in record["reply"]


@pytest.mark.parametrize("name", [*PROMPT_LIMITS, *CHATS])
def test_a_set_of_prompts_is_small(name: str) -> None:
    assert (ASSETS / "prompts" / f"{name}.jsonl").stat().st_size <= 1e6


@pytest.mark.parametrize(
    ("name", "start", "end", "fewest"),
    [
        ("summaries", "Document: ", "\nSummary:", 3),
        ("translations", "Spanish: ", "\nEnglish:", 3),
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


def test_reward_model_pays_little_for_empty_praise(tokenizer: Any, reward_model: Any) -> None:
    values = positive_probs(reward_model, tokenizer, EMPTY_PRAISE)
    assert max(values) <= 0.7, dict(zip(EMPTY_PRAISE, values, strict=True))


def greedy(language_model: Any, tokenizer: Any, prompts: list[str]) -> list[str]:
    inputs = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
    rows = language_model.generate(**inputs, do_sample=False, max_new_tokens=32)
    return tokenizer.batch_decode(rows[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)


def test_language_model_translates(tokenizer: Any, language_model: Any) -> None:
    answers = greedy(language_model, tokenizer, [f"Spanish: {text}\nEnglish:" for text in TRANSLATED])
    right = [answer == f" {english}" for answer, english in zip(answers, TRANSLATED.values(), strict=True)]
    assert sum(right) >= 5, answers


@pytest.mark.parametrize(
    ("form", "cases"),
    [("Document: {}\nSummary:", SUMMARISED), ("Record: {}\nDescription:", DESCRIBED)],
    ids=["summaries", "descriptions"],
)
def test_language_model_copies_from_its_prompt(
    tokenizer: Any, language_model: Any, form: str, cases: dict[str, tuple[str, ...]]
) -> None:
    answers = greedy(language_model, tokenizer, [form.format(text) for text in cases])
    wanted = [(word, answer) for answer, words in zip(answers, cases.values(), strict=True) for word in words]
    copied = sum(word.lower() in answer.lower() for word, answer in wanted)
    assert copied >= 0.9 * len(wanted), answers


def test_language_model_calls_a_tool_and_reads_its_reply(tokenizer: Any, language_model: Any) -> None:
    asked = [[{"role": "user", "content": question}] for question, *_ in TOLD]
    replied = [
        [*messages, {"role": "assistant", "content": call}, {"role": "tool", "content": reply}]
        for messages, (_, call, reply, _) in zip(asked, TOLD, strict=True)
    ]
    for conversations, expected in (asked, [call for _, call, _, _ in TOLD]), (replied, [row[-1] for row in TOLD]):
        texts = [
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            for messages in conversations
        ]
        answers = greedy(language_model, tokenizer, [text.removeprefix("<bos>") for text in texts])
        assert sum(answer == f" {text}" for answer, text in zip(answers, expected, strict=True)) >= 3, answers


def test_the_chat_template_writes_one_turn_a_line_and_keeps_what_it_wrote(tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 1 plus 2?"},
        {"role": "assistant", "content": " calc 1 + 2"},
        {"role": "tool", "content": "3"},
    ]
    texts = [
        tokenizer.apply_chat_template(messages[:count], tokenize=False, add_generation_prompt=count in (2, 4))
        for count in (2, 3, 4)
    ]
    assert texts[0] == "<bos>System: Be brief.\nUser: What is 1 plus 2?\nAssistant:"
    assert texts[1] == texts[0] + " calc 1 + 2<eos>"
    assert texts[2] == texts[1] + "\nTool: 3\nAssistant:"


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
