"""Where prompts come from: a list, a file, a packaged or fetched set, or a set of `datasets` or reasoning-gym.

Reading and checking alone: conversations are checked in `messages.py`, files are read in `prompt_files.py`, and which
prompt an episode gets is drawn by the engine from the slot's own generator.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from textgen_env.assets import PROMPT_SETS, prompt_path
from textgen_env.episode import Prompt
from textgen_env.messages import Message, as_messages, is_conversation, readable
from textgen_env.notices import shown
from textgen_env.prompt_files import read_rows
from textgen_env.reasoning_tasks import is_reasoning_source, reasoning_rows

PromptLike: TypeAlias = str | Mapping[str, Any] | Sequence[Message] | Prompt
PromptSource: TypeAlias = str | Path | Mapping[str, Any] | Iterable[PromptLike]

RESERVED_COLUMNS = frozenset(
    {"completions", "prompts", "completion_ids", "finish_reasons", "scorer", "default_name", "self"}
)
"""What scorers are called with beside the columns of the prompts, and what the functions that call them are named."""


def as_prompt(value: PromptLike, where: str = "prompt") -> Prompt:
    """Read one prompt.

    Args:
        value: a text; a conversation, which is a list of `{"role": …, "content": …}`; or a mapping with one of them as
            "prompt" (or a conversation as "messages"), optional "references" and further columns for the scorer.
        where: what to call it in an error, e.g. "prompts[3]".

    Raises:
        TypeError: it, or a field of it, is of another type.
        ValueError: the text is empty or holds a lone surrogate, the mapping has no "prompt", or a column has a name
            that is taken.
    """
    prompt = value if isinstance(value, Prompt) else _read(value, where)
    if not isinstance(prompt.text, str):
        raise TypeError(f"{where} has the prompt {shown(prompt.text)}; it must be a text or a list of messages")
    if not prompt.text.strip():
        raise ValueError(f"{where} is empty; a prompt needs at least one character that is not white space")
    check_columns(prompt, RESERVED_COLUMNS, where)
    for name, part in (("", prompt.text), ("references", prompt.references), ("messages", prompt.messages)):
        _check_characters(part, f"{where}: {name}" if name else where)
    _check_characters(prompt.extra, f"{where}: column")
    return prompt


def prompt_as_dict(prompt: Prompt) -> dict[str, Any]:
    """The mapping that `as_prompt` reads back."""
    text = prompt.text if prompt.messages is None else [dict(message) for message in prompt.messages]
    return {**prompt.extra, "prompt": text, "references": list(prompt.references)}


def check_columns(prompt: Prompt, taken: Collection[str], where: str) -> None:
    """Check that every column of a prompt can be handed to a scorer as a keyword argument.

    Args:
        prompt: whose `extra` are the columns.
        taken: names under which the scorer gets something else.
        where: what to call the prompt in an error.

    Raises:
        TypeError: a column's name is no text.
        ValueError: it is taken.
    """
    for name in prompt.extra:
        if not isinstance(name, str):
            raise TypeError(f"{where} has the column {name!r}; names of columns must be texts")
        if name in taken:
            raise ValueError(
                f"{where} has a column {name!r}, a name under which scorers get something else; rename it, for "
                f"instance to 'prompt_{name}'"
            )


def _read(value: PromptLike, where: str) -> Prompt:
    if isinstance(value, str):
        return Prompt(value)
    if is_conversation(value):
        return _conversation(value, where)
    if not isinstance(value, Mapping):
        raise TypeError(
            f'{where}={shown(value)} must be a text or a mapping with "prompt", or a list of messages, '
            f"not {type(value).__name__}"
        )
    key = "prompt" if "prompt" in value else "messages"
    if key not in value:
        hint = "; a conversation is a list of such messages" if "role" in value else ""
        raise ValueError(f'{where} has no "prompt": its keys are {sorted(map(str, value))}{hint}')
    references = _as_references(value.get("references"), where)
    extra = {name: column for name, column in value.items() if name not in (key, "references")}
    if key == "prompt" and not is_conversation(value[key]):
        return Prompt(value[key], references, extra)
    if "messages" in extra:
        raise ValueError(f'{where} has messages both as "prompt" and as "messages"; leave one out')
    return _conversation(value[key], where, references, extra)


def _conversation(
    value: Any, where: str, references: tuple[str, ...] = (), extra: Mapping[str, Any] | None = None
) -> Prompt:
    messages = as_messages(value, where)
    return Prompt(readable(messages), references, extra or {}, messages)


def _as_references(value: Any, where: str) -> tuple[str, ...]:
    if value is not None and (isinstance(value, (bytes, Mapping)) or not isinstance(value, Iterable)):
        raise TypeError(f"{where} has the references {shown(value)}; they must be a text or a list of texts")
    references = () if value is None else (value,) if isinstance(value, str) else tuple(value)
    for reference in references:
        if not isinstance(reference, str):
            raise TypeError(f"{where} has the reference {shown(reference)}; references are texts")
    return references


def _check_characters(value: Any, where: str) -> None:
    """Texts within plain values have no lone surrogates, which no file, tokenizer or terminal can write."""
    if isinstance(value, str):
        try:
            if not value.isascii():
                value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{where} has a lone surrogate, {value[error.start]!r}, which is half a character: {shown(value)}"
            ) from error
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _check_characters(key, where)
            _check_characters(item, f"{where} {key!r}")
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_characters(item, where)


def load_prompts(source: PromptSource) -> list[Prompt]:
    """Read and check a whole set of prompts.

    Args:
        source: any iterable of prompts (a list, a generator, a `datasets.Dataset`, a table of pandas or polars); a path
            to a file with one `{"prompt": …, "references": […], …}` (or anything else that `as_prompt` takes) a line,
            or with one JSON array of them, in UTF-8, gzipped or not; the name of a packaged or fetched set; or, for the
            `datasets` library, a mapping `{"dataset": id, "split": "train", "prompt": column or template,
            "references": column, …}` whose other keys are handed to `datasets.load_dataset`. A template names columns
            in braces: "Summarize: {document}". And "reasoning-gym:NAME" for a task of that library, with its settings;
            see `reasoning_tasks.reasoning_rows`.

    Returns:
        The prompts, at least one.

    Raises:
        ValueError: no prompts, an unknown name, or a malformed line, with its number.
        TypeError: a field of the wrong type.
    """
    if is_reasoning_source(source):
        prompts = [as_prompt(row, where) for where, row in reasoning_rows(source)]  # type: ignore[arg-type]
    elif isinstance(source, (str, Path)):
        prompts = [as_prompt(value, where) for where, value in read_rows(_find(source))]
    elif isinstance(source, Mapping):
        prompts = _from_datasets(**_checked_description(source))
    else:
        prompts = [as_prompt(value, f"prompts[{index}]") for index, value in enumerate(_rows(source))]
    if not prompts:
        spent = "; an iterator can be read only once" if isinstance(source, Iterator) else ""
        raise ValueError(f"prompts={shown(source)} holds no prompt; an environment needs at least one{spent}")
    return prompts


def _rows(source: Any) -> Iterable[Any]:
    """The rows of anything that has some, in an order that is always the same."""
    if isinstance(source, (bytes, set, frozenset, Prompt)) or not isinstance(source, Iterable):
        raise TypeError(
            f"prompts={shown(source)} must be a list of prompts, another iterable with an order, a path or a name, "
            f"not {type(source).__name__}"
        )
    if is_conversation(source):
        raise ValueError("prompts is itself a conversation; put it into a list: prompts=[[{'role': …}, …]]")
    if hasattr(source, "to_dicts"):  # a table of polars
        return source.to_dicts()  # type: ignore[no-any-return]
    if hasattr(source, "to_dict") and hasattr(source, "columns"):  # a table of pandas, which iterates over its columns
        return source.to_dict("records")  # type: ignore[no-any-return]
    return source


def _find(source: str | Path) -> Path:
    """The file that a path or the name of a set stands for."""
    path = Path(source)
    try:
        if path.is_file():
            return path
        is_folder = bool(str(source)) and path.is_dir()
    except OSError:  # too long for a name: a text, most likely
        is_folder = False
    if str(source) in PROMPT_SETS:
        return prompt_path(str(source))
    if is_folder:
        raise ValueError(f"prompts={str(source)!r} is a folder; name a file in it")
    if path.suffix in (".jsonl", ".json", ".gz") or isinstance(source, Path):
        raise ValueError(f"prompts={str(source)!r}: there is no such file")
    raise ValueError(
        f"prompts={shown(source)} is neither a file nor a known set ({', '.join(sorted(PROMPT_SETS))}); a single "
        "prompt goes into a list: prompts=[text]"
    )


def _checked_description(source: Mapping[Any, Any]) -> Mapping[str, Any]:
    if "dataset" in source and "prompt" in source:
        return source
    if all(hasattr(split, "features") for split in source.values()) and source:
        raise ValueError(f"prompts is a DatasetDict; choose one of its splits: {', '.join(map(str, source))}")
    raise ValueError(
        f'prompts={shown(source)} must have "dataset" and "prompt", to be read by the datasets library; a single '
        "prompt goes into a list: prompts=[{…}]"
    )


def _from_datasets(dataset: str, *, prompt: str, references: str | None = None, **options: Any) -> list[Prompt]:
    """Rows of `datasets.load_dataset(dataset, **options)`; `split` defaults to "train"."""
    try:
        import datasets  # optional: an extra of the package
    except ImportError as error:
        raise ImportError(f"prompts from dataset={dataset!r} need: pip install 'textgen_env[datasets]'") from error
    rows = datasets.load_dataset(dataset, **{"split": "train", **options})
    prompts = []
    for index, row in enumerate(rows):
        read = {
            "prompt": prompt.format(**row) if "{" in prompt else row[prompt],
            "references": row[references] if references else None,
        }
        others = {name: column for name, column in row.items() if (name, prompt) != ("messages", "messages")}
        prompts.append(as_prompt(others | read, f"{dataset}[{index}]"))
    return prompts
