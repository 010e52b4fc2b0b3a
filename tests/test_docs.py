"""Every Python block of the README and of docs/ runs, in order, one namespace a page.

A fence that starts with ```python no-run needs a fetched model or a library that is not installed with the tests.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```python[ \t]*\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    text = page.read_text()
    for block in FENCE.finditer(text):
        line = text[: block.start(1)].count("\n")
        exec(compile("\n" * line + block[1], str(page), "exec"), namespace)


def test_readme_names_every_file() -> None:
    """The tree in the README has one line for each module of the package and of agents."""
    tree = (ROOT / "README.md").read_text()
    files = [path for folder in ("textgen_env", "agents", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    missing = [str(path.relative_to(ROOT)) for path in files if path.name != "__init__.py" and path.name not in tree]
    assert not missing
