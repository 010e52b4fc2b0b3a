"""Old import paths give the modules of today, with a warning."""

from __future__ import annotations

import sys
from importlib import import_module

import pytest

from textgen_env.moved import MOVED, RENAMED


@pytest.mark.parametrize("old", MOVED)
def test_old_paths_are_the_modules_of_today(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, f"textgen_env.{old}", raising=False)
    with pytest.warns(DeprecationWarning, match=f"textgen_env.{old} is now textgen_env.{MOVED[old]}"):
        module = import_module(f"textgen_env.{old}")
    today = import_module(f"textgen_env.{MOVED[old]}")
    assert module is today
    assert today.__spec__ is not None
    assert today.__spec__.name == f"textgen_env.{MOVED[old]}"
    for before, after in RENAMED.get(old, {}).items():
        assert getattr(module, before) is getattr(today, after)


def test_other_names_do_not_exist() -> None:
    with pytest.raises(ModuleNotFoundError, match="textgen_env.nonsense"):
        import_module("textgen_env.nonsense")
