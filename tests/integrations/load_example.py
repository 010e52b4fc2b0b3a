"""The examples are scripts, not a package: import one by its file. And the pages of the libraries, block by block."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parents[2] / "examples"


def load_example(name: str) -> ModuleType:
    """The module in examples/{name}.py, which must not be longer than 40 lines, blank ones not counted."""
    path = FOLDER / f"{name}.py"
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    assert len(lines) <= 40, f"{path} has {len(lines)} lines"
    spec = importlib.util.spec_from_file_location(f"example_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_page(name: str, folder: Path) -> None:
    """Run the Python blocks of docs/{name}.md that need the library, in one namespace, inside a folder."""
    text = (FOLDER.parent / "docs" / f"{name}.md").read_text()
    blocks = re.findall(r"^```python no-run\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    assert blocks
    before = Path.cwd()
    os.chdir(folder)
    try:
        exec(compile("\n".join(blocks), f"docs/{name}.md", "exec"), {"__name__": "__main__"})
    finally:
        os.chdir(before)
