"""One small tokenizer of each kind of decoder, whose tokens include pieces of characters wherever the kind has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

MARKS = ["<pad>", "<bos>", "<eos>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = ["▁I", "▁like", "▁cats", "▁and", "▁dogs.", "▁", "a", "b", "s", "é", ".", "▁🙂"]


def _wrap(tokenizer: Tokenizer, template: str | None = "<bos> $A") -> PreTrainedTokenizerFast:
    if template:
        ids = [(mark, MARKS.index(mark)) for mark in MARKS]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    names = dict(zip(("pad_token", "bos_token", "eos_token"), MARKS, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **names)


def _ids(tokens: list[str]) -> dict[str, int]:
    return {token: id_ for id_, token in enumerate(MARKS + tokens)}


def sentencepiece(template: str | None = "<bos> $A") -> PreTrainedTokenizerFast:
    """As Llama 2 and Mistral have it: a space in front of every text, which the decoder takes off; bytes as tokens."""
    merges = [(left, right) for left, right in [("▁", "I"), ("▁", "a")]]
    tokens = [*BYTES, *WORDS, "I", "▁a"]
    tokenizer = Tokenizer(models.BPE(vocab=_ids(tokens), merges=merges, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return _wrap(tokenizer, template)


def metaspace() -> PreTrainedTokenizerFast:
    """As T5 has it."""
    tokenizer = Tokenizer(models.WordLevel(_ids(WORDS), unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _wrap(tokenizer)


def word_piece() -> PreTrainedTokenizerFast:
    """As BERT has it: spaces between words, none before "##s" and full stops."""
    tokens = ["I", "like", "cat", "##s", "and", "dog", ".", "do", "not", "n't", "'", "é"]
    tokenizer = Tokenizer(models.WordPiece(_ids(tokens), unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    return _wrap(tokenizer, "<bos> $A <eos>")


def byte_level(template: str | None = "<bos> $A") -> PreTrainedTokenizerFast:
    """As GPT-2 has it, with some words and halves of characters merged."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "a"), ("Ã", "©"), ("a", "Ã"), ("ð", "Ł")]  # " a", "é", "a" with half an "é", half a "🙂"
    tokenizer = Tokenizer(models.BPE(vocab=_ids(alphabet + ["".join(merge) for merge in merges]), merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _wrap(tokenizer, template)


def word_ends() -> PreTrainedTokenizerFast:
    """As the first GPT has it: tokens that end a word say so."""
    tokenizer = Tokenizer(models.WordLevel(_ids(["I</w>", "like</w>", "cat", "s</w>", ".</w>"]), unk_token="<pad>"))
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    return _wrap(tokenizer)


def no_decoder() -> PreTrainedTokenizerFast:
    """Words with a space between each two."""
    tokenizer = Tokenizer(models.WordLevel(_ids(["I", "like", "cats", "."]), unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return _wrap(tokenizer)


KINDS: dict[str, Callable[..., Any]] = {
    kind.__name__: kind for kind in (sentencepiece, metaspace, word_piece, byte_level, word_ends, no_decoder)
}
