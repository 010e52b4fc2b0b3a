"""Words of any script: vowel signs, points and accents belong to them, however they are encoded."""

from __future__ import annotations

import unicodedata
from fractions import Fraction

import pytest
from rouge_score import rouge_scorer

from textgen_env.scorers import call_scorer, get_scorer
from textgen_env.scorers.words import ptb_tokenize

WORDS = {
    "Hindi": "लड़की खेल रही है",
    "Bengali": "বাংলা ভাষা",
    "Tamil": "தமிழ் மொழி",
    "Thai": "ฉันรักแมว น้ำ",
    "Lao": "ພາສາລາວ ນ້ຳ",
    "Khmer": "ខ្មែរ ភាសា",
    "Burmese": "မြန်မာ စာ",
    "Tibetan": "བོད་ཡིག".replace("་", " "),
    "Arabic": "كِتَابٌ جَدِيد",
    "Persian": "می‌خواهم بروم",
    "Hebrew": "שָׁלוֹם עוֹלָם צה״ל",
    "Sinhala": "ක්‍රමය හොඳයි",
    "Vietnamese": "tiếng việt",
    "French": "été à la plage",
    "Yoruba": "ọ̀rẹ́ ẹ̀gbọ́n",
    "Greek": "καλημέρα κόσμε",
    "Korean": "한국어 공부",
}

# What CIDEr-D, METEOR and ROUGE-1 are of texts in which only some words agree, with words split at spaces.
HINDI = ("लड़की खेल रही ह", "लड़का खेल रहा है")


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("language", WORDS)
def test_words_stay_whole(language: str, form: str) -> None:
    text = unicodedata.normalize(form, WORDS[language])
    assert ptb_tokenize(f"({text})!") == unicodedata.normalize("NFC", text).split()


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("नमस्ते, दुनिया।", ["नमस्ते", "दुनिया"]),
        ("؟كيف ٣٫٥", ["كيف", "٣٫٥"]),
        ("co\u00adoperate", ["cooperate"]),  # a soft hyphen is no letter and no space, as in the Java tokenizer
        ("❤️ 🙂 👩‍👧", []),  # a variation selector alone is no word
        ("की's", ["की", "'s"]),
        ("İstanbul", ["i̇stanbul"]),
    ],
)
def test_tokens(text: str, tokens: list[str]) -> None:
    assert ptb_tokenize(text) == tokens


PAIRS = [("की", "का"), ("คำ", "คา"), ("כֵּן", "כָּן"), ("كَتَبَ", "كُتِبَ"), ("sé", "se")]
ROUGE = ["rouge1", "rouge2", "rougeL", "rougeLsum"]  # of Latin script it is rouge-score's, which drops accented letters
CASES = [(name, pair) for name in ["meteor", "cider", "keywords"] for pair in PAIRS]
CASES += [(name, pair) for name in ROUGE for pair in PAIRS[:-1]]


@pytest.mark.parametrize(("name", "pair"), CASES)
def test_words_that_differ_in_a_vowel_are_different(name: str, pair: tuple[str, str]) -> None:
    text, other = pair
    scorer = get_scorer(name)
    if name == "cider":
        scorer.fit_references([[other], ["x"]])
    assert call_scorer(scorer, [text], prompts=[""], references=[[other]], keywords=[[other]]) == [0.0]


def test_meteor_counts_words_at_spaces() -> None:
    # 1 of 4 words agrees: precision and recall 1/4, one chunk of one match: F · (1 − 1/2)
    assert get_scorer("meteor")([HINDI[0]], references=[[HINDI[1]]]) == [pytest.approx(0.25 * 0.5)]


def test_cider_counts_words_at_spaces() -> None:
    scorer = get_scorer("cider")
    scorer.fit_references([[HINDI[1]], ["एक और वाक्य"]])
    # all words have the weight log 2, and one of four agrees: cosine 1/4 for n = 1, 0 for n = 2, 3, 4
    assert scorer([HINDI[0]], references=[[HINDI[1]]]) == [pytest.approx(0.25 / 4)]


def test_rouge_counts_words_where_rouge_score_sees_none() -> None:
    pairs = [HINDI, ("Привет, мир", "Привет, друг"), ("ธรรม ชาติ", "ธรรม ดา"), ("लड़की 2024", "लड़की खेल 2024")]
    expected = [Fraction(1, 4), Fraction(1, 2), Fraction(1, 2), Fraction(4, 5)]
    for (text, reference), value in zip(pairs, expected, strict=True):
        for name in ("rouge1", "rougeL", "rougeLsum"):
            assert get_scorer(name)([text], references=[[reference]]) == [pytest.approx(float(value))]
    assert get_scorer("rouge1", tokenizer="rouge")([HINDI[0]], references=[[HINDI[0]]]) == [0.0]
    assert get_scorer("rouge1", tokenizer=list)(["我喜欢猫"], references=[["我喜欢狗"]]) == [0.75]


@pytest.mark.parametrize(
    "text", ["Ça, c’est l’été à 3,5 °C", "µ-opioid ½ a\u200bb 日本", "Łódź cafe\u0301", "x² ªº ŒUVRE"]
)
def test_rouge_of_latin_script_is_rouge_scores(text: str) -> None:
    reference = "Ça c'est l'ete 3 opioid b Łódź café oeuvre x"
    names = ["rouge1", "rouge2", "rougeL"]
    theirs = rouge_scorer.RougeScorer(names, use_stemmer=True).score(reference, text)
    assert [get_scorer(name)([text], references=[[reference]])[0] for name in names] == [
        theirs[name].fmeasure for name in names
    ]


@pytest.mark.parametrize("name", ["meteor", "cider", "keywords"])
def test_encoding_does_not_matter(name: str) -> None:
    for text in WORDS.values():
        forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]
        scorer = get_scorer(name)
        if name == "cider":
            scorer.fit_references([[forms[0]], ["x y"]])
        columns = {"references": [[forms[0]]] * 2, "keywords": [forms[0].split()] * 2}
        same, other = call_scorer(scorer, forms, prompts=["", ""], **columns)
        assert same == other > 0.2


@pytest.mark.parametrize(
    ("text", "keyword", "found"),
    [
        ("वह की है", "की", True),
        ("वह की है", "क", False),
        ("लड़कीयाँ", "लड़की", False),
        ("ฉันรักแมวมาก", "แมว", True),  # no spaces between words
        ("นี่", "น", False),
        ("我喜欢猫。", "猫", True),
        ("猫カフェ", "カフェ", True),
        ("שָׁלוֹם", "ש", False),
        ("un café noir", "cafe", False),
        ("un cafe\u0301 noir", "cafe", False),
        ("un cafe\u0301 noir", "caf\u00e9", True),
        ("C++ और", "C++", True),
    ],
)
def test_keywords_are_whole_words(text: str, keyword: str, found: bool) -> None:
    assert get_scorer("keywords", keywords=[keyword])([text]) == [float(found)]
