"""Random dialogues in short: that they pass, and that a fault would show."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.fuzz import Violation
from benchmarks.fuzz_dialogues import Answers, Settings, fuzz
from textgen_env.episode import Episodes
from textgen_env.kl_penalty import KLPenalty
from textgen_env.lm.language_model import LanguageModel

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def test_random_dialogues_keep_to_the_plain_account():
    records = list(fuzz(Settings(turns=360, per_env=60, seed=3)))
    assert sum(record["turns"] for record in records) >= 360
    ends = {name for record in records for name in record["ends"]}
    assert ends == {"eos", "stop", "length", "environment", "horizon", "failed"}
    assert sum(record["steps_after_loading"] for record in records) > 0
    assert {record["arguments"]["kl_coef"] for record in records} == {0.0, 0.1}


def forget_who_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last token of a reply is taken for the agent's."""

    def write(self: Episodes, slot: int, ids: Any, *, by_agent: bool, plain: Any = Episodes._write) -> None:
        plain(self, slot, ids, by_agent=by_agent)
        if self.playing[slot] and len(ids):
            self.response_mask[slot, self.lengths[slot] - 1] = 1

    monkeypatch.setattr(Episodes, "_write", write)


def encode_special_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LanguageModel, "encode_plain", LanguageModel.encode_as_is)


def forget_a_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Answers, "load_state_dict", lambda self, state: None)


def other_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    def ref_logits(self: KLPenalty, *args: Any, plain: Any = KLPenalty.ref_logits) -> Any:
        return plain(self, *args) * 1.01

    monkeypatch.setattr(KLPenalty, "ref_logits", ref_logits)


@pytest.mark.parametrize("fault", [forget_who_wrote, encode_special_tokens, forget_a_count, other_temperature])
def test_a_fault_is_found(fault: Any, monkeypatch: pytest.MonkeyPatch):
    fault(monkeypatch)
    with pytest.raises(Violation, match="arguments:"):
        list(fuzz(Settings(turns=360, per_env=60, seed=3)))
