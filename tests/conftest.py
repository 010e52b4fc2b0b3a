"""Shared by all tests: no hub, and a tiny random model on disk that loads in milliseconds."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models this small lose time to threads, and tests run side by side

import warnings

import pytest
from tiny_models import save_model

pytest.register_assert_rewrite("textgen_env.testing")


@pytest.fixture(scope="session")
def byte_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Directory of a random Llama whose tokens are bytes."""
    return save_model(tmp_path_factory.mktemp("byte-llama"))


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same vocabulary, other weights: something to differ from."""
    return save_model(tmp_path_factory.mktemp("byte-llama-2"), seed=1)


@pytest.fixture(autouse=True)
def _no_passive_checker_noise() -> None:
    """Warnings of unbound KL are tested where they matter, and expected elsewhere."""
    warnings.filterwarnings("ignore", message=".*policy is unknown to the environment.*")
