"""Nothing that a model wrote steers the terminal, and nothing that is shown can end a run."""

from __future__ import annotations

import io
import json
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from small_run import small_settings

from textgen_env.agents.ppo import PPO
from textgen_env.agents.training import command_line
from textgen_env.agents.training.display import Display
from textgen_env.agents.training.evaluate import EvalReport
from textgen_env.agents.training.metrics_log import read_metrics
from textgen_env.agents.training.report import answers_table, samples_table
from textgen_env.agents.training.run import Run

STEERING = {
    "title": "\x1b]0;owned\x07",
    "clipboard": "\x1b]52;c;cm0gLXJm\x07",
    "link": "\x1b]8;;https://example.org\x1b\\",
    "clear": "\x1b[2J\x1b[H",
    "c1": "\x9b31m\x9d0;x\x9c",
    "bidi": "\u202eabc\u2066",
    "return": "safe\rother",
    "null": "a\x00b\x08",
}
TEXTS = [
    *STEERING.values(),
    r"\[/x]",
    "[/]",
    "[bold red]loud",
    "[link=https://example.org]x[/link]",
    ":smile:",
    "$x^{$",
]
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class Written:
    """Samples as a trainer hands them over."""

    def __init__(self, texts: list[str]) -> None:
        self.prompts, self.texts, self.scores = texts, texts, _Numbers([0.5] * len(texts))


class _Numbers(list[float]):
    def tolist(self) -> list[float]:
        return list(self)


def screen(**more: Any) -> Console:
    return Console(file=io.StringIO(), width=200, **more)


def shown_on(console: Console) -> str:
    file: Any = console.file
    return str(file.getvalue())


@pytest.mark.parametrize("text", TEXTS)
def test_texts_are_shown_as_they_are_and_never_obeyed(text: str):
    console = screen()
    display, said = Display(console), EvalReport({}, [text], [text], [0.5])
    display.say(f"said {text}")
    display.attempt("samples", lambda: samples_table(3, Written([text])))
    display.attempt("answers", lambda: answers_table(said, said))
    display.attempt("broken", lambda: int(text))
    output = shown_on(console)
    assert not OBEYED.search(output)
    assert "left out" in output  # of the last one alone
    assert output.count("left out") == 1
    if text not in STEERING.values():
        assert output.count(text) >= 5


def test_on_a_terminal_the_bar_shows_texts_as_they_are():
    file = io.StringIO()
    file.isatty = lambda: True  # type: ignore[method-assign]
    display = Display(Console(file=file, force_terminal=True, width=120, color_system=None))
    display.start(4, 1)
    display.update(2, "score [/x] \x1b]0;owned\x07")
    display.stop()
    assert "score [/x] \\x1b]0;owned\\x07" in file.getvalue()
    assert "2/4" in file.getvalue()


@pytest.mark.parametrize("more", [{}, {"force_terminal": True}])  # as FORCE_COLOR makes it
def test_a_file_gets_one_line_an_update(more: dict[str, Any]):
    console = screen(**more)
    display = Display(console)
    display.start(3, 0)
    for update in (1, 2, 3):
        display.update(update, f"score {update}")
    display.stop()
    assert shown_on(console).splitlines() == [f"update {n}/3  score {n}" for n in (1, 2, 3)]


@pytest.fixture
def make_run(word_model: Path, tmp_path: Path) -> Callable[..., Run]:
    def make(console: Console, **more: Any) -> Run:
        prompts = tmp_path / "prompts.jsonl"
        prompts.write_text("".join(json.dumps({"prompt": f"a {text} b"}) + "\n" for text in TEXTS))
        options = {"eval_prompts": 5, "updates": 2, "sample_every": 1, "save_every": 1, **more}
        settings = small_settings(tmp_path / "run", word_model, prompts, **options)
        return Run(settings, lambda run: PPO(run.venv, run.policy, settings.ppo), console)

    return make


def finished(folder: Path) -> bool:
    updates = [record["update"] for record in read_metrics(folder / "metrics.jsonl") if "train/score" in record]
    last = folder / "checkpoints" / "00000002" / "digest.json"
    return updates == [1, 2] and last.is_file() and (folder / "last" / "model.safetensors").is_file()


def test_prompts_with_markup_and_escapes_are_trained_on(make_run: Callable[..., Run]):
    console = screen()
    folder = make_run(console).execute()
    assert finished(folder)
    assert "left out" not in shown_on(console)
    assert not OBEYED.search(shown_on(console))
    assert not OBEYED.search((folder / "episodes.html").read_text())


def test_a_failing_plot_page_and_tracker_are_named_and_left_out(make_run: Callable[..., Run]):
    console = screen()
    run = make_run(console)
    for name in ("plot.png", "episodes.html"):  # a folder in the way
        (run.folder / name / "in the way").mkdir(parents=True)
    (run.folder / "tensorboard").write_text("in the way, too")
    folder = run.execute()
    assert finished(folder)
    for name in ("plot.png", "episodes.html", "TensorBoard"):
        assert shown_on(console).count(f"{name} left out: ") == 1


def test_tables_that_fail_come_after_the_checkpoint(make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch):
    console, saved = screen(), []

    def broken(*_: Any) -> None:
        saved.append([path.name for path in run.run_folder.checkpoints.iterdir()])
        raise RuntimeError("no table")

    for name in ("run.samples_table", "report.before_after_table", "report.answers_table"):
        monkeypatch.setattr(f"textgen_env.agents.training.{name}", broken)
    run = make_run(console)
    assert finished(run.execute())
    assert shown_on(console).count("left out: RuntimeError: no table") == 4
    assert ["00000001" in saved[0], "00000002" in saved[1]] == [True, True]


class Gone(io.StringIO):
    """A terminal that is gone, or a pipe that nobody reads any more."""

    def __init__(self, error: type[OSError]) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error(5, "gone")

    def flush(self) -> None:
        raise self.error(5, "gone")


@pytest.mark.parametrize("error", [OSError, BrokenPipeError])
def test_a_screen_that_is_gone_costs_the_output_alone(error: type[OSError], make_run: Callable[..., Run]):
    assert finished(make_run(Console(file=Gone(error), width=80)).execute())


def test_warnings_are_lines_without_a_file_and_come_once(capsys: pytest.CaptureFixture[str]) -> None:
    class Program:
        begun = True

        def execute(self) -> None:
            file = str(Path(command_line.__file__).with_name("run.py"))
            for number, name in ((34, "'one\x1b'"), (33, "'two'")):
                warnings.warn_explicit(f"a prompt of {number} tokens, {name}", UserWarning, file, number)
            warnings.warn_explicit("a library's", UserWarning, "/elsewhere/library.py", 7)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, category, filename, *_: print(filename, file=sys.stderr)
        command_line.run(Program)
    assert capsys.readouterr().err.splitlines() == [
        "warning: a prompt of 34 tokens, 'one\\x1b'",
        "/elsewhere/library.py",
    ]
