"""What trainers take from rich and tyro, which come with the extra ``agents``: a missing one is one line that says so.

What lives here: nothing but these imports, so that each module need not ask for itself. What does not: matplotlib and
TensorBoard, without which a run only leaves out its plot and its event files.
"""

from __future__ import annotations

try:
    import tyro
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table
    from rich.text import Text
    from tyro.conf import OmitArgPrefixes, arg
except ImportError as error:
    message = f"the trainers need rich and tyro ({error}): pip install 'textgen_env[agents]'"
    raise ImportError(message, name=error.name) from error

__all__ = [
    "BarColumn",
    "Console",
    "MofNCompleteColumn",
    "OmitArgPrefixes",
    "Progress",
    "Table",
    "Text",
    "TextColumn",
    "TimeRemainingColumn",
    "arg",
    "tyro",
]
