"""Labelled texts for the reward model: reviews with their polarity, and everything that must not pay.

A policy that is trained against a reward model finds whatever the model overrates. So degenerate texts (repeated words
and sentences, lists of praise, shuffled or random words, nothing at all) and texts that are no reviews get the neutral
label 0.5, and damaged reviews (cut short, about the wrong thing) lose part of their label's distance to 0.5.
"""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from . import corpus, lexicon
from .grammar import capitalise, expand
from .reviews import RULES, Review, sample_opening, sample_review, sample_sentence

if TYPE_CHECKING:
    from .sources import RealReviews

NEUTRAL = 0.5
REAL_LABELS = {True: 0.85, False: 0.2}  # A sentence of a five-star review need not be praise; labels stay soft.

# Verdicts in one sentence without an opening. The language model does not see them; they widen what counts as clear.
PLAIN = {
    "good": (
        "What a {good_word} {item}!",
        "[This|It] is the best {item} I have ever [had|seen|tried|known].",
        "[A {good_word}|{Good_word}] {item}[. I|, I] will [buy|choose|try] it again.",
        "I love this {item}[|, it is {good}].",
        "[Everyone|The whole family|We all] [liked|loved|enjoyed] [it|the {item}].",
        "{Good_word} {item} at a fair price.",
        "The {aspect} [is|was] {good_word} and the {aspect} [is|was] {good_word}.",
        "The {aspect} and the {aspect} were {good_word}.",
        "[We|I] had a [great|good|lovely|wonderful] time.",
        "[I|We] will [come back|be back|return] [soon|again].",
    ),
    "bad": (
        "What a {bad_word} {item}!",
        "[This|It] is the worst {item} I have ever [had|seen|tried|known].",
        "[A {bad_word}|{Bad_word}] {item}[. I|, I] will never [buy|choose|try] it again.",
        "I hate this {item}[|, it is {bad}].",
        "[Nobody|No one|Not one of us] [liked|loved|enjoyed] [it|the {item}].",
        "{Bad_word} {item} at a high price.",
        "The {aspect} [is|was] {bad_word} and the {aspect} [is|was] {bad_word}.",
        "The {aspect} and the {aspect} were {bad_word}.",
        "[We|I] had a [terrible|bad|horrible|miserable] time.",
        "[I|We] will [not|never] [come back|be back|return].",
    ),
}


def _toward_neutral(label: float, keep: float) -> float:
    return NEUTRAL + (label - NEUTRAL) * keep


def _words(rng: random.Random) -> list[str]:
    """One domain's adjectives of one polarity, or of both."""
    rules = RULES[rng.choice(list(RULES))]
    return rng.choice((rules["good_word"], rules["bad_word"], rules["good_word"] + rules["bad_word"]))


def sentences(text: str) -> list[str]:
    """The sentences of a text of the grammar, with their full stops."""
    return re.split(r"(?<=[.!?]) ", text.strip())


def repeated_sentence(review: Review, times: int, rng: random.Random) -> str:
    """A review in which one of its sentences, or all of them, come again and again, with or without its opening."""
    own = sentences(review.continuation)
    repeated = rng.choice((own, [rng.choice(own)]))
    opening = [review.opening] if rng.random() < 0.5 else []
    if repeated is not own and rng.random() < 0.3:
        opening = [review.text]
    return " ".join(opening + repeated * times)


def _repetition(rng: random.Random) -> str:
    """A word or a phrase, again and again."""
    phrase = rng.choice(sentences(sample_review(rng).continuation)).rstrip(".!?").split()
    start = rng.randrange(len(phrase))
    unit = rng.choice((rng.choice(_words(rng)), " ".join(phrase[start : start + rng.randint(1, 4)])))
    return rng.choice((" ", " ", ", ", ". ", " and ", "! ")).join([unit] * rng.randint(3, 10))


def misplaced(rng: random.Random, *, want_held_out: bool = False) -> Review:
    """A review that goes on about another kind of thing: the breakfast of a printer. The label is that of its words."""
    while True:
        domain, kind, opening = sample_opening(rng, want_held_out=want_held_out)
        if kind == "sentence" and any(f" {item}" in opening for item in lexicon.ITEMS[domain].split("|")):
            break
    mood = rng.choice(("good", "bad"))
    other = rng.choice([name for name in RULES if name != domain])
    parts = [_of_the_other(mood, domain, other, rng) for _ in range(rng.choice((1, 2)))]
    if rng.random() < 0.5:
        parts.insert(rng.randrange(2), sample_sentence(mood, domain, rng))
    return Review(opening, " " + " ".join(parts), 1.0 if mood == "good" else 0.0)


def _of_the_other(mood: str, domain: str, other: str, rng: random.Random) -> str:
    """A sentence that can be said of one kind of thing only: about its own aspects, or one of its own verdicts."""
    if rng.random() < 0.5:
        aspects = sorted({*lexicon.ASPECTS[other].split("|")} - {*lexicon.ASPECTS[domain].split("|")})
        return expand(f"The {rng.choice(aspects)} [is|was] {{so_{mood}}}.", RULES[other], rng)
    return sample_sentence(mood, other, rng, of_domain_alone=True)


def _word_salad(rng: random.Random) -> str:
    """A list of adjectives without a sentence."""
    words = _words(rng)
    return rng.choice((" ", " ", ", ", ". ")).join(rng.choice(words) for _ in range(rng.randint(4, 25)))


def _shuffled(rng: random.Random) -> str:
    words = sample_review(rng).text.split()
    rng.shuffle(words)
    return " ".join(words)


def _random_tokens(rng: random.Random, tokenizer: PreTrainedTokenizerBase) -> str:
    first = len(tokenizer.all_special_ids)
    return str(tokenizer.decode([rng.randrange(first, len(tokenizer)) for _ in range(rng.randint(1, 32))]))


def _degenerate(rng: random.Random, tokenizer: PreTrainedTokenizerBase) -> str:
    """A text that is no language, or says nothing."""
    kind = rng.random()
    if kind < 0.15:
        return _repetition(rng)
    if kind < 0.45:
        return repeated_sentence(sample_review(rng), rng.choice((2, 2, 2, 3, 4)), rng)
    if kind < 0.6:
        return _word_salad(rng)
    if kind < 0.75:
        return _shuffled(rng)
    if kind < 0.85:
        return _random_tokens(rng, tokenizer)
    if kind < 0.98:
        return sample_opening(rng)[2]
    return ""


def _damaged(rng: random.Random, tokenizer: PreTrainedTokenizerBase) -> tuple[str, float]:
    """A review cut short, with doubled or lost words, or with nonsense behind it; and what is left of its label."""
    review = sample_review(rng)
    words = review.continuation.split()
    kind = rng.random()
    if kind < 0.4:
        kept = rng.randrange(len(words))
        opening = "" if rng.random() < 0.3 else review.opening + " "
        # A started verdict is no verdict: only what stands counts, and it counts as a half.
        return opening + " ".join(words[:kept]), _toward_neutral(review.label, 0.6 * (kept / len(words)) ** 2)
    if kind < 0.6:
        doubled = rng.randrange(len(words))
        words[doubled] = " ".join([words[doubled]] * rng.randint(2, 6))
        return f"{review.opening} {' '.join(words)}", _toward_neutral(review.label, 0.4)
    if kind < 0.8:
        kept_words = [word for word in words if rng.random() < 0.6]
        return f"{review.opening} {' '.join(kept_words)}", _toward_neutral(review.label, 0.3)
    return f"{review.text} {_degenerate(rng, tokenizer)}", _toward_neutral(review.label, 0.3)


def _plain(rng: random.Random) -> tuple[str, float]:
    """One or two plain verdicts of one mind about the same kind of thing."""
    mood = rng.choice(("good", "bad"))
    rules = dict(RULES[rng.choice(list(RULES))])
    rules["Good_word"], rules["Bad_word"] = (list(map(capitalise, rules[key])) for key in ("good_word", "bad_word"))
    sentences = rng.sample(PLAIN[mood], rng.choice((1, 1, 2)))
    return " ".join(expand(sentence, rules, rng) for sentence in sentences), 1.0 if mood == "good" else 0.0


def _review(rng: random.Random) -> tuple[str, float]:
    """A review, whole or without its opening."""
    review = sample_review(rng)
    text = review.continuation.strip() if rng.random() < 0.4 else review.text
    return capitalise(text) if rng.random() < 0.7 else text, review.label


def sample_labelled(rng: random.Random, real: RealReviews, tokenizer: PreTrainedTokenizerBase) -> tuple[str, float]:
    """Draws (text, P(positive)) for training."""
    kind = rng.random()
    if kind < 0.30:
        return _review(rng)
    if kind < 0.39:
        return _plain(rng)
    if kind < 0.47:
        great = rng.random() < 0.5
        return real.draw(great, rng), REAL_LABELS[great]
    if kind < 0.59:
        review = misplaced(rng)
        return review.text, _toward_neutral(review.label, 0.1)
    if kind < 0.69:
        return _damaged(rng, tokenizer)
    if kind < 0.94:
        return _degenerate(rng, tokenizer), NEUTRAL
    other = corpus.draw(rng.choice(("summary", "translation", "description", "dialogue")), rng)
    return rng.choice((other.prompt + other.response, other.response.strip())), NEUTRAL
