"""Every Python block of the README and of docs/ runs, in order, one namespace per page.

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


def test_the_file_map_names_every_file() -> None:
    """It has one line per module of the package, of agents and of the benchmarks."""
    tree = (ROOT / "docs" / "architecture.md").read_text()
    files = [path for folder in ("textgen_env", "agents", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    missing = [str(path.relative_to(ROOT)) for path in files if path.name != "__init__.py" and path.name not in tree]
    assert not missing


RETIRED = {
    r"\b[Ff]aces?\b": "single environment, vector environment",
    r"\bPrefixes\b": "Episodes",
    r"\btrunks?\b": "backbone, or SplitModel for body and head",
    r"\blibrary_cache\b|\blibrary cache\b": "fallback cache",
    r"\bwide_products\b|\bwide products\b": "upcast_linear",
    r"\bgrouped_attention\b": "gqa_attention",
    r"\bscoring\.py\b|\btextgen_env\.scoring\b": "log_probs.py",
    r"\bpacks?\b": "micro-batches",
    r"\bsimilar_lengths\b": "bucket_by_length",
    r"\b(to|on)_grid\b": "unpack, join",
    r"(?<!as )\bREST\b(?! = NOOP| as REST|\")": "NOOP",
    r"\b(number|value|file|row|call|line|record|entry|pass) an? (text|token|slot|library|seed|line|update)\b": "per",
}


@pytest.mark.parametrize("word", RETIRED)
def test_retired_words_are_not_used(word: str) -> None:
    """One word per thing: docs/architecture.md has the glossary."""
    told = {"CHANGELOG.md", "docs/architecture.md", "textgen_env/moved.py", "tests/test_docs.py", "tests/test_moved.py"}
    told |= {"agents/training/batch.py", "tests/agents/test_names.py"}  # aliases, for one release
    files = [
        path
        for folder in ("textgen_env", "agents", "benchmarks", "examples", "tests", "docs", ".")
        for path in ((ROOT / folder).glob("*") if folder == "." else (ROOT / folder).rglob("*"))
        if path.suffix in (".py", ".md") and str(path.relative_to(ROOT)) not in told
    ]
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(word, line)
    ]
    assert not found, f"say {RETIRED[word]!r} instead: {found}"
