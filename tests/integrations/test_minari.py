"""Minari records what `UniformInfo` makes of infos, and gives it back. Needs minari[create,hdf5]."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("minari")
pytest.importorskip("jax")
pytest.importorskip("h5py")

import minari
from load_example import run_page
from small_task import EOS, single

from textgen_env.wrappers import UniformInfo

pytestmark = pytest.mark.heavy


@pytest.mark.filterwarnings("ignore")
def test_infos_are_recorded(task: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    env: gym.Env = UniformInfo(single({**task, "scorer": "distinct", "kl_coef": 0.1}))
    collector = minari.DataCollector(env, record_infos=True)
    played = []
    for seed in range(2):
        infos = [collector.reset(seed=seed)[1]]
        infos += [collector.step(action)[4] for action in (100, 101 + seed, EOS)]
        played.append(infos)
    dataset = collector.create_dataset(dataset_id="textgen/test-v0")
    for episode, infos in zip(dataset.iterate_episodes(), played, strict=True):
        assert [text.decode() for text in episode.infos["text"]] == [info["text"] for info in infos]
        for name in ("score", "ref_logprob", "response_length"):
            np.testing.assert_equal(np.asarray(episode.infos[name]), np.array([info[name] for info in infos]))
        np.testing.assert_equal(episode.infos["reward_parts"]["kl"], [info["reward_parts"]["kl"] for info in infos])
        assert episode.actions[-1] == EOS
    assert isinstance(dataset.recover_environment(), UniformInfo)


@pytest.mark.filterwarnings("ignore")
def test_the_section_in_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    run_page("integrations", tmp_path)
