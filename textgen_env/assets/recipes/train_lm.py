"""Trains the tiny language model on texts drawn from corpus.py; evaluation by samples lives in evaluate.py.

    python -m textgen_env.assets.recipes.train_lm --modeldata DIR --sword DIR --model DIR --steps 2400

``--model`` holds the tokenizer (make_tokenizer) and receives config and weights. Texts are drawn without end, so
there are no epochs; the same seed, steps and thread count give the same weights.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from .corpus import Corpus, Text
from .make_tokenizer import MAX_LENGTH

PROMPT_WEIGHT = 0.1  # Weight of the loss on what a task gives (documents, records, Spanish), against 1 on responses.


def build_model(tokenizer: PreTrainedTokenizerBase, seed: int) -> LlamaForCausalLM:
    """A Llama of 2.6 M parameters with tied embeddings, freshly initialised by ``seed``."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # Inside fork_rng: the caller's global stream stays as it was.
        return LlamaForCausalLM(config)


def encode(text: Text, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[float]]:
    """Token ids with BOS and EOS, and the loss weight of each; prompt and response are tokenised apart, as in play."""
    prompt = tokenizer(text.prompt).input_ids
    response = tokenizer(text.response, add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
    return prompt + response, [PROMPT_WEIGHT] * len(prompt) + [1.0] * len(response)


def pad_batch(rows: list[tuple[list[int], list[float]]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-pads rows to ids (B, T) int64 and weights (B, T) float32; padding weighs 0."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [pad_id] * (width - len(ids)) for ids, _ in rows])
    weights = torch.tensor([weights + [0.0] * (width - len(weights)) for _, weights in rows])
    return ids, weights


def batches(
    texts: Iterator[Text], tokenizer: PreTrainedTokenizerBase, size: int, rng: random.Random
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Cuts the stream into batches of rows of similar length: draws 32 batches at once, sorts, shuffles the batches."""
    while True:
        rows = sorted((encode(next(texts), tokenizer) for _ in range(32 * size)), key=lambda row: len(row[0]))
        chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
        rng.shuffle(chunks)
        for chunk in chunks:
            yield pad_batch(chunk, tokenizer.pad_token_id)


def weighted_loss(model: LlamaForCausalLM, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats per token, weighted. Right padding needs no mask under causal attention."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()  # (B, T - 1, V)
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    weights = weights[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


@torch.no_grad()
def held_out_losses(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, texts: dict[str, list[Text]]
) -> dict[str, float]:
    """Loss per response token (EOS counts, prompts do not) on held-out texts, by kind."""
    model.eval()
    losses = {}
    for kind, kind_texts in texts.items():
        rows = [encode(text, tokenizer) for text in kind_texts]
        ids, weights = pad_batch(rows, tokenizer.pad_token_id)
        losses[kind] = weighted_loss(model, ids, (weights == 1.0).float()).item()
    model.train()
    return losses


def train(model: LlamaForCausalLM, data: Iterator[tuple[torch.Tensor, torch.Tensor]], steps: int, lr: float) -> None:
    """AdamW; the rate rises for 40 steps, then falls in a line to a hundredth."""
    optimizer = torch.optim.AdamW(model.parameters(), lr, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 40, max(0.01, 1 - step / steps))
    )
    start, tokens = time.time(), 0
    for step in range(1, steps + 1):
        ids, weights = next(data)
        loss = weighted_loss(model, ids, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        tokens += int((weights > 0).sum())
        if step % 50 == 0 or step == steps:
            print(
                f"step {step}/{steps} loss {loss.item():.3f} {tokens / (time.time() - start):.0f} tokens/s", flush=True
            )


def save(model: LlamaForCausalLM, folder: Path) -> None:
    """Saves float16 weights, config and a generation config that samples from the model as it is."""
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=32,
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    model.half().save_pretrained(folder)


def main() -> None:
    """Reads the arguments, trains, reports held-out losses, saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modeldata", type=Path, required=True, help="folder of the R package modeldata")
    parser.add_argument("--sword", type=Path, required=True, help="SWORD folder with mods.d and modules")
    parser.add_argument("--model", type=Path, required=True, help="folder with the tokenizer; receives the model")
    parser.add_argument("--steps", type=int, default=2400, help="batches to train on")
    parser.add_argument("--batch", type=int, default=32, help="texts in a batch")
    parser.add_argument("--lr", type=float, default=4e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and texts")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    corpus = Corpus(args.modeldata, args.sword)
    held_out = corpus.held_out(random.Random(args.seed + 1), 200)
    model = build_model(tokenizer, args.seed)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")
    rng = random.Random(args.seed)
    train(model, batches(corpus.stream(rng), tokenizer, args.batch, rng), args.steps, args.lr)
    for kind, loss in held_out_losses(model, tokenizer, held_out).items():
        print(f"held-out {kind}: {loss:.3f} nats per token")
    save(model, args.model)


if __name__ == "__main__":
    main()
