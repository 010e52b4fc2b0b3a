"""Shows what the embedded language model does with held-out prompts, sampled at temperature 1 and greedily.

    python -m textgen_env.assets.recipes.evaluate --model DIR --reward-model DIR --prompts DIR

Printed are the scores of the registered tasks, how much is copied from the prompt (copying.py), the best of n samples,
and what the reward model thinks of sampled reviews. What it pays for attacks is in attacks.py.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from textgen_env.scorers.registry import get_scorer

from . import chat, corpus
from .copying import NAMES, NOUNS, NUMBERS, copied_share, invented_share, word_set
from .train_reward_model import positive_probs

MAX_NEW_TOKENS = 32
Row = dict[str, Any]
SCORERS = {"summaries": "rougeL", "translations": "bleu", "descriptions": "cider"}  # as in the registered tasks


class Player:
    """The language model with its tokenizer."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def complete(self, prompts: list[str], *, greedy: bool = False) -> tuple[list[str], float]:
        """One completion per prompt, from the whole distribution or greedily; and the share that ended with EOS."""
        texts, ended = [], 0
        for start in range(0, len(prompts), 256):
            inputs = self.tokenizer(
                prompts[start : start + 256], return_tensors="pt", padding=True, padding_side="left"
            )
            how: Row = {"do_sample": False} if greedy else {"do_sample": True, "top_k": 0, "top_p": 1.0}
            rows = self.model.generate(**inputs, **how, max_new_tokens=MAX_NEW_TOKENS)
            rows = rows[:, inputs.input_ids.shape[1] :]
            ended += int((rows == self.tokenizer.eos_token_id).any(1).sum())
            texts += self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return [text.strip() for text in texts], ended / len(prompts)


def mean(values: Sequence[float | None]) -> float:
    """The mean of those that are there."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else float("nan")


def report_task(name: str, every_row: list[Row], count: int, player: Player, best_of: int) -> None:
    """Scores and copying of one task with references."""
    rows = every_row[:count]
    prompts, references = [row["prompt"] for row in rows], [row["references"] for row in rows]
    scorer: Any = get_scorer(SCORERS[name])
    if hasattr(scorer, "fit_references"):  # Document frequencies are those of the whole set, as in the environment.
        scorer.fit_references([row["references"] for row in every_row])

    def score(texts: list[str], chosen: slice = slice(None)) -> list[float]:
        return list(scorer(texts, prompts=prompts[chosen], references=references[chosen]))

    by_reference = [score([texts[index] for texts in references]) for index in range(len(references[0]))]
    ceiling = mean([max(values) for values in zip(*by_reference, strict=True)])
    print(f"\n## {name}: {len(rows)} prompts; the best reference scores {ceiling:.3f} of itself and the others")
    for greedy in (False, True):
        texts, ended = player.complete(prompts, greedy=greedy)
        triples = list(zip(texts, references, prompts, strict=True))
        names = mean([copied_share(text, refs, NAMES | NUMBERS) for text, refs, _ in triples])
        nouns = mean([copied_share(text, refs, NOUNS) for text, refs, _ in triples])
        invented = mean([invented_share(text, prompt) for text, _, prompt in triples])
        print(
            f"{'greedy ' if greedy else 'sampled'} score {mean(score(texts)):.3f} ({mean(score(texts)) / ceiling:.2f}) "
            f"names and numbers copied {names:.3f}, nouns {nouns:.3f}, names and numbers invented {invented:.3f}; "
            f"EOS {ended:.3f}, equal to a reference {mean([text in refs for text, refs, _ in triples]):.3f}"
        )
        for prompt, text in list(zip(prompts, texts, strict=True))[:4]:
            print(f"    {prompt} >> {text}")
    few = slice(0, 32)
    drawn = [score(player.complete(prompts[few])[0], few) for _ in range(best_of)]
    print(f"best of {best_of}: {mean([max(values) for values in zip(*drawn, strict=True)]):.3f}")


def report_tool_use(name: str, rows: list[Row], player: Player) -> None:
    """How many calls and answers are right, the answers after the right call and its reply."""
    for greedy in (False, True):
        asked = [row["messages"] for row in rows]
        calls, _ = player.complete([chat.render(messages) for messages in asked], greedy=greedy)
        replied = [
            [*row["messages"], {"role": "assistant", "content": row["call"]}, {"role": "tool", "content": row["reply"]}]
            for row in rows
        ]
        answers, _ = player.complete([chat.render(messages) for messages in replied], greedy=greedy)
        right = mean([call == row["call"] for call, row in zip(calls, rows, strict=True)])
        told = mean([answer in row["references"] for answer, row in zip(answers, rows, strict=True)])
        print(f"{name} {'greedy ' if greedy else 'sampled'}: right call {right:.3f}, then right answer {told:.3f}")


def report_new_names(player: Player, count: int, seed: int) -> None:
    """How often a name that is in no list is copied right, letter by letter, where a good response has it."""
    rng = random.Random(seed)
    for kind, texts in corpus.held_out(rng, count).items():
        renamed = [corpus.rename(text, rng) for text in texts if kind != "review"]
        wanted = [
            (new, word_set(new.response) - word_set(old.response)) for new, old in zip(renamed, texts, strict=False)
        ]
        asked = [(text.prompt, name) for text, name in wanted if name]
        if asked:
            answers, _ = player.complete([prompt for prompt, _ in asked], greedy=True)
            right = mean([name <= word_set(answer) for answer, (_, name) in zip(answers, asked, strict=True)])
            print(f"new name copied, greedy, {kind}: {right:.3f} of {len(asked)}")


def report_reviews(rows: list[Row], player: Player, reward_model: Any, best_of: int) -> None:
    """Samples and their sentiment."""
    prompts = [row["prompt"] for row in rows]

    def score(texts: list[str]) -> torch.Tensor:
        return positive_probs(reward_model, player.tokenizer, texts)

    texts, ended = player.complete(prompts)
    joined = [f"{prompt} {text}" for prompt, text in zip(prompts, texts, strict=True)]
    scores, alone = score(joined), score(prompts)
    print(f"\n## reviews: EOS {ended:.3f}, P(POSITIVE) {scores.mean():.3f} (std {scores.std():.3f})")
    print(f"openings alone {alone.mean():.3f} (std {alone.std():.3f}), completions alone {score(texts).mean():.3f}")
    print("\n".join(f"    {value:.2f} {text}" for value, text in zip(scores[:20].tolist(), joined[:20], strict=True)))
    for prompt in prompts[:6]:
        tried = [f"{prompt} {text}" for text in player.complete([prompt] * best_of)[0]]
        found = score(tried)
        print(f"    best of {best_of}: {found.max():.3f} {tried[int(found.argmax())]}")


def main() -> None:
    """Prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of the language model")
    parser.add_argument("--reward-model", type=Path, help="folder of the reward model; without it no reviews are shown")
    parser.add_argument("--prompts", type=Path, required=True, help="folder of the prompt files")
    parser.add_argument("--count", type=int, default=400, help="prompts of each file to use")
    parser.add_argument("--best-of", type=int, default=64, help="samples per prompt in the search for the best")
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)  # generate draws from torch's global stream; this is a program, not a library.
    player = Player(args.model)
    report_new_names(player, args.count, args.seed)
    for path in sorted(args.prompts.glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if path.stem in SCORERS:
            report_task(path.stem, rows, args.count, player, args.best_of)
        elif "call" in rows[0]:
            report_tool_use(path.stem, rows[: args.count], player)
        elif args.reward_model is not None:
            reward_model = AutoModelForSequenceClassification.from_pretrained(args.reward_model, dtype=torch.float32)
            report_reviews(rows[: args.count], player, reward_model, args.best_of)


if __name__ == "__main__":
    main()
