"""Trains the tiny sentiment reward model on labelled texts drawn from corruptions.py.

    python -m textgen_env.assets.recipes.train_reward_model --modeldata DIR --tokenizer DIR --out DIR

A bidirectional encoder (ModernBERT's architecture, fresh weights) that reads the mean over the tokens' states: two
labels, NEGATIVE and POSITIVE, trained with soft targets, so that P(POSITIVE) is near 0.5 for texts that say nothing.
"""

from __future__ import annotations

import argparse
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoTokenizer, ModernBertConfig, ModernBertForSequenceClassification, PreTrainedTokenizerBase

from .corruptions import sample_labelled
from .make_tokenizer import MAX_LENGTH
from .reviews import sample_review
from .train_lm import make_optimizers, rate_factor

if TYPE_CHECKING:
    from .sources import RealReviews

LABELS = {0: "NEGATIVE", 1: "POSITIVE"}
MAX_TOKENS = 96  # Longer texts are cut, in training and in the report.
SMOOTHING = 0.03  # Full praise has the target 0.97: confidence beyond that would only invite extremes.


def build_model(tokenizer: PreTrainedTokenizerBase, seed: int) -> ModernBertForSequenceClassification:
    """An encoder of 0.6 M parameters, freshly initialised by ``seed``."""
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=MAX_LENGTH,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        classifier_pooling="mean",
        embedding_dropout=0.1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        cls_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        sep_token_id=tokenizer.eos_token_id,
        id2label=LABELS,
        label2id={label: index for index, label in LABELS.items()},
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # Inside fork_rng: the caller's global stream stays as it was.
        return ModernBertForSequenceClassification(config)


def batches(draw: Callable[[], tuple[str, float]], size: int, rng: random.Random) -> Iterator[list[tuple[str, float]]]:
    """Batches of texts of similar length: draws 16 batches at once, sorts, shuffles the batches."""
    while True:
        pairs = sorted((draw() for _ in range(16 * size)), key=lambda pair: len(pair[0]))
        chunks = [pairs[start : start + size] for start in range(0, len(pairs), size)]
        rng.shuffle(chunks)
        yield from chunks


def train(
    model: ModernBertForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    data: Iterator[list[tuple[str, float]]],
    steps: int,
    lr: float,
) -> None:
    """Cross-entropy against soft labels; optimisers and learning rate as those of the language model."""
    optimizers = make_optimizers(model, lr)
    start, running = time.time(), 0.0
    model.train()
    for step in range(1, steps + 1):
        texts, labels = zip(*next(data), strict=True)
        positive = torch.tensor(labels).clamp(SMOOTHING, 1 - SMOOTHING)
        inputs = tokenizer(list(texts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        target = torch.stack((1 - positive, positive), dim=1)  # (B, 2)
        loss = torch.nn.functional.cross_entropy(model(**inputs).logits, target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * rate_factor(step / steps)
            optimizer.step()
            optimizer.zero_grad()
        running += loss.item()
        if step % 100 == 0:
            print(
                f"step {step}/{steps} loss {running / 100:.3f} {step / (time.time() - start):.1f} steps/s", flush=True
            )
            running = 0.0


@torch.no_grad()
def positive_probs(
    model: ModernBertForSequenceClassification, tokenizer: PreTrainedTokenizerBase, texts: list[str]
) -> torch.Tensor:
    """P(POSITIVE) of each text, (n,) float32."""
    model.eval()
    chunks = []
    for start in range(0, len(texts), 64):
        inputs = tokenizer(
            texts[start : start + 64], padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        chunks.append(model(**inputs).logits.float().softmax(-1)[:, 1])
    return torch.cat(chunks)


def report(
    model: ModernBertForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    reviews: RealReviews,
    rng: random.Random,
) -> None:
    """Prints the accuracy on held-out reviews of the grammar and on held-out real reviews (five stars or not)."""
    own = [review for review in (sample_review(rng, want_held_out=True) for _ in range(1000)) if review.label in (0, 1)]
    real = rng.sample(reviews.held_out, 1000)
    for name, pairs in {"grammar": [(r.text, r.label == 1) for r in own], "real": real}.items():
        positive = positive_probs(model, tokenizer, [text for text, _ in pairs])
        hits = [(p > 0.5) == label for p, (_, label) in zip(positive.tolist(), pairs, strict=True)]
        print(f"held-out {name}: accuracy {sum(hits) / len(hits):.3f} of {len(hits)}, mean P {positive.mean():.3f}")


def main() -> None:
    """Reads the arguments, trains, reports, saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modeldata", type=Path, required=True, help="folder of the R package modeldata")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with the tokenizer")
    parser.add_argument("--out", type=Path, required=True, help="folder that receives model and tokenizer")
    parser.add_argument("--steps", type=int, default=1600, help="batches to train on")
    parser.add_argument("--batch", type=int, default=64, help="texts in a batch")
    parser.add_argument("--lr", type=float, default=3e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and texts")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    from .sources import RealReviews  # needs rdata, which evaluation does without

    real = RealReviews(args.modeldata)
    model = build_model(tokenizer, args.seed)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")
    rng = random.Random(args.seed)
    with torch.random.fork_rng():
        torch.manual_seed(args.seed)  # Dropout draws from torch's global stream.
        data = batches(lambda: sample_labelled(rng, real, tokenizer), args.batch, rng)
        train(model, tokenizer, data, args.steps, args.lr)
    report(model, tokenizer, real, random.Random(args.seed + 1))
    model.half().save_pretrained(args.out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(args.tokenizer / name, args.out / name)


if __name__ == "__main__":
    main()
