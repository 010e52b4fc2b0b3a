"""Debian packages made here by hand, read with and without dpkg-deb. Wheels: ``test_fetch.py``."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from textgen_env.assets.fetch import FetchError, fetch
from textgen_env.assets.packages import Deb, extract
from textgen_env.assets.sources import Source

DEMO = Deb("demo-text", "1.0-1", "public-domain")
COPYRIGHT = b"Format: x\n\nFiles: *\nLicense: public-domain\n No rights reserved.\n"
FILES = {"usr/share/demo/a.txt": b"hello", "usr/share/demo/deep/b.bin": b"\x00\x01", "etc/other": b"no"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TEXTGEN_ENV_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=["dpkg-deb", "Python"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "Python":
        monkeypatch.setenv("PATH", "")
    elif shutil.which("dpkg-deb") is None:
        pytest.skip("no dpkg-deb here")


def tar(members: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("./usr/share/demo/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return packed.getvalue()


def make_deb(
    folder: Path, files: Mapping[str, bytes] = FILES, *, version: str = "1.0-1", rights: bytes = COPYRIGHT
) -> Path:
    """deb(5): three members in an ar archive, each with a header of 60 bytes and padded to an even length."""
    folder.mkdir(exist_ok=True)
    control = f"Package: demo-text\nVersion: {version}\nArchitecture: all\nMaintainer: x <x@y.z>\nDescription: demo\n"
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": tar({"control": control.encode(), "odd": b"1"}),
        "data.tar.xz": tar({"usr/share/doc/demo-text/copyright": rights, **files}),
    }
    packed = b"!<arch>\n"
    for name, data in members.items():
        packed += (
            f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
        )
    path = folder / f"demo-text_{version}_all.deb"
    path.write_bytes(packed)
    return path


def source(*packages: Deb) -> dict[str, Source]:
    def build(*archives_and_folder: Any) -> None:
        *archives, folder = archives_and_folder
        for number, archive in enumerate(archives):
            extract(archive, "usr/share/demo/", folder / str(number))

    return {"demo": Source(packages or (DEMO,), build)}


@pytest.mark.usefixtures("reader")
class TestDeb:
    def test_unpacks_plain_files_and_notes_version_and_hash(self, tmp_path: Path, cache: Path) -> None:
        deb = make_deb(tmp_path / "debs")
        folder = fetch("demo", downloads=tmp_path / "debs", sources=source())
        assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
            "0/a.txt",
            "0/deep/b.bin",
            "origin.json",
        }
        assert (folder / "0/deep/b.bin").read_bytes() == b"\x00\x01"
        digest = hashlib.sha256(deb.read_bytes()).hexdigest()
        assert json.loads((folder / "origin.json").read_text()) == [
            {"package": "demo-text", "version": "1.0-1", "licence": "public-domain", "sha256": digest}
        ]

    def test_another_version_is_taken_with_a_warning_the_tested_one_without(self, tmp_path: Path, cache: Path) -> None:
        make_deb(tmp_path / "debs", version="2.0-1")
        with pytest.warns(UserWarning, match=r"demo-text_2\.0-1_all\.deb is not the tested 1\.0-1"):
            folder = fetch("demo", downloads=tmp_path / "debs", sources=source())
        assert json.loads((folder / "origin.json").read_text())[0]["version"] == "2.0-1"
        make_deb(tmp_path / "debs")
        assert DEMO.find(tmp_path / "debs").name == "demo-text_1.0-1_all.deb"

    @pytest.mark.parametrize("rights", [b"License: GPL-3\n", b"This is not under License: public-domain\n"])
    def test_another_licence_is_refused(self, tmp_path: Path, cache: Path, rights: bytes) -> None:
        make_deb(tmp_path / "debs", rights=rights)
        with pytest.raises(FetchError, match="does not declare the licence 'public-domain'"):
            fetch("demo", downloads=tmp_path / "debs", sources=source())
        assert list(cache.iterdir()) == []

    def test_package_without_a_copyright_file(self, tmp_path: Path, cache: Path) -> None:
        make_deb(tmp_path / "debs").rename(tmp_path / "debs" / "demo-more_1.0-1_all.deb")
        with pytest.raises(FetchError, match="does not hold what it should.*usr/share/doc/demo-more/copyright"):
            fetch("demo", downloads=tmp_path / "debs", sources=source(Deb("demo-more", "1.0-1", "public-domain")))

    def test_member_that_climbs_out_is_refused(self, tmp_path: Path, cache: Path) -> None:
        make_deb(tmp_path / "debs", {"usr/share/demo/../../../../evil": b"evil"})
        with pytest.raises(FetchError, match="refusing to unpack"):
            fetch("demo", downloads=tmp_path / "debs", sources=source())
        assert not list(tmp_path.rglob("evil"))

    @pytest.mark.parametrize("content", [b"not a package", b"!<arch>\n", b""])
    def test_file_that_is_no_package(self, tmp_path: Path, cache: Path, content: bytes) -> None:
        (tmp_path / "demo-text_1.0-1_all.deb").write_bytes(content)
        with pytest.raises(FetchError, match=r"demo-text_1\.0-1_all\.deb"):
            fetch("demo", downloads=tmp_path, sources=source())
        assert list(cache.iterdir()) == []

    def test_several_packages_reach_the_builder_in_order(self, tmp_path: Path, cache: Path) -> None:
        make_deb(tmp_path / "debs", {"usr/share/demo/which": b"first"})
        files = {"usr/share/demo/which": b"second", "usr/share/doc/demo-more/copyright": COPYRIGHT}
        make_deb(tmp_path / "aside", files).rename(tmp_path / "debs" / "demo-more_1.0-1_all.deb")
        both = source(DEMO, Deb("demo-more", "1.0-1", "public-domain"))
        folder = fetch("demo", downloads=tmp_path / "debs", sources=both)
        assert [(folder / number / "which").read_text() for number in "01"] == ["first", "second"]


def test_missing_package_and_missing_apt(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FetchError, match=r"no Debian package demo-text_\*\.deb in"):
        fetch("demo", downloads=tmp_path, sources=source())
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FetchError, match=r"there is no apt-get here; --from FOLDER takes a demo-text_1\.0-1_all\.deb"):
        fetch("demo", sources=source())
    assert list(cache.iterdir()) == []


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="no apt-get here")
def test_package_that_apt_does_not_know(cache: Path) -> None:
    with pytest.raises(FetchError, match=r"apt-get could not download no-such-text .*--from FOLDER"):
        fetch("demo", sources=source(Deb("no-such-text", "1", "MIT")))
    assert list(cache.iterdir()) == []
