r"""Tokens per second, side by side with other ways of doing the same work, by turns: the door to three benchmarks.

    python -m benchmarks.throughput rollout --model smollm2-135m --batch 16 64 128 --new-tokens 32 256 \\
        --dtype bfloat16 float32
    python -m benchmarks.throughput training --model smollm2-135m --epochs 1 4 --peer-python trl_ppo PYTHON
    python -m benchmarks.throughput sb3 --model smollm2-135m --dtype bfloat16

What lives here: the subcommands. What does not: the work, see ``rollout.py``, ``training.py`` and ``sb3.py``.
"""

from __future__ import annotations

import tyro

from benchmarks import rollout, sb3, training


def main() -> None:
    """Run the chosen benchmark."""
    settings = tyro.extras.subcommand_cli_from_dict(
        {"rollout": rollout.RolloutSettings, "training": training.TrainingSettings, "sb3": sb3.Settings}
    )
    if isinstance(settings, rollout.RolloutSettings):
        rollout.rollout(settings)
    elif isinstance(settings, training.TrainingSettings):
        training.report(settings)
    else:
        sb3.measure(settings)


if __name__ == "__main__":
    main()
