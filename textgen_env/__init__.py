"""A language model as a Gymnasium environment: the state is a text, an action is its next token.

Importing the package registers the `textgen/…` tasks with Gymnasium, and stays light: torch and transformers load with
the first environment.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from textgen_env import checkout, moved
from textgen_env.tasks import TASKS, register_tasks

if TYPE_CHECKING:
    from textgen_env.env import TextGenEnv as TextGenEnv
    from textgen_env.lm.language_model import LanguageModel as LanguageModel
    from textgen_env.vector_env import NOOP as NOOP
    from textgen_env.vector_env import REST as REST
    from textgen_env.vector_env import TextGenVectorEnv as TextGenVectorEnv

try:
    __version__ = version("textgen_env")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"

_LAZY = {
    "LanguageModel": "textgen_env.lm.language_model",
    "NOOP": "textgen_env.vector_env",
    "REST": "textgen_env.vector_env",
    "TextGenEnv": "textgen_env.env",
    "TextGenVectorEnv": "textgen_env.vector_env",
}
__all__ = ["NOOP", "REST", "TASKS", "LanguageModel", "TextGenEnv", "TextGenVectorEnv", "register_tasks"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'textgen_env' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


checkout.install()
moved.install()
register_tasks()
