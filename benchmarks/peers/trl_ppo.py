"""PPO of TRL 1.12 (`trl.experimental.ppo`), the last line of its releases that has PPO, on the common work.

What it does otherwise than ours, by its own design:

* A value head on the policy's backbone does not exist there; the value model is a second model. ``--critic small``
  gives it one embedding table and no transformer, the cheapest there can be (less work than our head); ``--critic
  full`` is what its documentation shows: a second model of the policy's size, trained too.
* The score comes from a reward *model*; here it is a module without weights that counts even token ids (of the prompt
  as well), so that it costs nothing.
* Old log-probs are taken from the logits of `generate`, not from a pass of their own: one forward less than ours.
* Logits of all positions are computed in the update, and the entropy of each token is logged.
* With ``--dtype bfloat16`` weights *and* Adam's moments are bf16 (as it comes when a bf16 model is handed in): less
  memory and less work than fp32 master weights.

Gradient checkpointing, on by default in TRL, is off: it would cost speed.

    /path/to/an/environment/with/trl-1.12/bin/python -m benchmarks.peers.trl_ppo --model FOLDER
"""

from __future__ import annotations

import tempfile
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer

from benchmarks.peers.workload import KL_COEF, LEARNING_RATE, PROMPTS, Meter, Work, parse


class Hidden(NamedTuple):
    """What TRL reads of a backbone's output."""

    hidden_states: tuple[Tensor, ...]


class EvenShare(nn.Module):
    """A "backbone" whose one hidden feature is the share of even ids among the tokens so far."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> Hidden:
        """(B, T) → (B, T, 1)."""
        even = ((input_ids % 2 == 0) & attention_mask.bool()).float().cumsum(dim=1)
        return Hidden((even.div(attention_mask.cumsum(dim=1).clamp(min=1)).unsqueeze(-1),))


class Lookup(nn.Module):
    """The smallest "backbone" with weights: a feature vector per token, whatever came before it."""

    def __init__(self, vocab_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, 8, dtype=dtype)

    def forward(self, input_ids: Tensor, **_: Any) -> Hidden:
        """(B, T) → (B, T, 8)."""
        return Hidden((self.table(input_ids),))


class Scored(nn.Module):
    """A backbone and its score head, in the form TRL asks for."""

    base_model_prefix = "backbone"

    def __init__(self, backbone: nn.Module, score: nn.Module) -> None:
        super().__init__()
        self.backbone, self.score = backbone, score


class Turns(TrainerCallback):
    """Tells the meter where an iteration ends and the next begins."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """The first iteration begins."""
        self.meter.begin()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """TRL calls this once per iteration: rollout, scoring and all epochs."""
        self.meter.end()
        self.meter.begin()


def make_trainer(work: Work, meter: Meter, folder: str) -> PPOTrainer:
    """Models, data and trainer."""
    dtype = work.torch_dtype
    tokenizer = AutoTokenizer.from_pretrained(work.model, padding_side="left")
    if tokenizer.pad_token_id == tokenizer.eos_token_id:  # a token that may stand in the middle of a response here
        tokenizer.pad_token = tokenizer.unk_token
    policy = AutoModelForCausalLM.from_pretrained(work.model, dtype=dtype)
    if work.critic == "full":
        critic = AutoModelForSequenceClassification.from_pretrained(work.model, num_labels=1, dtype=dtype)
    else:
        critic = Scored(Lookup(policy.config.vocab_size, dtype), nn.Linear(8, 1, dtype=dtype))
    prompts = Dataset.from_list([{"input_ids": tokenizer(prompt)["input_ids"]} for prompt in PROMPTS])
    return PPOTrainer(
        args=settings(work, folder),
        processing_class=tokenizer,
        model=policy,
        ref_model=AutoModelForCausalLM.from_pretrained(work.model, dtype=dtype),
        reward_model=Scored(EvenShare(), nn.Identity()),
        value_model=critic,
        train_dataset=prompts,
        eval_dataset=prompts,
        callbacks=[Turns(meter)],
    )


def settings(work: Work, folder: str) -> PPOConfig:
    """Nothing but the work: no checkpoints, no samples, no reports."""
    return PPOConfig(
        output_dir=folder,
        per_device_train_batch_size=work.micro_batch,
        gradient_accumulation_steps=work.completions // work.micro_batch,
        num_ppo_epochs=work.epochs,
        num_mini_batches=1,
        total_episodes=1_000_000,
        response_length=work.new_tokens,
        stop_token=None,
        temperature=1.0,
        kl_coef=KL_COEF,
        learning_rate=LEARNING_RATE,
        local_rollout_forward_batch_size=work.completions,
        num_sample_generations=0,
        gradient_checkpointing=False,
        bf16=False,  # weights are bf16 themselves; autocast would only add casts
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )


def main() -> None:
    """See the module's docstring."""
    work, meter = parse("trl_ppo")
    with tempfile.TemporaryDirectory() as folder:
        make_trainer(work, meter, folder).train()


if __name__ == "__main__":
    main()
