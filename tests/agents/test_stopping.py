"""A signal finishes the update in hand and saves it; a second one ends the process at once."""

from __future__ import annotations

import io
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from small_run import flags, small_settings, start, write_prompts

from textgen_env.agents.ppo import PPO, PPOSettings, main, make_run
from textgen_env.agents.training.checkpoint import latest_checkpoint
from textgen_env.agents.training.metrics_log import read_metrics
from textgen_env.agents.training.run import Run
from textgen_env.agents.training.stopping import SIGNALS, Stopped, Stopping


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Ctrl-C has its usual meaning, also where the tests run in the background of a script, whose shell ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("prompts") / "prompts.jsonl")


def interrupting(run: Run, at: int, number: int) -> Run:
    """The same run, which gets a signal in the middle of an update."""
    trainer: Any = run.trainer
    iterate = trainer.iterate

    def with_signal() -> Any:
        if trainer.updates == at - 1:
            signal.raise_signal(number)
        return iterate()

    trainer.iterate = with_signal
    return run


@pytest.mark.parametrize("number", SIGNALS)
def test_the_update_is_finished_and_saved(number: int, word_model: Path, prompts: Path, tmp_path: Path):
    folder = tmp_path / "run"
    run = interrupting(make_run(flags(folder, word_model, prompts, "--save-every", "5")), 3, number)
    before = signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)
    handlers = [signal.getsignal(each) for each in SIGNALS]
    try:
        with pytest.raises(SystemExit) as end:
            run.execute()
        assert [signal.getsignal(each) for each in SIGNALS] == handlers
    finally:
        signal.signal(number, before)
    assert end.value.code == 128 + number
    assert latest_checkpoint(folder / "checkpoints") == folder / "checkpoints" / "00000003"
    assert [r["update"] for r in read_metrics(folder / "metrics.jsonl") if "train/score" in r] == [1, 2, 3]
    assert not (folder / "after.json").exists()
    assert not (folder / "run.lock").exists()


def test_what_is_said_goes_on_with_the_run(word_model: Path, prompts: Path, tmp_path: Path):
    """The command that a stopped run prints, as printed, ends the run like one that was never stopped."""
    for name in ("straight", "stop ped"):
        (tmp_path / name).mkdir()
    straight, stopped = tmp_path / "straight" / "run", tmp_path / "stop ped" / "run"
    main(flags(straight, word_model, prompts))
    process = start("ppo", *flags(stopped, word_model, prompts, "--save-every", "6"))
    while process.poll() is None and len(read_metrics(stopped / "metrics.jsonl")) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert process.returncode == 143, out + err
    *_, reason, command = out.splitlines()
    done = int(latest_checkpoint(stopped / "checkpoints").name)  # type: ignore[union-attr]
    assert f"stopped by SIGTERM: update {done} is saved in {stopped}/checkpoints/{done:08d}" in reason
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    again = subprocess.run(shlex.split(command), capture_output=True, text=True, env=environment, check=True)
    assert f"going on after update {done} of 6" in again.stdout
    for name in ("before.json", "after.json", "last/model.safetensors", "last/critic.safetensors"):
        assert (stopped / name).read_bytes() == (straight / name).read_bytes()
    for name in ("tensors.safetensors", "state.json", "digest.json"):
        ours, theirs = ((folder / "checkpoints/00000006" / name).read_bytes() for folder in (stopped, straight))
        assert ours == theirs


CHILD = """
import os, signal, time
from textgen_env.agents.training.stopping import Stopping
with Stopping("noted") as stopping:
    with stopping.deferred():
        print("ready", flush=True)
        time.sleep(60)
"""


def test_a_second_signal_ends_the_process_at_once():
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    assert child.stdout is not None
    assert child.stderr is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGINT)
    assert child.stderr.readline() + child.stderr.readline() == "\nnoted\n"
    assert child.poll() is None
    child.send_signal(signal.SIGTERM)
    assert child.wait() == -signal.SIGTERM


def test_ignored_signals_stay_ignored_and_threads_are_left_alone():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what nohup does
    try:
        with Stopping("") as stopping:
            signal.raise_signal(signal.SIGHUP)
            assert stopping.requested is None
    finally:
        signal.signal(signal.SIGHUP, before)
    errors: list[BaseException] = []

    def enter() -> None:
        try:
            with Stopping("") as inside, inside.deferred():
                pass
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert not errors


def test_outside_an_update_the_first_signal_stops_at_once():
    with pytest.raises(Stopped) as stopped, Stopping(""):
        signal.raise_signal(signal.SIGTERM)
    assert stopped.value.code == 143


def test_stopped_before_anything_was_saved_it_says_so(word_model: Path, prompts: Path, tmp_path: Path):
    folder, screen = tmp_path / "run", io.StringIO()
    settings = small_settings(folder, word_model, prompts)
    run = Run(settings, make_ppo(settings), Console(file=screen, width=500))
    evaluate, run.evaluate = run.evaluate, lambda: (signal.raise_signal(signal.SIGINT), evaluate())[1]  # type: ignore[method-assign]
    with pytest.raises(SystemExit) as end:
        run.execute()
    assert end.value.code == 130
    assert "stopped by SIGINT: nothing was saved yet" in screen.getvalue()
    again = small_settings(folder, word_model, prompts, resume=True)
    Run(again, make_ppo(again), Console(file=screen, width=500)).execute()
    assert [r["update"] for r in read_metrics(folder / "metrics.jsonl")] == [1, 1]


def make_ppo(settings: PPOSettings) -> Callable[..., PPO]:
    return lambda run: PPO(run.venv, run.policy, settings.ppo)
