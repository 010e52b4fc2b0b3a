"""Texts a second of each scorer, against its reference library in a plain loop: `python -m benchmarks.scorers`.

Here: speed alone; that the values agree is tested. Both sides score the same texts in alternating rounds, and medians
count. Each is timed twice a round: on references that it meets for the first time, and again on references that it may
have kept, as in training, where every prompt comes again. The last row is what checking and splitting into parts add
around a scorer. Libraries and models that are not installed are left out, and said to be.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from textgen_env.assets import prompt_path
from textgen_env.scorers import get_scorer, score_parts

Texts = list[str]
References = list[list[str]]
Side = Callable[[], Callable[..., Any]]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Contest:
    """A scorer, and the plain loop over its reference library that it must not be slower than; both made anew a round.

    Both are called as `side(completions, prompts=…, references=…)`.
    """

    name: str
    make: Side
    loop: Side
    texts: int


@dataclass
class Data:
    """n completions that are near to their references, as those of a trained model are."""

    completions: Texts
    prompts: Texts
    references: References

    @classmethod
    def packaged(cls, n: int, seed: int = 0) -> Data:
        """Completions are references with a third of their words replaced."""
        rng = random.Random(seed)
        rows = [
            json.loads(line)
            for name in ("descriptions", "summaries", "translations")
            for line in prompt_path(name).read_text("utf-8").splitlines()
        ]
        rng.shuffle(rows)
        rows = (rows * (n // len(rows) + 1))[:n]
        words = sorted({word for row in rows for text in row["references"] for word in text.split()})
        chosen = [rng.choice(row["references"]).split() for row in rows]
        completions = [
            " ".join(rng.choice(words) if rng.random() < 1 / 3 else word for word in text) for text in chosen
        ]
        return cls(completions, [row["prompt"] for row in rows], [row["references"] for row in rows])


def each(score: Callable[[str, list[str]], float]) -> Callable[..., list[float]]:
    """The plain loop: one call for a text and its references."""
    return lambda texts, *, references, **_: [
        score(text, others) for text, others in zip(texts, references, strict=True)
    ]


def sacrebleu_contests() -> Iterator[Contest]:
    """BLEU, chrF and TER, with sacrebleu's objects made once."""
    import sacrebleu

    def loop(metric: Any, **arguments: Any) -> Callable[..., Any]:
        score = metric(**arguments).sentence_score
        return each(lambda text, others: score(text, others).score)

    yield Contest("bleu", partial(get_scorer, "bleu"), partial(loop, sacrebleu.BLEU, effective_order=True), 400)
    yield Contest("chrf", partial(get_scorer, "chrf"), partial(loop, sacrebleu.CHRF), 200)
    yield Contest("ter", partial(get_scorer, "ter"), partial(loop, sacrebleu.TER), 8)


def rouge_contests() -> Iterator[Contest]:
    """ROUGE, with rouge-score's object made once."""
    from rouge_score.rouge_scorer import RougeScorer

    def loop(name: str) -> Callable[..., Any]:
        score = RougeScorer([name], use_stemmer=True).score_multi
        return each(lambda text, others: score(others, text)[name].fmeasure)

    for name in ("rouge1", "rouge2", "rougeL", "rougeLsum"):
        yield Contest(name, partial(get_scorer, name), partial(loop, name), 100)


def meteor_contests() -> Iterator[Contest]:
    """METEOR by nltk without synonyms, with the same tokens."""
    from nltk.translate.meteor_score import meteor_score

    from textgen_env.scorers.meteor import _NoSynonyms
    from textgen_env.scorers.words import ptb_tokenize

    def score(text: str, others: list[str]) -> float:
        return meteor_score([ptb_tokenize(other) for other in others], ptb_tokenize(text), wordnet=_NoSynonyms)

    yield Contest("meteor", partial(get_scorer, "meteor"), partial(each, score), 100)


def distance_contests() -> Iterator[Contest]:
    """Edit distance against rapidfuzz, word error rate against jiwer."""
    import jiwer
    from rapidfuzz.distance import Levenshtein

    def similarity(text: str, others: list[str]) -> float:
        return max(Levenshtein.normalized_similarity(text, other) for other in others)

    def error_rate(text: str, others: list[str]) -> float:
        return min(jiwer.wer(other, text) for other in others)

    yield Contest("edit_distance", partial(get_scorer, "edit_distance"), partial(each, similarity), 2000)
    yield Contest("wer", partial(get_scorer, "wer"), partial(each, error_rate), 200)


def cider_contests() -> Iterator[Contest]:
    """CIDEr-D. Document frequencies: pycocoevalcap counts them in every call, ours in the first."""
    from pycocoevalcap.cider.cider import Cider

    from textgen_env.scorers.words import ptb_tokenize

    def ours() -> Callable[..., Any]:
        scorer: Any = get_scorer("cider")

        def score(texts: Texts, *, references: References, **_: Any) -> list[float]:
            if scorer.frequencies is None:
                scorer.fit_references(references)
            return scorer(texts, references=references)

        return score

    def loop(texts: Texts, *, references: References, **_: Any) -> Any:
        truths = {i: [" ".join(ptb_tokenize(other)) for other in others] for i, others in enumerate(references)}
        return Cider().compute_score(truths, {i: [" ".join(ptb_tokenize(text))] for i, text in enumerate(texts)})

    yield Contest("cider", ours, lambda: loop, 400)


def rule_contests() -> Iterator[Contest]:
    """A regular expression against `re`, JSON schemas against jsonschema's one-line call, VADER against its own."""
    import jsonschema
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    pattern = re.compile(r"\b(red|blue)\b")
    regex = partial(get_scorer, "regex", pattern=pattern.pattern)
    yield Contest("regex", regex, partial(each, lambda text, _: float(pattern.search(text) is not None)), 2000)

    schema = {"type": "array", "items": {"type": "integer"}, "minItems": 2}

    def as_json(text: str) -> str:
        return json.dumps([*map(len, text.split())])

    def ours() -> Callable[..., Any]:
        scorer = get_scorer("json_schema", schema=schema)
        return lambda texts, **_: scorer([as_json(text) for text in texts])

    def valid(text: str, _: list[str]) -> float:
        jsonschema.validate(json.loads(as_json(text)), schema)
        return 1.0

    yield Contest("json_schema", ours, partial(each, valid), 200)

    def loop() -> Callable[..., Any]:
        scores = SentimentIntensityAnalyzer().polarity_scores
        return each(lambda text, _: (scores(text)["compound"] + 1) / 2)

    yield Contest("vader", partial(get_scorer, "vader"), loop, 400)


def transformers_contests() -> Iterator[Contest]:
    """A sequence classifier and a language model: one forward pass per text."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    from textgen_env.assets import model_path

    def loaded(auto: Any, name: str) -> tuple[Any, Any]:
        path = model_path(name)
        return auto.from_pretrained(path, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(path)

    classifier, words = loaded(AutoModelForSequenceClassification, "tiny-sentiment")
    language_model, tokens = loaded(AutoModelForCausalLM, "tiny")

    @torch.inference_mode()
    def praise(texts: Texts, *, prompts: Texts, **_: Any) -> list[float]:
        rows = [words(prompt + text, return_tensors="pt") for prompt, text in zip(prompts, texts, strict=True)]
        return [float(classifier(**row).logits.softmax(-1)[0, 1]) for row in rows]

    @torch.inference_mode()
    def likelihood(texts: Texts, *, prompts: Texts, **_: Any) -> list[float]:
        result = []
        for prompt, text in zip(prompts, texts, strict=True):
            before, ids = tokens(prompt)["input_ids"], tokens(text, add_special_tokens=False)["input_ids"]
            logits = language_model(torch.tensor([before + ids])).logits[0, len(before) - 1 : -1]
            result.append(float(logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).mean()))
        return result

    sentiment, fluency = get_scorer("sentiment"), get_scorer("fluency")
    yield Contest("sentiment", lambda: sentiment, lambda: praise, 64)
    yield Contest("fluency", lambda: fluency, lambda: likelihood, 64)


def similarity_contests() -> Iterator[Contest]:
    """Sentence embeddings of the fetched encoder: one forward pass per text."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    from textgen_env.assets import model_path
    from textgen_env.scorers.similarity import Similarity
    from textgen_env.scorers.text_model import TextModel

    path = model_path("minilm")
    encoder, tokenizer = AutoModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    shared = TextModel("encoder", "minilm")

    def embed(text: str) -> torch.Tensor:
        hidden = encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        return hidden / hidden.norm()

    @torch.inference_mode()
    def cosine(text: str, others: list[str]) -> float:
        return max(float(embed(text) @ embed(other)) for other in others)

    yield Contest("similarity", partial(Similarity, shared), partial(each, cosine), 12)


def spacy_contests() -> Iterator[Contest]:
    """The fetched spaCy classifier, a text at a time."""
    import spacy

    from textgen_env.assets import model_path

    pipeline = spacy.load(model_path("imdb-sentiment"))
    scorer = get_scorer("spacy")

    def loop(texts: Texts, *, prompts: Texts, **_: Any) -> list[float]:
        return [pipeline(prompt + text).cats["POS"] for prompt, text in zip(prompts, texts, strict=True)]

    yield Contest("spacy", lambda: scorer, lambda: loop, 200)


GROUPS = (
    sacrebleu_contests,
    rouge_contests,
    meteor_contests,
    distance_contests,
    cider_contests,
    rule_contests,
    transformers_contests,
    similarity_contests,
    spacy_contests,
)


def contests() -> Iterator[Contest]:
    """All that can run here."""
    for group in GROUPS:
        try:
            yield from group()
        except (ImportError, FileNotFoundError) as error:
            print(f"left out {group.__name__.removesuffix('_contests')}: {error}")


def seconds(clock: Clock, function: Callable[[], Any]) -> float:
    """Time of a call."""
    start = clock()
    function()
    return clock() - start


def run(contest: Contest, data: Data, rounds: int, clock: Clock) -> dict[str, Any]:
    """Median texts/s of both sides, first and again, in alternating rounds."""
    n = contest.texts
    columns = {"prompts": data.prompts[:n], "references": data.references[:n]}
    for make in (contest.make, contest.loop):  # loads what is loaded once
        make()(data.completions[:8], prompts=data.prompts[:8], references=data.references[:8])
    times: dict[str, list[float]] = {"first": [], "again": [], "loop_first": [], "loop_again": []}
    for number in range(rounds):
        sides = [("", contest.make()), ("loop_", contest.loop())]
        for turn in ("first", "again"):
            for prefix, side in sides[:: 1 if number % 2 else -1]:
                times[prefix + turn].append(seconds(clock, partial(side, data.completions[:n], **columns)))
    rates = {side: n / statistics.median(values) for side, values in times.items()}
    ratios = {f"{turn}_ratio": rates[turn] / rates["loop_" + turn] for turn in ("first", "again")}
    return {"scorer": contest.name, "texts": n, **rates, **ratios}


def overhead(data: Data, rounds: int, clock: Clock) -> dict[str, Any]:
    """What `score_parts`, through which environments ask, adds to BLEU on a batch of 64 known prompts."""
    scorer = get_scorer("bleu")
    columns: dict[str, Any] = {"prompts": data.prompts[:64], "references": data.references[:64]}
    columns |= {"completion_ids": [[1] * 20] * 64, "finish_reasons": ["eos"] * 64}
    direct, checked = [], []
    for _ in range(20 * rounds):
        direct.append(seconds(clock, partial(scorer, data.completions[:64], **columns)))
        checked.append(seconds(clock, partial(score_parts, scorer, data.completions[:64], **columns)))
    share = statistics.median(checked) / statistics.median(direct) - 1
    return {"scorer": "overhead around bleu", "texts": 64, "share": share}


def main() -> None:
    """Prints a table, and writes JSON lines where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="alternating rounds; medians count")
    parser.add_argument("--only", nargs="*", help="names of scorers")
    parser.add_argument("--cpu", action="store_true", help="processor time of all threads, for a machine that is busy")
    parser.add_argument("--json", type=Path, help="file for JSON lines")
    arguments = parser.parse_args()
    clock = time.process_time if arguments.cpu else time.perf_counter
    data = Data.packaged(2000)
    rows = []
    sides = ("first", "loop_first", "first_ratio", "again", "loop_again", "again_ratio")
    print(f"{'scorer':<14}{'texts':>6}" + "".join(f"{side:>13}" for side in sides))
    for contest in contests():
        if arguments.only and contest.name not in arguments.only:
            continue
        row = run(contest, data, arguments.rounds, clock)
        rows.append(row)
        cells = (f"{row[side]:>13.2f}" if side.endswith("ratio") else f"{row[side]:>13,.0f}" for side in sides)
        print(f"{row['scorer']:<14}{row['texts']:>6}" + "".join(cells), flush=True)
    rows.append(overhead(data, arguments.rounds, clock))
    print(f"checking and parts add {rows[-1]['share']:.1%} to bleu")
    if arguments.json:
        arguments.json.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
