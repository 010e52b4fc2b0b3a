"""Modules under the names that they had before `lm/` and `agents/training/` were made.

Importing one of those gives the module of today, with a warning. Kept for one release. Whatever lives where it always
did is not listed.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any

from textgen_env.notices import warn_user

MOVED = {
    "adapters": "lm.adapters",
    "agents.batch": "agents.training.on_policy",
    "agents.checkpoint": "agents.training.checkpoint",
    "agents.command_line": "agents.training.command_line",
    "agents.display": "agents.training.display",
    "agents.environments": "agents.training.environments",
    "agents.extra": "agents.training.extra",
    "agents.files": "agents.training.files",
    "agents.finite": "agents.training.finite",
    "agents.former_names": "agents.training.former_names",
    "agents.memory": "agents.training.memory",
    "agents.metrics": "agents.training.metrics_log",
    "agents.optim": "agents.training.optim",
    "agents.ppo_config": "agents.ppo",
    "agents.report": "agents.training.report",
    "agents.run": "agents.training.run",
    "agents.run_folder": "agents.training.run_folder",
    "agents.run_settings": "agents.training.run_settings",
    "agents.setting_checks": "agents.training.setting_checks",
    "agents.stopping": "agents.training.stopping",
    "face": "base_env",
    "grouped_attention": "lm.gqa_attention",
    "language_model": "lm.language_model",
    "library_cache": "lm.fallback_cache",
    "prefix_cache": "lm.prefix_cache",
    "sampling": "lm.sampling",
    "scoring": "lm.log_probs",
    "settings": "config",
    "slot_attention": "lm.slot_attention",
    "token_log_probs": "lm.token_log_probs",
    "trunk": "lm.backbone",
    "wide_products": "lm.upcast_linear",
}
RENAMED = {
    "agents.batch": {"describe": "batch_metrics", "similar_lengths": "bucket_by_length"},
    "face": {"Face": "TextGenBase"},
    "grouped_attention": {"grouped_attention": "gqa_attention"},
    "library_cache": {"LibraryReader": "FallbackReader"},
    "settings": {"Settings": "EnvConfig"},
    "trunk": {"Trunk": "SplitModel"},
    "wide_products": {"wide_products": "upcast_linear"},
}


class MovedModules(MetaPathFinder, Loader):
    """Finds the old names, after every other finder has failed to."""

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The old name's spec, if it is one of ours."""
        package, _, name = fullname.partition(".")
        return spec_from_loader(fullname, self) if package == "textgen_env" and name in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        """Put the module of today in the place of the old name."""
        old = module.__name__.partition(".")[2]
        new = f"textgen_env.{MOVED[old]}"
        warn_user(f"textgen_env.{old} is now {new}; the old name goes with the next release", DeprecationWarning)
        today = import_module(new)
        for before, after in RENAMED.get(old, {}).items():
            setattr(today, before, getattr(today, after))
        sys.modules[module.__name__] = today


def install() -> None:
    """Make the old names importable."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())
