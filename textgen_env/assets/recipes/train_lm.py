"""Trains the tiny language model on texts drawn from corpus.py; evaluation by samples lives in evaluate.py.

    python -m textgen_env.assets.recipes.train_lm --model DIR

``--model`` holds the tokenizer (make_tokenizer) and receives config and weights. Texts are drawn without end, so
there are no epochs. The loss is that of responses alone: what a grammar draws for its prompts cannot be foreseen, and
learning its frequencies would cost width that reading needs.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from . import corpus
from .corpus import Text
from .make_tokenizer import MAX_LENGTH

Batch = tuple[torch.Tensor, torch.Tensor]
WARM_UP = 0.02  # share of the run in which the learning rate rises
CARELESS_FROM, CARELESS = 0.75, 0.3  # when careless responses set in, and their share: what a policy can gain
FALL = 0.5  # share of the run in which it falls to 0


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


def encode(text: Text, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[bool]]:
    """Token ids with BOS and EOS, and which of them are the response's; both parts are tokenised apart, as in play."""
    prompt = tokenizer(text.prompt).input_ids
    response = tokenizer(text.response, add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
    return prompt + response, [False] * len(prompt) + [True] * len(response)


def pad_batch(rows: list[tuple[list[int], list[bool]]], pad_id: int) -> Batch:
    """Right-pads rows to ids (B, T) int64 and a response mask (B, T) bool."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [pad_id] * (width - len(ids)) for ids, _ in rows])
    mask = torch.tensor([mask + [False] * (width - len(mask)) for _, mask in rows])
    return ids, mask


def batches(
    texts: Iterator[Text], tokenizer: PreTrainedTokenizerBase, tokens: int, rng: random.Random
) -> Iterator[Batch]:
    """Cuts the stream into batches of about ``tokens`` tokens: draws many texts, sorts by length, shuffles batches."""
    while True:
        rows = sorted((encode(next(texts), tokenizer) for _ in range(tokens)), key=lambda row: len(row[0]))
        chunks: list[list[tuple[list[int], list[bool]]]] = [[]]
        for row in rows:
            if len(row[0]) * (len(chunks[-1]) + 1) > tokens:
                chunks.append([])
            chunks[-1].append(row)
        rng.shuffle(chunks)
        for chunk in chunks:
            yield pad_batch(chunk, tokenizer.pad_token_id)


def response_loss(model: LlamaForCausalLM, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of response tokens, in nats; logits are made where the mask says so and nowhere else."""
    wanted = mask[:, 1:]
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=ids).last_hidden_state[:, :-1][wanted]  # (N, H)
        logits = model.lm_head(hidden)
    return torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][wanted])


def make_stages(tokenizer: PreTrainedTokenizerBase, tokens: int, seed: int) -> list[tuple[float, Iterator[Batch]]]:
    """First good responses alone, from which reading is learned fastest; then careless ones among them."""
    stages = []
    for end, careless in ((CARELESS_FROM, 0.0), (1.0, CARELESS)):
        rng = random.Random(f"{careless}-{seed}")
        stages.append((end, batches(corpus.stream(rng, careless=careless), tokenizer, tokens, rng)))
    return stages


@torch.no_grad()
def held_out_losses(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, texts: dict[str, list[Text]]
) -> dict[str, float]:
    """Loss per response token, EOS included, by kind."""
    rows = {kind: [encode(text, tokenizer) for text in kind_texts] for kind, kind_texts in texts.items()}
    return {kind: response_loss(model, *pad_batch(rows[kind], tokenizer.pad_token_id)).item() for kind in rows}


def make_optimizers(model: Any, lr: float) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices of the layers, AdamW for the embedding and the norms' gains."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if not any(p is matrix for matrix in matrices)]
    return [
        torch.optim.Muon(matrices, lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def rate_factor(done: float) -> float:
    """Share of the highest rate when a share ``done`` of the run is over: a short rise, a plateau, a long fall to 0."""
    return min(done / WARM_UP, 1.0, (1 - done) / FALL)


def train(
    model: LlamaForCausalLM, stages: list[tuple[float, Iterator[Batch]]], tokens: int, lr: float, every: int = 100
) -> None:
    """Trains on ``tokens`` tokens, padding not counted; a stage is the share at which it ends, and its batches."""
    optimizers = make_optimizers(model, lr)
    start, seen, step, running = time.time(), 0, 0, 0.0
    model.train()
    while seen < tokens:
        data = next(batches for end, batches in stages if seen < end * tokens)
        ids, mask = next(data)
        loss = response_loss(model, ids, mask)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        seen, step, running = seen + int((ids > 0).sum()), step + 1, running + loss.item()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * rate_factor(min(1.0, seen / tokens))
            optimizer.step()
            optimizer.zero_grad()
        if step % every == 0 or seen >= tokens:
            pace = seen / (time.time() - start)
            print(f"step {step} {seen / tokens:.1%} loss {running / every:.3f} {pace:.0f} tokens/s", flush=True)
            running = 0.0
    model.eval()


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
    parser.add_argument("--model", type=Path, required=True, help="folder with the tokenizer; receives the model")
    parser.add_argument("--tokens", type=int, default=4_000_000, help="how many tokens to train on")
    parser.add_argument("--batch", type=int, default=2048, help="tokens in a batch")
    parser.add_argument("--lr", type=float, default=4e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and texts")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = build_model(tokenizer, args.seed)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")
    train(model, make_stages(tokenizer, args.batch, args.seed), args.tokens, args.lr)
    losses = held_out_losses(model, tokenizer, corpus.held_out(random.Random(args.seed + 1), 200))
    for kind, loss in losses.items():
        print(f"held-out {kind}: {loss:.3f} nats per token")
    save(model, args.model)


if __name__ == "__main__":
    main()
