"""Where prompts come from: a list, a JSONL file, a packaged or fetched set, or a set of the `datasets` library.

Reading and checking alone; which prompt an episode gets is drawn by the engine from the slot's own generator.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from textgen_env.assets import PROMPT_SETS, prompt_path
from textgen_env.episode import Prompt

PromptLike: TypeAlias = str | Mapping[str, Any] | Prompt
PromptSource: TypeAlias = str | Path | Mapping[str, Any] | Sequence[PromptLike]


def as_prompt(value: PromptLike, where: str = "prompt") -> Prompt:
    """Read one prompt: a text, or a mapping with "prompt", optional "references" and further columns.

    Args:
        value: the text, mapping or `Prompt`.
        where: what to call it in an error, e.g. "prompts[3]".

    Raises:
        TypeError: it, or a field of it, is of another type.
        ValueError: the text is empty, or the mapping has no "prompt".
    """
    if isinstance(value, Prompt):
        prompt = value
    elif isinstance(value, str):
        prompt = Prompt(value)
    elif isinstance(value, Mapping):
        if "prompt" not in value:
            raise ValueError(f'{where} has no "prompt": its keys are {sorted(map(str, value))}')
        extra = {key: column for key, column in value.items() if key not in ("prompt", "references")}
        prompt = Prompt(value["prompt"], _as_references(value.get("references"), where), extra)
    else:
        raise TypeError(f'{where}={value!r} must be a text or a mapping with "prompt", not {type(value).__name__}')
    if not isinstance(prompt.text, str):
        raise TypeError(f"{where} has the prompt {prompt.text!r}; it must be a text, not {type(prompt.text).__name__}")
    if not prompt.text.strip():
        raise ValueError(f"{where} is empty; a prompt needs at least one character that is not white space")
    return prompt


def prompt_as_dict(prompt: Prompt) -> dict[str, Any]:
    """The mapping that `as_prompt` reads back."""
    return {**prompt.extra, "prompt": prompt.text, "references": list(prompt.references)}


def _as_references(value: Any, where: str) -> tuple[str, ...]:
    try:
        references = () if value is None else (value,) if isinstance(value, str) else tuple(value)
    except TypeError:
        raise TypeError(f"{where} has the references {value!r}; they are a text or a list of texts") from None
    for reference in references:
        if not isinstance(reference, str):
            raise TypeError(f"{where} has the reference {reference!r}; references are texts")
    return references


def load_prompts(source: PromptSource) -> list[Prompt]:
    """Read and check a whole set of prompts.

    Args:
        source: a sequence of prompts; a path to a .jsonl file with one `{"prompt": …, "references": […], …}` (or a
            plain JSON string) a line; the name of a packaged or fetched set; or, for the `datasets` library, a mapping
            `{"dataset": id, "split": "train", "prompt": column or template, "references": column, …}` whose other keys
            are handed to `datasets.load_dataset`. A template names columns in braces: "Summarize: {document}".

    Returns:
        The prompts, at least one.

    Raises:
        ValueError: no prompts, an unknown name, or a malformed line, with its number.
        TypeError: a field of the wrong type.
    """
    if isinstance(source, Mapping):
        prompts = _from_datasets(**source)
    elif isinstance(source, (str, Path)):
        path = _find(source)
        prompts = [as_prompt(value, where) for where, value in _read_jsonl(path)]
    elif isinstance(source, Sequence):
        prompts = [as_prompt(value, f"prompts[{index}]") for index, value in enumerate(source)]
    else:
        raise TypeError(f"prompts={source!r} must be a list, a path or a name, not {type(source).__name__}")
    if not prompts:
        raise ValueError(f"prompts={source!r} holds no prompt; an environment needs at least one")
    return prompts


def _find(source: str | Path) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    if str(source) in PROMPT_SETS:
        return prompt_path(str(source))
    if path.suffix in (".jsonl", ".json") or isinstance(source, Path):
        raise ValueError(f"prompts={str(source)!r}: there is no such file")
    raise ValueError(f"prompts={source!r} is neither a file nor a known set ({', '.join(sorted(PROMPT_SETS))})")


def _read_jsonl(path: Path) -> Iterable[tuple[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                yield where, json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{where} is not JSON: {error}") from error


def _from_datasets(dataset: str, *, prompt: str, references: str | None = None, **options: Any) -> list[Prompt]:
    """Rows of `datasets.load_dataset(dataset, **options)`; `split` defaults to "train"."""
    try:
        import datasets  # optional: an extra of the package
    except ImportError as error:
        raise ImportError(f"prompts from dataset={dataset!r} need: pip install 'textgen_env[datasets]'") from error
    rows = datasets.load_dataset(dataset, **{"split": "train", **options})
    template = prompt if "{" in prompt else f"{{{prompt}}}"
    return [
        as_prompt(
            {**row, "prompt": template.format(**row), "references": row[references] if references else None},
            f"{dataset}[{index}]",
        )
        for index, row in enumerate(rows)
    ]
