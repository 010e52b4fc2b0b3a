"""The loading benchmark: spans of a real process, and its table from records made by hand."""

from __future__ import annotations

import pytest

from benchmarks.loading import LoadingSettings, load, measure, table


def test_the_first_observation_is_there_within_two_seconds_after_the_imports():
    """Of processor time, on one thread: the wall clock of a machine that runs tests beside it says little.

    Descriptions take longest: document frequencies of 1,700 prompts are counted.
    """
    warm_up, record = measure(LoadingSettings(tasks=["Describe"], repeats=1, threads=1))
    assert warm_up["warm_up"]
    assert not record["warm_up"]
    assert 0 < record["first_cpu"] < 2
    assert 0 < record["again_cpu"] < 2
    assert record["package_cpu"] < record["libraries_cpu"]  # importing the package alone stays light
    assert all(record[f"{span}_wall"] > 0 for span in ("package", "libraries", "first", "again"))


def test_a_process_that_fails_is_quoted():
    with pytest.raises(RuntimeError, match=r"textgen/None-v0 was not loaded: (.|\n)*doesn't exist"):
        load("textgen/None-v0")


def test_table_has_medians_of_the_clock_asked_for_and_the_slowest():
    names = [f"{span}_{clock}" for span in ("package", "libraries", "again") for clock in ("wall", "cpu")]
    records = [
        {"task": "A", "warm_up": warm_up, "first_wall": wall, "first_cpu": cpu, **dict.fromkeys(names, 0.5)}
        for warm_up, wall, cpu in ((True, 99.0, 99.0), (False, 1.0, 0.1), (False, 2.0, 0.2), (False, 9.0, 0.4))
    ]
    assert table(records).splitlines()[-1] == "| A | 0.50 | 0.50 | 2.00 | 0.50 | 9.00 |"
    assert table(records, "cpu").splitlines()[-1] == "| A | 0.50 | 0.50 | 0.20 | 0.50 | 0.40 |"
