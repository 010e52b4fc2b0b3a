"""Reading prompts: what is accepted, and how bad input is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from textgen_env.episode import Prompt
from textgen_env.prompts import as_prompt, load_prompts, prompt_as_dict


def test_forms_of_a_prompt() -> None:
    assert as_prompt("a text") == Prompt("a text")
    assert as_prompt({"prompt": "p", "references": "one"}) == Prompt("p", ("one",))
    assert as_prompt({"prompt": "p", "references": None, "label": 1}) == Prompt("p", (), {"label": 1})
    full = as_prompt({"prompt": "p", "references": ["a", "b"], "id": "x"})
    assert as_prompt(prompt_as_dict(full)) == full


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("", ValueError, r"prompts\[0\] is empty"),
        ("  \n", ValueError, r"prompts\[0\] is empty"),
        ({"text": "p"}, ValueError, r'prompts\[0\] has no "prompt": its keys are \[\'text\'\]'),
        ({"prompt": 3}, TypeError, r"prompts\[0\] has the prompt 3; it must be a text"),
        ({"prompt": "p", "references": [1]}, TypeError, r"prompts\[0\] has the reference 1"),
        (7, TypeError, r"prompts\[0\]=7 must be a text or a mapping"),
    ],
)
def test_bad_prompts(value, error, message) -> None:
    with pytest.raises(error, match=message):
        load_prompts([value])


def test_no_prompts() -> None:
    with pytest.raises(ValueError, match=r"prompts=\[\] holds no prompt"):
        load_prompts([])


def test_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text('{"prompt": "é", "references": ["r"]}\n\n"plain"\n', encoding="utf-8")
    assert load_prompts(path) == load_prompts(str(path)) == [Prompt("é", ("r",)), Prompt("plain")]


@pytest.mark.parametrize(
    ("line", "message"),
    [('{"prompt": "b"', "line 2 is not JSON"), ('{"text": "b"}', "line 2 has no"), ('""', "line 2 is empty")],
)
def test_malformed_line_is_numbered(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps({"prompt": "a"}) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=message):
        load_prompts(path)


def test_missing_file_and_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        load_prompts(str(tmp_path / "none.jsonl"))
    with pytest.raises(ValueError, match="neither a file nor a known set .*reviews"):
        load_prompts("no-such-set")
    with pytest.raises(TypeError, match="prompts=3"):
        load_prompts(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["reviews", "summaries", "translations", "descriptions"])
def test_packaged_sets(name: str) -> None:
    prompts = load_prompts(name)
    assert len(prompts) >= 100
    assert name == "reviews" or all(prompt.references for prompt in prompts)
