"""Trains the byte-level BPE tokenizer that both embedded models share.

python -m textgen_env.assets.recipes.make_tokenizer --modeldata DIR --sword DIR --out DIR
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from .corpus import Corpus

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")  # Their positions are their ids.
VOCAB_SIZE = 2048
MAX_LENGTH = 512


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Trains a BPE over bytes; it puts BOS in front of each text, EOS is written by the model alone."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos = SPECIAL_TOKENS[1]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    pad, bos, eos = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        model_max_length=MAX_LENGTH,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def save(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Saves the tokenizer under the class name that transformers 4 and 5 both know."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("backend", None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Reads the arguments, draws texts, trains, saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modeldata", type=Path, required=True, help="folder of the R package modeldata")
    parser.add_argument("--sword", type=Path, required=True, help="SWORD folder with mods.d and modules")
    parser.add_argument("--out", type=Path, required=True, help="folder to save the tokenizer into")
    parser.add_argument("--texts", type=int, default=60_000, help="how many texts to learn from")
    parser.add_argument("--seed", type=int, default=0, help="seed of the texts")
    args = parser.parse_args()
    stream = Corpus(args.modeldata, args.sword).stream(random.Random(args.seed))
    texts = [text.prompt + text.response for text in itertools.islice(stream, args.texts)]
    tokenizer = train_tokenizer(texts)
    save(tokenizer, args.out)
    print(f"{len(tokenizer)} tokens, {sum(len(tokenizer(t).input_ids) for t in texts[:5000]) / 5000:.1f} per text")


if __name__ == "__main__":
    main()
