"""agents/ of a checkout, found as ``textgen_env.agents``.

A checkout keeps the trainers beside the package; setup.cfg moves them inside when it is installed. Started in its
folder, Python finds this copy of the package before an installed one, so it has to find its own agents too: these, and
nothing else that lies in the checkout.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType


class AgentsBesidePackage(MetaPathFinder):
    """Finds ``textgen_env.agents`` beside the package, unless it lies inside."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of the folder beside the first of ``path``, the package's own folders."""
        if fullname != "textgen_env.agents" or not path or (Path(path[0]) / "agents").is_dir():
            return None
        folder = Path(path[0]).parent / "agents"
        if not (folder / "ppo.py").is_file():
            return None
        return spec_from_file_location(fullname, folder / "__init__.py", submodule_search_locations=[str(folder)])


def install() -> None:
    """Make it importable, before an installed package of the same name."""
    if not any(isinstance(finder, AgentsBesidePackage) for finder in sys.meta_path):
        sys.meta_path.insert(0, AgentsBesidePackage())
