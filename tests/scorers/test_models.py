"""Scorers that run models, against one plain forward pass per text."""

from __future__ import annotations

import copy
import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2ForSequenceClassification,
)

from textgen_env.assets import model_path
from textgen_env.scorers import call_scorer, get_scorer
from textgen_env.scorers.classifier import Classifier
from textgen_env.scorers.similarity import Similarity
from textgen_env.scorers.text_model import TextModel

TEXTS = ["It was good.", "", " ", "Nein, überhaupt nicht!", "x" * 90, "日本"]
PROMPTS = ["So: ", "p", "", "A longer prompt, for a change. ", "q", "r"]
LABELS = {"id2label": {0: "BAD", 1: "FAIR", 2: "GOOD"}, "label2id": {"BAD": 0, "FAIR": 1, "GOOD": 2}}


def bert_config(**more) -> BertConfig:
    return BertConfig(
        vocab_size=259,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=200,
        initializer_range=0.3,
        pad_token_id=0,
        **more,
    )


def saved(model: torch.nn.Module, tokenizer_of: str, folder) -> str:
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer_of).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def bert(byte_model, tmp_path_factory) -> str:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return saved(
            BertForSequenceClassification(bert_config(num_labels=3, **LABELS)),
            byte_model,
            tmp_path_factory.mktemp("bert"),
        )


@pytest.fixture(scope="module")
def reward_model(byte_model, tmp_path_factory) -> str:
    """A decoder with one logit, read at the last token; its configuration names no padding."""
    config = GPT2Config(vocab_size=259, n_embd=32, n_layer=2, n_head=4, num_labels=1, initializer_range=0.3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return saved(GPT2ForSequenceClassification(config), byte_model, tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def encoder(byte_model, tmp_path_factory) -> str:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return saved(BertModel(bert_config()), byte_model, tmp_path_factory.mktemp("encoder"))


def logits_of(path: str, texts: list[str]) -> torch.Tensor:
    """(n, labels), one text at a time, without padding."""
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(path).eval(),
        AutoTokenizer.from_pretrained(path),
    )
    with torch.no_grad():
        return torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in texts])


def test_classifier_outputs(bert) -> None:
    logits = logits_of(bert, [p + t for p, t in zip(PROMPTS, TEXTS, strict=True)])
    expected = {"logit": logits, "log_probability": logits.log_softmax(-1), "probability": logits.softmax(-1)}
    for output, values in expected.items():
        for label in ("GOOD", 2):
            scorer = get_scorer("classifier", model=bert, label=label, output=output, batch_size=4)
            assert call_scorer(scorer, TEXTS, prompts=PROMPTS) == pytest.approx(values[:, 2].tolist(), abs=1e-5)


def test_reward_model_with_one_logit(reward_model) -> None:
    logits = logits_of(reward_model, TEXTS)[:, 0]
    for output, values in [("logit", logits), ("probability", logits.sigmoid())]:
        scorer = get_scorer("classifier", model=reward_model, text="completion", output=output, batch_size=4)
        assert call_scorer(scorer, TEXTS, prompts=PROMPTS) == pytest.approx(values.tolist(), abs=1e-5)


def test_long_texts_lose_their_beginning(bert) -> None:
    scorer = get_scorer("classifier", model=bert, label=0, output="logit", max_length=10)
    end = "the very end"
    scores = call_scorer(scorer, [end, end], prompts=["one beginning ", "another, much longer beginning " * 20])
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_pairs_and_chats(bert) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bert)
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    model = AutoModelForSequenceClassification.from_pretrained(bert)
    live = TextModel.from_modules("classifier", model, tokenizer)
    chat = Classifier(live, label=1, text="chat")
    ids = tokenizer("[user]Hi?[assistant]Ho!", add_special_tokens=False, return_tensors="pt")
    assert call_scorer(chat, ["Ho!"], prompts=["Hi?"]) == pytest.approx(model(**ids).logits.softmax(-1)[:, 1].tolist())
    conversation = [{"role": "system", "content": "Brief."}, {"role": "user", "content": "Hi?"}]
    both = chat(["Ho!", "Ho!"], prompts=["Hi?", "Hi?"], messages=[conversation, None])
    ids = tokenizer(["[system]Brief.[user]Hi?[assistant]Ho!"], add_special_tokens=False, return_tensors="pt")
    assert both[0] == pytest.approx(model(**ids).logits.softmax(-1)[0, 1].item())
    assert both[1] == pytest.approx(chat(["Ho!"], prompts=["Hi?"])[0])
    assert both[0] != pytest.approx(both[1])
    assert copy.deepcopy(chat)(["Ho!"], prompts=["Hi?"]) == pytest.approx(chat(["Ho!"], prompts=["Hi?"]))
    pair = tokenizer("Hi?", "Ho!", return_tensors="pt")
    expected = model(**pair).logits.softmax(-1)[:, 1].tolist()
    assert call_scorer(Classifier(live, label=1, text="pair"), ["Ho!"], prompts=["Hi?"]) == pytest.approx(expected)


def test_classifier_mistakes(bert) -> None:
    for label in (None, "EXCELLENT", 3):
        with pytest.raises(ValueError, match="BAD, FAIR, GOOD"):
            get_scorer("classifier", model=bert, label=label)
    with pytest.raises(ValueError, match="output"):
        get_scorer("classifier", output="odds")
    with pytest.raises(ValueError, match="text"):
        get_scorer("classifier", text="prompt")
    with pytest.raises(ValueError, match="int3"):
        get_scorer("classifier", dtype="int3")
    with pytest.raises(ValueError, match="batch_size"):
        get_scorer("classifier", batch_size=0)


def test_copies_leave_the_weights_behind(bert) -> None:
    scorer = get_scorer("classifier", model=bert, label="GOOD")
    scores = call_scorer(scorer, TEXTS, prompts=PROMPTS)
    pickled = pickle.dumps(scorer)
    assert len(pickled) < 10_000
    for twin in (pickle.loads(pickled), copy.deepcopy(scorer)):
        assert call_scorer(twin, TEXTS, prompts=PROMPTS) == pytest.approx(scores, abs=1e-6)


def test_threads_share_one_model(bert) -> None:
    scorer = get_scorer("classifier", model=bert, label="GOOD")
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: call_scorer(scorer, TEXTS, prompts=PROMPTS), range(8)))
    assert all(result == pytest.approx(results[0], abs=1e-6) for result in results)


def test_sentiment_tells_praise_from_blame() -> None:
    scorer = get_scorer("sentiment")
    completions = ["great and the waiter was friendly. I loved it.", "cold and the waiter was rude. I hated it.", ""]
    good, bad, empty = call_scorer(scorer, completions, prompts=["The food was "] * 3)
    assert good > 0.8
    assert bad < 0.2
    assert 0 <= empty <= 1
    logits = logits_of(str(model_path("tiny-sentiment")), ["The food was " + completions[0]]).float()
    assert good == pytest.approx(float(logits.softmax(-1)[0, 1]), abs=1e-2)  # its weights are stored in half precision


def embedding(path: str, text: str) -> torch.Tensor:
    """Mean of the last hidden states of one text, without padding."""
    model, tokenizer = BertModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    with torch.no_grad():
        return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def test_similarity(encoder) -> None:
    references = [["It was fine."], ["a", "b c"], [" "], ["No."], ["xxx", "yyy"], ["中国"]]
    for multi, combine in [("best", max), ("mean", lambda values: sum(values) / len(values))]:
        scorer = get_scorer("similarity", model=encoder, multi=multi, batch_size=4)
        expected = [
            combine([cosine(embedding(encoder, text), embedding(encoder, other)) for other in others])
            for text, others in zip(TEXTS, references, strict=True)
        ]
        for _ in range(2):  # the second time with remembered references
            scores = call_scorer(scorer, TEXTS, prompts=PROMPTS, references=references)
            assert scores == pytest.approx(expected, abs=1e-5)


def test_similarity_to_the_prompt(encoder) -> None:
    scorer = Similarity(encoder, against="prompt")
    assert call_scorer(scorer, ["same", "x"], prompts=["same", "y"])[0] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="against"):
        Similarity(encoder, against="nobody")


def test_fluency(byte_model) -> None:
    scorer = get_scorer("fluency", model=byte_model, batch_size=4)
    scores = call_scorer(scorer, TEXTS, prompts=PROMPTS)
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(byte_model).eval(),
        AutoTokenizer.from_pretrained(byte_model),
    )
    for score, prompt, text in zip(scores, PROMPTS, TEXTS, strict=True):
        before = len(tokenizer.encode(prompt))
        ids = torch.tensor([tokenizer.encode(prompt + text)])
        with torch.no_grad():
            log_probs = model(ids).logits[0, :-1, : len(tokenizer)].log_softmax(-1)
        tokens = [float(log_probs[t - 1, ids[0, t]]) for t in range(before, ids.shape[1])]
        expected = sum(tokens) / len(tokens) if tokens else -math.log(len(tokenizer))
        assert score == pytest.approx(expected, abs=1e-4)
    geometric = call_scorer(get_scorer("fluency", model=byte_model, output="probability"), TEXTS, prompts=PROMPTS)
    assert geometric == pytest.approx([math.exp(score) for score in scores], abs=1e-5)


def test_fluency_without_the_prompt(byte_model) -> None:
    alone = get_scorer("fluency", model=byte_model, condition=False)
    score = pytest.approx(call_scorer(alone, ["abc"], prompts=["p"]))
    assert call_scorer(alone, ["abc"], prompts=["something else"]) == score
    assert call_scorer(get_scorer("fluency", model=byte_model), ["abc"], prompts=[""]) == score


def test_fluency_cuts_long_texts(byte_model) -> None:
    scorer = get_scorer("fluency", model=byte_model, max_length=16)
    a, b = call_scorer(scorer, ["abc", "abc"], prompts=["x" * 40, "y" * 30 + "x" * 40])
    assert a == pytest.approx(b, abs=1e-5)
    assert math.isfinite(call_scorer(scorer, ["abc" * 100], prompts=["p"])[0])


def test_spacy(tmp_path) -> None:
    spacy = pytest.importorskip("spacy")
    pipeline = spacy.blank("en")
    pipeline.add_pipe("textcat")
    examples = [("good fine", "POS"), ("bad ugly", "NEG")] * 4
    examples = [
        spacy.training.Example.from_dict(
            pipeline.make_doc(text), {"cats": {"POS": label == "POS", "NEG": label == "NEG"}}
        )
        for text, label in examples
    ]
    optimizer = pipeline.initialize(lambda: examples)
    for _ in range(20):
        pipeline.update(examples, sgd=optimizer)
    pipeline.to_disk(tmp_path / "model")
    scorer = get_scorer("spacy", model=str(tmp_path / "model"))
    scores = call_scorer(scorer, ["good", "bad", ""], prompts=["fine ", "ugly ", ""])
    assert scores == pytest.approx([pipeline(text).cats["POS"] for text in ("fine good", "ugly bad", "")])
    assert scores[0] > 0.5 > scores[1]
    assert call_scorer(pickle.loads(pickle.dumps(scorer)), ["good"], prompts=["fine "]) == pytest.approx(scores[:1])
    with pytest.raises(ValueError, match="label must be one of NEG, POS, got 'OK'"):
        get_scorer("spacy", model=str(tmp_path / "model"), label="OK").load_models()
