"""Makes the byte-level tokenizer that both embedded models share: every word of the grammars is one token.

    python -m textgen_env.assets.recipes.make_tokenizer --out DIR

A small model copies a name most easily when the name is one token. So all words that the grammars write come into the
vocabulary whole (``ignore_merges``: a word that is there is not built from merges); what is left of it goes to merges
over the letters of the same words, so that any other text can be written too.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from .chat import CHAT_TEMPLATE
from .corpus import KINDS, draw

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")  # Their positions are their ids.
VOCAB_SIZE = 2048
MAX_LENGTH = 512


def count_words(texts: int, seed: int) -> Counter[str]:
    """Counts the words, each with the space in front of it, of as many texts of each kind."""
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    counts: Counter[str] = Counter()
    for kind in KINDS:
        rng = random.Random(f"{kind}-{seed}")
        for text in (draw(kind, rng, careless=0.5) for _ in range(texts)):
            for part in (text.prompt, text.response):
                counts.update(word for word, _ in split.pre_tokenize_str(part))
    return counts


def learn_merges(words: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The pieces (the bytes first) and merges of a BPE that has seen each word once."""
    learner = Tokenizer(models.BPE())
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE, initial_alphabet=alphabet, show_progress=False)
    learner.train_from_iterator([[word] for word in words], trainer)
    model = json.loads(learner.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].__getitem__), [tuple(merge) for merge in model["merges"]]


def build_vocabulary(counts: Counter[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Special tokens, bytes, all words by falling frequency, then pieces of words as far as there is room.

    Raises:
        ValueError: the words alone are too many.
    """
    words = sorted(counts, key=lambda word: (-counts[word], word))
    pieces, merges = learn_merges(sorted(words))
    tokens = dict.fromkeys((*SPECIAL_TOKENS, *pieces[:256], *words))
    if len(tokens) > VOCAB_SIZE:
        raise ValueError(
            f"the grammars write {len(words)} words; with bytes that is {len(tokens)} > {VOCAB_SIZE} tokens"
        )
    kept = []
    for left, right in merges:
        if left in tokens and right in tokens and (left + right in tokens or len(tokens) < VOCAB_SIZE):
            tokens.setdefault(left + right)
            kept.append((left, right))
    return {token: index for index, token in enumerate(tokens)}, kept


def build_tokenizer(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> PreTrainedTokenizerFast:
    """Puts BOS in front of each text; EOS is written by the model and by the chat template alone."""
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    pad, bos, eos = SPECIAL_TOKENS
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, vocabulary[bos])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_LENGTH,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def save(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Saves the tokenizer under the class name that transformers 4 and 5 both know, the template in its settings."""
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("backend", None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Reads the arguments, counts words, builds, saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to save the tokenizer into")
    parser.add_argument("--texts", type=int, default=20_000, help="how many texts of each kind to read")
    parser.add_argument("--seed", type=int, default=0, help="seed of the texts")
    args = parser.parse_args()
    counts = count_words(args.texts, args.seed)
    vocabulary, merges = build_vocabulary(counts)
    save(build_tokenizer(vocabulary, merges), args.out)
    print(f"{len(vocabulary)} tokens, {len(counts)} of them words of the grammars, {len(merges)} merges")


if __name__ == "__main__":
    main()
