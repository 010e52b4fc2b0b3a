"""The settings that every trainer shares; read as command-line flags, checked where they are made.

What lives here: the task, how long it is trained, and how often is looked and saved. What does not: the settings of an
algorithm (in its own file) and of the weights (``policy.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

from .setting_checks import COUNT, COUNT_OR_ZERO, FLAG, POSITIVE, SEED, TEXT, check, choice, optional


@dataclass
class TaskSettings:
    """Which model plays what: the settings that every program shares."""

    env: str = "textgen/Sentiment-v0"
    """Gymnasium id of a token environment."""
    model: str = "tiny"
    """The actor and, frozen, the reference: an embedded or fetched name, a folder, a GGUF file or a hub id."""
    prompts: str | None = None
    """A JSONL file or the name of a prompt set, instead of the task's own."""
    scorer: str | None = None
    """Name of a scorer, or its JSON form, instead of the task's own."""
    max_new_tokens: int | None = None
    """Length limit of a response, instead of the task's own."""
    max_prompt_tokens: int | None = None
    """Length limit of a prompt, instead of the task's own."""
    temperature: float = 1.0
    """Divides the logits of policy and reference."""
    num_envs: int = 64
    """Slots that are decoded side by side."""
    eval_prompts: int = 128
    """Prompts held out for evaluation; never trained on unless there are too few."""
    device: str = "cpu"
    """Torch device."""
    dtype: str = "float32"
    """Type of the weights: float32 or bfloat16 (optimised through fp32 masters)."""
    seed: int = 1
    """Seeds sampling, shuffling, prompts and new weights; global generators are left alone."""
    debug: bool = False
    """Show where in the code a mistake in the settings was found."""

    def __post_init__(self) -> None:
        check(self, TASK_RULES)


TASK_RULES = {
    **dict.fromkeys(("env", "model", "device"), TEXT),
    **dict.fromkeys(("prompts", "scorer"), optional(TEXT)),
    **dict.fromkeys(("max_new_tokens", "max_prompt_tokens"), optional(COUNT)),
    **dict.fromkeys(("num_envs", "eval_prompts"), COUNT),
    "debug": FLAG,
    "temperature": POSITIVE,
    "dtype": choice("float32", "bfloat16"),
    "seed": SEED,
}


@dataclass
class FolderSettings(TaskSettings):
    """And where it is kept, and how often is looked and saved."""

    output: str | None = None
    """The run's folder; default: runs/<task>-seed<seed>, with a number behind it if that exists."""
    resume: bool = False
    """Go on from the last checkpoint in the output folder, if there is one; a run that was killed ends with the same
    numbers."""
    eval_every: int | None = 10
    """Updates between evaluations on the held-out prompts, the best of which is kept in best/; None: only before and
    after the run."""
    save_every: int = 10
    """Updates between checkpoints."""
    sample_every: int = 10
    """Updates between tables of samples."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, FOLDER_RULES)


FOLDER_RULES = {
    **dict.fromkeys(("save_every", "sample_every"), COUNT),
    "eval_every": optional(COUNT),
    "output": optional(TEXT),
    "resume": FLAG,
}


@dataclass
class RunSettings(FolderSettings):
    """And how long it is trained: all that does not belong to the algorithm."""

    updates: int = 40
    """Iterations of collect → advantages → update."""
    optimum_samples: int = 16
    """Responses of the reference per held-out prompt, from which the best that any policy can reach is estimated for
    the final table; 0 leaves it out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, {"updates": COUNT, "optimum_samples": COUNT_OR_ZERO})
