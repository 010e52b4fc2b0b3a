"""Settings out of range are refused at the door, by name; a mistake on the command line is one line and exit code 2."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_run import start

from textgen_env.agents.dpo import DPOConfig
from textgen_env.agents.expected import ExpectedConfig
from textgen_env.agents.grpo import GRPOConfig
from textgen_env.agents.policy import PolicyConfig
from textgen_env.agents.ppo import PPOConfig, PPOSettings, make_run
from textgen_env.agents.preferences.loop import LabelConfig
from textgen_env.agents.preferences.source import PairConfig
from textgen_env.agents.reinforce import ReinforceConfig
from textgen_env.agents.reward_model import RewardModelConfig
from textgen_env.agents.rlhf_config import RLHFSettings
from textgen_env.agents.sft import SFTConfig
from textgen_env.agents.training.command_line import parse
from textgen_env.agents.training.command_line import run as run_program
from textgen_env.agents.vine_ppo import VinePPOConfig

NEVER = [math.nan, math.inf, -math.inf, "1", True, [1]]
POSITIVE = [*NEVER, 0, -1, 10**400]
NOT_NEGATIVE = [*NEVER, -1, -1e-300]
COUNT = [*NEVER, 0, -3, 1.5, None]
COUNT_OR_ZERO = [*NEVER, -3, 1.5, None]
RENAMED = "kl_target is now adaptive_kl_target"
SHARE = [*NEVER, -0.1, 1.1, None]

OTHER = ["other", "", None, 1]
OPTIM: dict[str, list[Any]] = {
    **dict.fromkeys(("minibatch_size", "micro_batch_size"), COUNT),
    "warmup_updates": COUNT_OR_ZERO,
    **dict.fromkeys(("lr", "weight_decay"), NOT_NEGATIVE),
    "max_grad_norm": POSITIVE,
    "lr_decay": OTHER,
}
ON_POLICY: dict[str, list[Any]] = {
    **OPTIM,
    "episodes": COUNT,
    "top_k": COUNT_OR_ZERO,
    **{name: [*SHARE, 0] for name in ("top_p", "mask_top_p")},
    "mask_every": COUNT,
    "kl_coef": NOT_NEGATIVE,
    **dict.fromkeys(("kl_horizon", "adaptive_kl_target"), POSITIVE),
    "old_log_probs": OTHER,
    **dict.fromkeys(("importance_weights", "importance_beyond"), OTHER),
    "importance_cap": POSITIVE,
    "reset_share": SHARE,
    "reset_from": OTHER,
}

FOLDER: dict[str, Any] = {
    **dict.fromkeys(("save_every", "sample_every", "num_envs", "eval_prompts"), COUNT),
    **{name: [*NEVER, 0, -1, 2.5] for name in ("eval_every", "max_new_tokens", "max_prompt_tokens")},
    "temperature": POSITIVE,
    "seed": [*NEVER, -1, 2**32, 0.5, None],
    "dtype": ["float16", "nope", None],
    **{name: ["", None, 3] for name in ("env", "model", "device")},
    **{name: ["", 3] for name in ("prompts", "scorer", "output")},
    **{name: ["yes", 1] for name in ("resume", "debug")},
}
WRONG: list[tuple[type, dict[str, list[Any]]]] = [
    (
        PPOConfig,
        {
            **ON_POLICY,
            "epochs": COUNT,
            **dict.fromkeys(("value_lr", "value_coef", "ptx_coef", "entropy_coef"), NOT_NEGATIVE),
            "critic_warmup": COUNT_OR_ZERO,
            **dict.fromkeys(("clip", "value_clip", "target_kl", "lam_alpha"), POSITIVE),
            **dict.fromkeys(("gamma", "lam"), SHARE),
            "value_lam": SHARE[:-1],  # None: that of the policy
            "whiten": [1, "yes", None],
            "kl_in": OTHER,
        },
    ),
    (
        ReinforceConfig,
        {
            **ON_POLICY,
            **dict.fromkeys(("baseline", "kl_in"), OTHER),
            "group_size": COUNT,
            **dict.fromkeys(("value_lr", "value_coef"), NOT_NEGATIVE),
        },
    ),
    (
        GRPOConfig,
        {
            **ON_POLICY,
            **dict.fromkeys(("epochs", "group_size"), COUNT),
            **dict.fromkeys(("clip", "clip_high"), POSITIVE),
            **dict.fromkeys(("ratio", "scale", "length_norm", "kl_in"), OTHER),
            **{name: [1, "yes", None] for name in ("normalize_parts", "drop_overlong")},
        },
    ),
    (SFTConfig, OPTIM),
    (DPOConfig, {**OPTIM, "beta": POSITIVE, "loss": OTHER}),
    (
        RewardModelConfig,
        {
            **OPTIM,
            **dict.fromkeys(("members", "lora_alpha"), COUNT),
            **dict.fromkeys(("frozen_layers", "lora_rank"), COUNT_OR_ZERO),
            "fresh_layers": [value for value in COUNT_OR_ZERO if value is not None],
            **dict.fromkeys(("margin", "strength_margin", "center_coef", "value_lr"), NOT_NEGATIVE),
        },
    ),
    (
        PairConfig,
        {
            "pairs": ["", 3],
            **dict.fromkeys(("train_pairs", "held_out_pairs"), COUNT),
            "responses": [*NEVER, 1, 2.5, None],
            **dict.fromkeys(("label_temperature", "label_tie"), NOT_NEGATIVE),
            "label_flip": SHARE,
        },
    ),
    (
        LabelConfig,
        {
            "pairs": ["", 3],
            **dict.fromkeys(("labels", "held_out_pairs", "candidates"), COUNT),
            "responses": [*NEVER, 1, 2.5, None],
            **dict.fromkeys(("label_temperature", "label_tie"), NOT_NEGATIVE),
            **dict.fromkeys(("label_flip", "initial_share", "wait_for"), SHARE),
            "half_rate_at": POSITIVE,
            **dict.fromkeys(("labeller", "select"), OTHER),
        },
    ),
    (
        ExpectedConfig,
        {
            **ON_POLICY,
            **dict.fromkeys(("every", "sampled", "continuations", "group_size"), COUNT),
            "actions": COUNT_OR_ZERO,
            "after": ["", 3],
            "at": OTHER,
            "min_entropy": NOT_NEGATIVE,
        },
    ),
    (
        VinePPOConfig,
        {
            **ON_POLICY,
            **dict.fromkeys(("continuations", "branch_every", "epochs"), COUNT),
            "learn_from": OTHER,
            "clip": POSITIVE,
            "whiten": ["yes", 1, None],
        },
    ),
    (
        PolicyConfig,
        {
            "critic": ["none", None],
            "lora_alpha": COUNT,
            "lora_rank": COUNT_OR_ZERO,
            "frozen_layers": [*NEVER, 1.5, None],
        },
    ),
    (
        PPOSettings,
        {**FOLDER, "updates": COUNT, "optimum_samples": COUNT_OR_ZERO, "ptx_texts": ["", 3]},
    ),
    (
        RLHFSettings,
        {
            **FOLDER,
            **dict.fromkeys(("rounds", "reward_epochs", "ppo_updates"), COUNT),
            "reward_updates": [value for value in COUNT if value is not None],
            "sft_updates": COUNT_OR_ZERO,
            "ptx_texts": ["", 3],
        },
    ),
]
GROUPS = {"policy", "ppo", "sft", "reward_model", "labels"}
CASES = [(kind, name, value) for kind, table in WRONG for name, values in table.items() for value in values]


@pytest.mark.parametrize(("kind", "name", "value"), CASES)
def test_what_is_out_of_range_is_refused_by_name_and_value(kind: type, name: str, value: Any):
    with pytest.raises((ValueError, TypeError)) as refused:
        kind(**{name: value})
    assert str(refused.value).startswith(f"{name}={value!r} must be ")


def test_every_setting_has_a_rule():
    for kind, table in WRONG:
        untested = set(kind.__dataclass_fields__) - set(table) - GROUPS  # type: ignore[attr-defined]
        assert not untested


def test_edges_are_taken_and_numpy_numbers_become_plain():
    PPOConfig(lr=0, gamma=0, lam=1, clip=1e-9, top_p=1, warmup_updates=0, kl_coef=0, value_clip=None)
    config = PPOConfig(episodes=np.int64(64), lr=np.float32(0.5))  # type: ignore[arg-type]
    assert (type(config.episodes), type(config.lr)) == (int, float)
    PPOSettings(eval_every=None, seed=2**32 - 1)


def test_settings_that_do_not_fit_each_other():
    with pytest.raises(ValueError, match="micro_batch_size=3 must divide minibatch_size=32"):
        PPOConfig(micro_batch_size=3)
    with pytest.raises(ValueError, match="kl_coef=0 with adaptive_kl_target=1"):
        PPOConfig(kl_coef=0, adaptive_kl_target=1)
    with pytest.raises(ValueError, match="episodes=8 must be at least num_envs=64"):
        PPOSettings(ppo=PPOConfig(episodes=8))


def test_a_former_name_is_taken_with_a_warning():
    """Given, read and changed; what is wrong with it is said of the name that was given."""
    with pytest.warns(DeprecationWarning, match=RENAMED):
        config = PPOConfig(kl_target=0.5)  # type: ignore[call-arg]
    assert config == PPOConfig(adaptive_kl_target=0.5)
    assert "kl_target" not in asdict(config)
    with pytest.warns(DeprecationWarning, match=RENAMED):
        config.kl_target = 0.25  # type: ignore[attr-defined]
    assert replace(config, lr=1.0).adaptive_kl_target == 0.25
    with pytest.warns(DeprecationWarning, match=RENAMED):
        assert config.kl_target == 0.25  # type: ignore[attr-defined]
    for value in POSITIVE:
        with pytest.warns(DeprecationWarning, match=RENAMED), pytest.raises((TypeError, ValueError)) as refused:
            PPOConfig(kl_target=value)  # type: ignore[call-arg]
        assert str(refused.value).startswith(f"kl_target={value!r} must be ")
    with pytest.warns(DeprecationWarning, match=RENAMED), pytest.raises(ValueError, match="kl_coef=0 with kl_target=1"):
        PPOConfig(kl_coef=0, kl_target=1)  # type: ignore[call-arg]
    with (
        pytest.warns(DeprecationWarning, match=RENAMED),
        pytest.raises(TypeError, match="kl_target=1 is a former name"),
    ):
        PPOConfig(kl_target=1, adaptive_kl_target=2)  # type: ignore[call-arg]


@pytest.mark.parametrize("flag", ["--kl-target", "--adaptive-kl-target"])
def test_both_names_are_flags(flag: str):
    settings = parse(PPOSettings, "textgen_env.agents.ppo", [flag, "0.5", "--target-kl", "0.1"])
    assert (settings.ppo.adaptive_kl_target, settings.ppo.target_kl) == (0.5, 0.1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lr", "-1"], "lr=-1.0 must be a finite number ≥ 0"),
        (["--save-every", "0"], "save_every=0 must be a whole number ≥ 1"),
        (["--micro-batch-size", "3"], "micro_batch_size=3 must divide minibatch_size=32"),
        (["--nope", "1"], "Unrecognized options: --nope"),
        (["--epochs", "many"], "--epochs"),
        (["--kl-in", "neither"], "'neither'"),
    ],
)
def test_a_wrong_flag_is_one_line_and_code_2(
    flags: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as end:
        make_run([*flags, "--output", str(tmp_path / "run")])
    out, err = capfd.readouterr()
    assert end.value.code == 2
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert line.endswith("(see python -m textgen_env.agents.ppo --help)")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--env", "CartPole-v1"], "env='CartPole-v1' is not a textgen environment; choose one of textgen/TextGen-v0"),
        (["--env", "MountainCar-v0"], "env='MountainCar-v0' is not a textgen environment"),
        (["--env", "textgen/Nope-v0"], "env='textgen/Nope-v0' is not registered"),
        (["--env", "no_such_module:x"], "env='no_such_module:x' is not registered"),
        (["--env", "textgen/TextGen-v0"], "prompts=None: textgen/TextGen-v0 has no prompts of its own"),
        (["--env", "textgen/TextGen-v0", "--prompts", "reviews"], "scorer=None: textgen/TextGen-v0 has no scorer"),
        (["--scorer", "{broken"], "begins like JSON, but is none"),
        (["--ptx-texts", "nowhere.txt"], "ptx_texts='nowhere.txt' must be a text file in UTF-8"),
        (["--ptx-coef", "1"], "ptx_coef=1.0 needs ptx_texts"),
        (["--frozen-layers", "99"], "frozen_layers=99"),
        (["--frozen-layers", "-1"], "frozen_layers=-1"),
    ],
)
def test_what_only_the_set_up_can_find_is_named_and_leaves_no_folder(flags: list[str], message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=".") as refused:
        make_run([*flags, "--output", str(tmp_path / "run"), "--num-envs", "4"])
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert ("prompts" in str(refused.value)) == ("prompts" in message)  # nothing that was not asked
    assert not (tmp_path / "run").exists()


def test_the_process_says_one_line(tmp_path: Path):
    process = start("ppo", "--env", "CartPole-v1", "--output", str(tmp_path / "run"))
    out, err = process.communicate()
    assert (process.returncode, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith("error: env='CartPole-v1' is not a textgen environment")


SMALL = ["--num-envs", "4", "--episodes", "4", "--eval-prompts", "4", "--max-new-tokens", "3"]


@pytest.fixture
def end_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[object, list[str]]]:
    """Runs the program with some flags; its exit code and what it said on standard error."""

    def end(*flags: str) -> tuple[object, list[str]]:
        monkeypatch.setattr(sys, "argv", ["program", *SMALL, *flags, "--output", str(tmp_path / "run")])
        with pytest.raises(SystemExit) as ended:
            run_program(make_run)
        return ended.value.code, capsys.readouterr().err.splitlines()

    return end


def test_a_mistake_is_one_line_and_with_debug_the_traceback(end_of: Callable[..., Any], tmp_path: Path):
    mistake = "error: env='CartPole-v1' is not a textgen environment; choose one of"
    code, (line,) = end_of("--env", "CartPole-v1")
    assert code == 2
    assert line.startswith(mistake)
    code, (first, *lines, last) = end_of("--env", "CartPole-v1", "--debug")
    assert code == 2
    assert first.startswith("Traceback")
    assert any("environments.py" in line for line in lines)
    assert last.startswith(mistake)
    assert not (tmp_path / "run").exists()


def test_a_scorer_that_the_prompts_do_not_suit_is_one_line_too(end_of: Callable[..., Any], tmp_path: Path):
    code, (line,) = end_of("--scorer", "bleu")
    assert code == 2
    assert "bleu: references[0] is empty" in line
    assert not (tmp_path / "run").exists()


def test_what_fails_in_training_shows_where(end_of: Callable[..., Any], tmp_path: Path):
    """At this rate the weights overflow in the first update; what is before it stays."""
    code, lines = end_of("--lr", "1e30")
    assert code == 1
    assert lines[0].startswith("Traceback")
    assert "NonFiniteError: gradient norm is not finite in update 1" in lines[-1]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["00000000"]
