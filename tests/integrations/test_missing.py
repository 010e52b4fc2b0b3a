"""The package works without the optional libraries, and a plug-in whose library is missing says how to get it."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

LIBRARIES = {
    "torchrl": "torchrl",
    "tianshou": "tianshou",
    "rllib": "ray",
    "trl": "trl",
    "textworld": "textworld",
    "openenv": "openenv",
}


@pytest.mark.parametrize("extra", LIBRARIES)
def test_a_missing_library_names_its_extra(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library = LIBRARIES[extra]
    for name in [library, *(name for name in sys.modules if name.startswith(f"{library}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"textgen_env.integrations.{extra}", raising=False)
    with pytest.raises(ImportError, match=rf"pip install 'textgen_env\[{extra}\]'"):
        importlib.import_module(f"textgen_env.integrations.{extra}")


def test_importing_the_package_imports_none_of_them() -> None:
    libraries = list(LIBRARIES.values())
    code = f"import sys, textgen_env.env, textgen_env.vector_env; print([n for n in {libraries} if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
