"""Reading prompts: what is accepted, and how bad input is named."""

from __future__ import annotations

import json
from collections import deque
from functools import partial
from pathlib import Path
from types import MappingProxyType

import gymnasium as gym
import numpy as np
import pytest

import textgen_env  # noqa: F401
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


# --- any iterable of rows ---------------------------------------------------------------------------------------------

ROWS = [{"prompt": "a", "references": ["r"], "n": 1}, {"prompt": "b", "references": [], "n": 2}]
READ = [Prompt("a", ("r",), {"n": 1}), Prompt("b", (), {"n": 2})]


@pytest.mark.parametrize(
    "make",
    [
        list,
        tuple,
        iter,
        deque,
        lambda rows: (row for row in rows),
        lambda rows: map(MappingProxyType, rows),
        lambda rows: dict(enumerate(rows)).values(),
        lambda rows: np.array(rows, dtype=object),
    ],
)
def test_iterables(make) -> None:
    assert load_prompts(make(ROWS)) == READ


def test_a_generator_makes_an_environment() -> None:
    """Also through Gymnasium, which copies what it is given."""
    for make in (gym.make, partial(gym.make_vec, num_envs=2)):
        env = make("textgen/TextGen-v0", prompts=(row for row in ROWS), scorer="distinct")
        assert env.unwrapped.prompts == READ


def test_an_iterator_that_was_read_before() -> None:
    rows = iter(ROWS)
    load_prompts(rows)
    with pytest.raises(ValueError, match="holds no prompt; .*an iterator can be read only once"):
        load_prompts(rows)


@pytest.mark.parametrize("source", [b"abc", {"a", "b"}, frozenset("a"), Prompt("a"), 3, None])
def test_what_has_no_rows_in_order(source) -> None:
    with pytest.raises(TypeError, match="must be a list of prompts, another iterable with an order"):
        load_prompts(source)


def test_a_single_mapping_belongs_in_a_list() -> None:
    with pytest.raises(ValueError, match='must have "dataset" and "prompt".*goes into a list'):
        load_prompts({"prompt": "a"})
    with pytest.raises(ValueError, match='must have "dataset" and "prompt"'):
        load_prompts({"dataset": "imdb"})


def test_a_dataset() -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list(ROWS)
    assert load_prompts(rows) == load_prompts(rows.to_iterable_dataset()) == READ
    with pytest.raises(ValueError, match="DatasetDict; choose one of its splits: train, test"):
        load_prompts(datasets.DatasetDict({"train": rows, "test": rows}))
    env = gym.make("textgen/TextGen-v0", prompts=rows, scorer="distinct")
    assert env.unwrapped.prompts == READ


def test_conversations_of_a_dataset(tmp_path: Path) -> None:
    """Columns of Arrow have one form, so that keys of some messages are None in the others."""
    datasets = pytest.importorskip("datasets")
    chat = [{"role": "user", "content": "Hi"}, {"role": "tool", "content": "x", "tool_call_id": "1"}]
    wanted = load_prompts([chat])[0].messages
    for name in ("messages", "prompt"):
        rows = datasets.Dataset.from_list([{name: chat, "n": 1}])
        assert load_prompts(rows)[0].messages == load_prompts(rows.with_format("numpy"))[0].messages == wanted
        rows.to_json(tmp_path / f"{name}.jsonl")
        source = {"dataset": "json", "data_files": str(tmp_path / f"{name}.jsonl"), "prompt": name}
        read = load_prompts({**source, "cache_dir": str(tmp_path / "cache")})
        assert (read[0].messages, dict(read[0].extra)) == (wanted, {"n": 1})


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_table(library: str) -> None:
    tables = pytest.importorskip(library)
    assert load_prompts(tables.DataFrame(ROWS)) == READ
    assert load_prompts(tables.Series(["a", "b"])) == [Prompt("a"), Prompt("b")]
