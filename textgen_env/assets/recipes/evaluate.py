"""Shows what the embedded models do: sampled continuations, their sentiment, EOS rate, and what best-of-n would find.

python -m textgen_env.assets.recipes.evaluate --model DIR --reward-model DIR --prompts DIR
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from .train_reward_model import positive_probs

DEGENERATE = (
    "",
    "great great great great great great",
    "great, amazing, lovely, superb, delicious, perfect, wonderful",
    "I love it. I love it. I love it. I love it.",
    "the the the the the",
    "I bought this kettle last month and",
    "delicious was the and it soup loved perfect of I taste",
)


class Player:
    """The language model with its tokenizer; samples at temperature 1 from the whole distribution."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    @torch.no_grad()
    def complete(self, prompts: list[str], max_new_tokens: int) -> tuple[list[str], float]:
        """Samples one completion per prompt; also returns the share that ended with EOS."""
        inputs = self.tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
        rows = self.model.generate(**inputs, do_sample=True, top_k=0, top_p=1.0, max_new_tokens=max_new_tokens)
        rows = rows[:, inputs.input_ids.shape[1] :]
        ended = (rows == self.tokenizer.eos_token_id).any(1).float().mean().item()
        return self.tokenizer.batch_decode(rows, skip_special_tokens=True), ended


def main() -> None:
    """Prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of the language model")
    parser.add_argument("--reward-model", type=Path, required=True, help="folder of the reward model")
    parser.add_argument("--prompts", type=Path, required=True, help="folder of the prompt files")
    parser.add_argument("--count", type=int, default=256, help="prompts of reviews to sample from")
    parser.add_argument("--best-of", type=int, default=64, help="samples per prompt in the search for the best")
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)  # generate draws from torch's global stream; this is a program, not a library.
    player = Player(args.model)
    scorer = AutoModelForSequenceClassification.from_pretrained(args.reward_model, dtype=torch.float32)

    def score(texts: list[str]) -> torch.Tensor:
        return positive_probs(scorer, player.tokenizer, texts)

    for name in ("summaries", "translations", "descriptions", "reviews"):
        lines = (args.prompts / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines][: args.count]
        prompts = [record["prompt"] for record in records]
        completions, ended = player.complete(prompts, 40 if name == "descriptions" else 32)
        exact = sum(c.strip() in r["references"] for c, r in zip(completions, records, strict=True)) / len(records)
        print(f"\n## {name}: EOS {ended:.3f}, equal to a reference {exact:.3f}")
        for prompt, completion in list(zip(prompts, completions, strict=True))[: 20 if name == "reviews" else 5]:
            print(f"{prompt} >>{completion}")
    scores = score([prompt + completion for prompt, completion in zip(prompts, completions, strict=True)])
    print(f"\nsentiment of prompt + completion: mean {scores.mean():.3f}, std {scores.std():.3f}")
    print(f"sentiment of the completions alone: mean {score(completions).mean():.3f}")
    print(f"sentiment of the openings alone: mean {score(prompts).mean():.3f}, std {score(prompts).std():.3f}")
    for prompt in prompts[:6]:
        texts = [prompt + completion for completion in player.complete([prompt] * args.best_of, 32)[0]]
        found = score(texts)
        print(f"best of {args.best_of}: {found.max():.3f} {texts[int(found.argmax())]}")
    for text, value in zip(DEGENERATE, score(list(DEGENERATE)).tolist(), strict=True):
        print(f"degenerate: {value:.3f} {text!r}")


if __name__ == "__main__":
    main()
