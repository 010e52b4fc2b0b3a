"""GRPO of TRL 1.16 on the common work: groups of 8 completions a prompt, KL in the loss, no value model.

What it does otherwise than PPO: no critic, no advantage estimation over tokens; with one epoch the old log-probs are
those of the update itself, so that no forward is spent on them. ``--epochs`` is its ``num_iterations``: how many
optimiser steps are taken on one set of completions. With ``--dtype bfloat16`` weights and Adam's moments are bf16.

Gradient checkpointing, on by default in TRL, is off: it would cost speed.

    /path/to/an/environment/with/trl-1.16/bin/python -m benchmarks.peers.trl_grpo --model FOLDER
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks.peers.workload import GROUP, KL_COEF, LEARNING_RATE, PROMPTS, Meter, Work, even_share, parse


class Turns(TrainerCallback):
    """Tells the meter where an iteration ends and the next begins."""

    def __init__(self, meter: Meter) -> None:
        self.meter, self.steps = meter, 0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """The first iteration begins."""
        self.meter.begin()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """An optimiser step; the last one on a set of completions ends the iteration."""
        self.steps += 1
        if self.steps % self.meter.work.epochs == 0:
            self.meter.end()
            self.meter.begin()


def score(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """The common reward in the form of a reward function."""
    return [even_share(token_ids) for token_ids in completion_ids]


def make_trainer(work: Work, meter: Meter, folder: str) -> GRPOTrainer:
    """Model, data and trainer."""
    tokenizer = AutoTokenizer.from_pretrained(work.model, padding_side="left")
    if tokenizer.pad_token_id == tokenizer.eos_token_id:  # a token that may stand in the middle of a response here
        tokenizer.pad_token = tokenizer.unk_token
    config = GRPOConfig(
        output_dir=folder,
        model_init_kwargs={"dtype": work.dtype},
        per_device_train_batch_size=work.micro_batch,
        gradient_accumulation_steps=work.completions // work.micro_batch,
        num_generations=min(GROUP, work.completions),
        num_iterations=work.epochs,
        max_completion_length=work.new_tokens,
        generation_kwargs={"min_new_tokens": work.new_tokens},  # no EOS before the limit
        temperature=1.0,
        beta=KL_COEF,
        learning_rate=LEARNING_RATE,
        max_steps=1_000_000,
        gradient_checkpointing=False,
        bf16=False,  # weights are bf16 themselves; autocast would only add casts
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    return GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(work.model, dtype=work.torch_dtype),
        reward_funcs=score,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS]),
        processing_class=tokenizer,
        callbacks=[Turns(meter)],
    )


def main() -> None:
    """See the module's docstring."""
    work, meter = parse("trl_grpo")
    with tempfile.TemporaryDirectory() as folder:
        make_trainer(work, meter, folder).train()


if __name__ == "__main__":
    main()
