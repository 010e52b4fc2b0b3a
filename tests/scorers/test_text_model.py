"""Models of scorers: batches give what texts get alone, limits of positions, empty texts, and loading at the start.

The oracle throughout is the library's own model on one text by itself, without padding.
"""

from __future__ import annotations

import copy
import logging
import pickle
import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from tiny_models import byte_tokenizer, random_model, save_model
from tokenizers import processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    CTRLConfig,
    CTRLForSequenceClassification,
    FNetConfig,
    FNetForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    OPTConfig,
    OPTForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForSequenceClassification,
    RobertaConfig,
    RobertaForCausalLM,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from textgen_env.lm.language_model import LanguageModel
from textgen_env.scorers import call_scorer, get_scorer
from textgen_env.scorers.text_model import TextModel

PAD, BOS, EOS = range(3)
POSITIONS = 64
TEXTS = ["Good.", "A much longer text it is, no?", "It ends<eos>", "padded<pad>", "<eos>", "both<eos><eos>", "", "x"]
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
}
SMALL_GPT: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS}
CLASSIFIERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaForSequenceClassification, LlamaConfig, {**SIZES, "num_key_value_heads": 2}),
    "qwen2": (Qwen2ForSequenceClassification, Qwen2Config, {**SIZES, "num_key_value_heads": 2}),
    "gpt2": (GPT2ForSequenceClassification, GPT2Config, SMALL_GPT),
    "opt": (OPTForSequenceClassification, OPTConfig, {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "ctrl": (CTRLForSequenceClassification, CTRLConfig, {**SMALL_GPT, "dff": 48}),
    "bert": (BertForSequenceClassification, BertConfig, SIZES),
    "roberta": (RobertaForSequenceClassification, RobertaConfig, SIZES),
    "fnet": (FNetForSequenceClassification, FNetConfig, {**SIZES, "use_tpu_fourier_optimizations": False}),
    "xlnet": (XLNetForSequenceClassification, XLNetConfig, {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}),
}


def classifier(kind: str, pad: int | None = PAD, labels: int = 1, **more: Any) -> Any:
    """A random sequence classifier; `pad` is its configuration's padding."""
    model, config, sizes = CLASSIFIERS[kind]
    ids = {"pad_token_id": pad, "bos_token_id": BOS, "eos_token_id": EOS}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = config(**{**sizes, **ids, "vocab_size": 264, "num_labels": labels, "initializer_range": 0.3, **more})
        return model(made).eval()


def tokenizer(pad: str | None = "<pad>", *, special: bool = True, side: str = "right") -> PreTrainedTokenizerFast:
    """The byte tokenizer with another padding, or without a BOS in front."""
    backend = byte_tokenizer().backend_tokenizer
    if not special:
        backend.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    names = {"bos_token": "<bos>", "eos_token": "<eos>", **({"pad_token": pad} if pad else {})}
    return PreTrainedTokenizerFast(tokenizer_object=backend, padding_side=side, **names)


def alone(model: Any, ids: list[int]) -> list[float]:
    """The logits of one text by itself."""
    with torch.no_grad():
        batch = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        return model(**batch).logits[0].tolist()


def scores(model: Any, reader: Any, texts: list[str] = TEXTS, **settings: Any) -> list[float]:
    live = TextModel.from_modules("classifier", model, reader)
    scorer = get_scorer(
        "classifier", **{"model": live, "label": 0, "output": "logit", "text": "completion", **settings}
    )
    return call_scorer(scorer, texts, prompts=[""] * len(texts))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "ctrl"])
@pytest.mark.parametrize(
    ("model_pad", "tokenizer_pad"),
    [(None, "<pad>"), (None, None), (None, "<eos>"), (EOS, "<pad>"), (EOS, "<eos>"), (PAD, "<eos>"), (5, "<pad>")],
)
def test_a_score_does_not_depend_on_its_neighbours(kind: str, model_pad: int | None, tokenizer_pad: str | None) -> None:
    for labels, side in ((1, "left"), (3, "right")):
        model, reader = classifier(kind, model_pad, labels), tokenizer(tokenizer_pad, side=side)
        expected = [alone(model, reader(text).input_ids)[0] for text in TEXTS]
        assert scores(model, reader) == pytest.approx(expected, abs=1e-5)
        assert scores(model, reader, TEXTS[::-1]) == pytest.approx(expected[::-1], abs=1e-5)


@pytest.mark.parametrize("kind", ["bert", "roberta", "fnet", "xlnet"])
def test_encoders_that_no_padding_may_touch(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """FNet mixes padding into every state, and XLNet reads the last column: they are run text by text."""
    model, reader = classifier(kind), tokenizer()
    expected = [alone(model, reader(text).input_ids)[0] for text in TEXTS]
    assert scores(model, reader) == pytest.approx(expected, abs=1e-5)
    assert ("one by one" in caplog.text) == (kind in ("fnet", "xlnet"))


def test_labels_that_do_not_exclude_each_other() -> None:
    model, reader = classifier("bert", labels=3, problem_type="multi_label_classification"), tokenizer()
    logits = torch.tensor([alone(model, reader(text).input_ids) for text in TEXTS])
    assert scores(model, reader, label=2, output="probability") == pytest.approx(logits[:, 2].sigmoid().tolist())


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "opt", "llama"])
def test_texts_are_cut_to_the_positions_of_the_model(kind: str) -> None:
    """RoBERTa keeps the rows up to its padding, so that 64 rows number 63 tokens; OPT has two more than it says."""
    model, reader = classifier(kind), tokenizer(special=False)
    text = "".join(chr(97 + i % 26) for i in range(200))
    ids = reader(text).input_ids
    [score, short] = scores(model, reader, [text, "x"])
    assert score == pytest.approx(alone(model, ids[-(63 if kind == "roberta" else 64) :])[0], abs=1e-5)
    assert short == pytest.approx(alone(model, reader("x").input_ids)[0], abs=1e-5)


@pytest.mark.parametrize("offset", [False, True])
def test_fluency_is_cut_to_the_positions_of_the_model(offset: bool) -> None:
    ids: dict[str, Any] = {"vocab_size": 264, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
    model: Any = (
        RobertaForCausalLM(RobertaConfig(**SIZES, **ids, is_decoder=True))
        if offset
        else GPT2LMHeadModel(GPT2Config(**SMALL_GPT, **ids))
    ).eval()
    reader = tokenizer(special=False)
    scorer = get_scorer("fluency", model=LanguageModel.from_modules(model, reader))
    text, prompt = "abcde", "".join(chr(97 + i % 26) for i in range(200))
    tokens = reader(prompt + text).input_ids[-(63 if offset else 64) :]
    with torch.no_grad():
        log_probs = model(torch.tensor([tokens])).logits[0, :-1, : len(reader)].log_softmax(-1)
    expected = sum(float(log_probs[t - 1, tokens[t]]) for t in range(len(tokens) - 5, len(tokens))) / 5
    assert call_scorer(scorer, [text, ""], prompts=[prompt, ""])[0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_text_without_tokens_is_read_as_a_bos(kind: str) -> None:
    model, reader = classifier(kind), tokenizer(special=False)
    empty = alone(model, [BOS])[0]
    assert scores(model, reader, [""]) == pytest.approx([empty], abs=1e-5)
    beside = scores(model, reader, ["abc", "", "de"])
    assert beside[1] == pytest.approx(empty, abs=1e-5)
    assert beside[0] == pytest.approx(alone(model, reader("abc").input_ids)[0], abs=1e-5)


def test_tokens_beyond_the_embedding_are_named() -> None:
    model, reader = classifier("gpt2"), tokenizer()
    reader.add_tokens([f"<new{i}>" for i in range(10)])
    with pytest.raises(Exception, match=re.escape("token 268 ('<new9>') is beyond the 264 embeddings")):
        scores(model, reader, ["a<new9>"])


def test_a_live_tokenizer_is_left_alone() -> None:
    reader = tokenizer(None)
    model = classifier("gpt2", None)
    scores(model, reader, ["a"])
    assert (reader.truncation_side, reader.pad_token, model.config.pad_token_id) == ("right", None, None)


# --- what is refused, and when ----------------------------------------------------------------------------------------


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def make(scorer: Any) -> Any:
    return gym.make("textgen/TextGen-v0", model="tiny", prompts=["a"], scorer=scorer)


def test_what_is_no_classifier_is_refused_at_once(tmp_path: Path) -> None:
    for model, message in (
        (random_model("llama", 259), "holds a LlamaForCausalLM"),
        (BertModel(BertConfig(**SIZES, vocab_size=264)), r"holds a BertModel .* no head"),
    ):
        folder = saved(model, tmp_path / type(model).__name__)
        with pytest.raises(ValueError, match=f"classifier: model: .*{message}.*a sequence classifier or reward model"):
            get_scorer("classifier", model=folder)
    with pytest.raises(TypeError, match=r"got a live .*; write TextModel\.from_modules\('classifier'"):
        get_scorer("classifier", model=classifier("gpt2"))
    with pytest.raises(FileNotFoundError, match="similarity: model: unknown name 'nope'"):
        get_scorer("similarity", model="nope")
    with pytest.raises(FileNotFoundError, match="fluency: model: unknown name 'nope'"):
        get_scorer("fluency", model="nope")
    with pytest.raises(ValueError, match="for the task 'classifier', got one for 'encoder'"):
        get_scorer("classifier", model=TextModel("encoder", "tiny"))
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 4, "vocab_size": 264}
    t5 = saved(T5ForConditionalGeneration(T5Config(**sizes)), tmp_path / "t5")
    with pytest.raises(ValueError, match="similarity: model: .* is an encoder–decoder"):
        get_scorer("similarity", model=t5)


@pytest.mark.parametrize(
    "settings",
    [{"max_length": 0}, {"batch_size": 1.5}, {"max_length": True}, {"dtype": "int3"}, {"device": "tpu9"}],
)
@pytest.mark.parametrize("name", ["sentiment", "fluency"])
def test_settings_out_of_range(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        get_scorer(name, **settings)


def test_a_random_head_is_refused_when_an_environment_is_made(tmp_path: Path) -> None:
    """A causal model whose configuration calls it a reward model: the head would be random."""
    model = random_model("llama", 259)
    folder = saved(model, tmp_path / "fake")
    config = folder / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "LlamaForSequenceClassification"))
    spec = {"name": "classifier", "model": str(folder), "label": 0}
    for scorer in (spec, {"sum": {"a": spec, "b": "distinct"}}, {"name": "clip", "scorer": spec, "high": 1.0}):
        with pytest.raises(ValueError, match=r"1 missing \(score\.weight\)"):
            make(scorer)
    make({**spec, "strict": False}).close()


def test_an_encoder_needs_its_body_and_no_more(tmp_path: Path) -> None:
    masked = saved(BertForMaskedLM(BertConfig(**SIZES, vocab_size=264)), tmp_path / "masked")
    assert isinstance(TextModel("encoder", masked).model, BertModel)
    deeper = saved(BertForMaskedLM(BertConfig(**{**SIZES, "num_hidden_layers": 3}, vocab_size=264)), tmp_path / "3")
    BertConfig(**SIZES, vocab_size=264).save_pretrained(deeper)
    with pytest.raises(ValueError, match=r"16 unexpected \(bert\.encoder\.layer\.2"):
        TextModel("encoder", deeper).load_models()


class Bomb:
    """Pickled, it breaks whatever reads it."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("a pickle was read",)


@pytest.mark.parametrize("name", ["classifier", "similarity", "fluency"])
def test_pickled_weights_are_refused_unread(name: str, tmp_path: Path) -> None:
    folder = Path(save_model(tmp_path) if name == "fluency" else saved(classifier("bert"), tmp_path))
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="pickled weights"):
        get_scorer(name, model=folder)


def test_making_an_environment_loads_the_scorer_and_says_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    env = make("sentiment")
    assert caplog.text == ""
    assert env.unwrapped.scorer.model._batched is not None
    twin = copy.deepcopy(env.unwrapped.scorer)
    assert twin.model._batched is None


def test_special_tokens_leave_room() -> None:
    with pytest.raises(ValueError, match="max_length=1 must exceed the 1 special tokens"):
        get_scorer("sentiment", max_length=1)
