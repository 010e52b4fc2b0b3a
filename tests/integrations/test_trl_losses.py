"""The losses of GRPO and DPO beside TRL's own, on the same tensors: values and gradients."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="TRL is the extra 'trl'")

from trl import DPOTrainer

from benchmarks.off_policy import log_probs_of, make_trainer
from benchmarks.peers.trl_losses import grpo_loss, token_log_probs
from textgen_env.agents.grpo import GRPO, GRPOConfig
from textgen_env.agents.policy import TokenEvaluation
from textgen_env.agents.preference_losses import ipo_loss, preference_loss
from textgen_env.lm.sampling import SamplingParams

RESPONSES, LENGTH, BETA = 6, 5, 0.3


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    """Responses of 1 to 5 tokens whose log-probs have moved far enough to be clipped here and there."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    lengths = torch.tensor([5, 1, 3, 4, 2, 5])
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    old = -1.5 + 0.3 * normal(RESPONSES, LENGTH)
    return {
        "mask": mask,
        "old": old * mask,
        "new": (old + 0.25 * normal(RESPONSES, LENGTH)) * mask,
        "ref": (old + 0.4 * normal(RESPONSES, LENGTH)) * mask,
        "advantages": normal(RESPONSES),
    }


def of_trl(given: dict[str, torch.Tensor], settings: dict[str, Any], kl_coef: float) -> tuple[float, torch.Tensor]:
    """`GRPOTrainer._compute_loss`, with KL as ours is."""
    new = given["new"].clone().requires_grad_()
    constants = (given["old"], given["ref"], given["advantages"], given["mask"])
    loss = grpo_loss(new, *constants, max_length=LENGTH, kl_coef=kl_coef, bias_correction=True, **settings)
    loss.backward()
    return float(loss.detach()), new.grad


def of_ours(given: dict[str, torch.Tensor], settings: dict[str, Any], kl_coef: float) -> tuple[float, torch.Tensor]:
    """`GRPO.loss` of a trainer that has nothing but its settings."""
    new, mask = given["new"].clone().requires_grad_(), given["mask"]
    trainer = SimpleNamespace(
        config=GRPOConfig(kl_in="loss", **settings),
        env=SimpleNamespace(max_new_tokens=LENGTH),
        kl=SimpleNamespace(value=kl_coef),
        exact_kl=False,
        evaluate=lambda rollout, rows, **options: TokenEvaluation(new, None, None),
    )
    batch = SimpleNamespace(
        rollout=SimpleNamespace(response_mask=mask, cut=lambda rows, *grids: list(grids)),
        old_log_probs=given["old"],
        advantages=given["advantages"][:, None] * mask,
        ref_log_probs=given["ref"] if kl_coef else None,
        importance_of=lambda rows: None,
    )
    loss, _ = GRPO.loss(trainer, batch, torch.arange(RESPONSES))  # type: ignore[arg-type]
    loss.backward()
    assert new.grad is not None
    return float(loss.detach()), new.grad


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kl_coef", [0.0, BETA])
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"loss_type": "dr_grpo"}, {}),
        ({"loss_type": "grpo"}, {"length_norm": "response"}),
        ({"loss_type": "dapo", "epsilon_high": 0.28}, {"length_norm": "token", "clip_high": 0.28}),
    ],
    ids=["Dr. GRPO", "GRPO", "DAPO"],
)
def test_grpo(theirs: dict[str, Any], ours: dict[str, Any], kl_coef: float, seed: int) -> None:
    given = tensors(seed)
    value, gradient = of_trl(given, theirs, kl_coef)
    own_value, own_gradient = of_ours(given, ours, kl_coef)
    assert own_value == pytest.approx(value, abs=1e-12)
    torch.testing.assert_close(own_gradient, gradient * given["mask"], atol=1e-12, rtol=0)
    assert gradient.abs().max() > 0.01


def test_gspo() -> None:
    """The ratio of a whole response; where TRL adds KL it weighs that by this ratio as well, so without it here."""
    given = tensors()
    settings = {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 0.03, "epsilon_high": 0.05}
    value, gradient = of_trl(given, settings, 0.0)
    own = {"ratio": "sequence", "length_norm": "response", "scale": "group", "clip": 0.03, "clip_high": 0.05}
    own_value, own_gradient = of_ours(given, own, 0.0)
    assert own_value == pytest.approx(value, abs=1e-12)
    torch.testing.assert_close(own_gradient, gradient * given["mask"], atol=1e-12, rtol=0)


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
def test_dpo_and_ipo(loss_type: str) -> None:
    """Pairs as TRL stacks them, the chosen responses and then the rejected. TRL's IPO is of means over tokens, the
    paper's and ours of sums: with responses of five tokens each the same, once ours are divided by five."""
    given = tensors()
    if loss_type == "ipo":
        given["mask"] = torch.ones_like(given["mask"])
    new, mask = given["new"].clone().requires_grad_(), given["mask"]
    whole = torch.cat([torch.zeros_like(mask[:, :1]), mask], dim=1)
    outputs = SimpleNamespace(log_probs=new * mask, entropy=new, mean_logits=new, is_top1=mask)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x, gather=lambda x: x),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=BETA,
        use_weighting=False,
        _total_train_tokens=0,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    sums = (given["ref"] * mask).sum(dim=1)
    inputs = {
        "input_ids": whole,
        "completion_mask": whole,
        "ref_chosen_logps": sums[:3],
        "ref_rejected_logps": sums[3:],
    }
    loss = DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)
    loss.backward()
    own_new = given["new"].clone().requires_grad_()
    ratios = ((own_new - given["ref"]) * mask).sum(dim=1)
    difference, target = ratios[:3] - ratios[3:], torch.ones(3, dtype=torch.float64)
    if loss_type == "ipo":
        own = ipo_loss(difference / LENGTH, BETA, target)
    else:
        own = preference_loss(BETA * difference, target)
    own.backward()
    assert float(own.detach()) == pytest.approx(float(loss.detach()), abs=1e-12)
    torch.testing.assert_close(own_new.grad, new.grad, atol=1e-12, rtol=0)


def test_trl_scores_over_all_tokens() -> None:
    """Its log-probs are ours without top-p, and not those of the nucleus that was drawn from."""
    trainer = make_trainer(16, top_p=0.8)
    rollout = trainer.collect()
    theirs = token_log_probs(trainer.policy.language_model.model, rollout.tokens, 1.0)
    torch.testing.assert_close(theirs, log_probs_of(trainer, rollout, SamplingParams(1.0)), atol=1e-4, rtol=0)
    assert (theirs - rollout.sampled_log_probs).abs().max() > 0.05
