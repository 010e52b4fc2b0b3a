"""One command for everything that runs by itself: ``textgen ppo``, ``textgen evaluate``, …

What lives here: the names, and handing over. What does not: the programs, modules that ``python -m`` runs as well.
"""

from __future__ import annotations

import runpy
import sys

from textgen_env.locations import close_to

COMMANDS = {
    "ppo": ("textgen_env.agents.ppo", "token-level PPO"),
    "vine_ppo": ("textgen_env.agents.vine_ppo", "VinePPO: PPO with Monte-Carlo values instead of a critic"),
    "reinforce": ("textgen_env.agents.reinforce", "REINFORCE: leave-one-out, self-critical, learned or no baseline"),
    "expected": ("textgen_env.agents.expected", "expected policy gradients: sums over actions at chosen states"),
    "grpo": ("textgen_env.agents.grpo", "GRPO, Dr. GRPO, DAPO, GSPO, GDPO"),
    "sft": ("textgen_env.agents.sft", "supervised fine-tuning on a task's references"),
    "record": ("textgen_env.agents.record", "episodes of a policy as a Minari data set, to learn from offline"),
    "iql": ("textgen_env.agents.iql", "offline reinforcement learning from recorded episodes"),
    "ope": ("textgen_env.agents.ope", "what a policy would score, from recorded episodes of another"),
    "dpo": ("textgen_env.agents.dpo", "DPO, IPO and KTO, from pairs of responses"),
    "reward_model": ("textgen_env.agents.reward_model", "a reward model from pairs of responses"),
    "rlhf": ("textgen_env.agents.rlhf", "labels, a reward model and PPO, in one round or several"),
    "label": ("textgen_env.agents.label", "a page on which people compare responses"),
    "sb3_ppo": ("textgen_env.agents.sb3_ppo", "Stable-Baselines3's PPO on the same tasks"),
    "evaluate": ("textgen_env.agents.evaluate", "a policy greedy, sampled, best of n, and beside another"),
    "optimum": ("textgen_env.agents.optimum", "the best that any policy can reach on a task"),
    "assets": ("textgen_env.assets", "the models and prompts that have names; fetching others"),
}


def main() -> None:
    """``textgen COMMAND --help`` for what a command takes."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print("usage: textgen COMMAND [--help] …\n")
        print("\n".join(f"  {command:14}{what}" for command, (_, what) in COMMANDS.items()))
        return
    if name not in COMMANDS:
        print(f"error: no command {name!r}{close_to(name, COMMANDS)} (see textgen --help)", file=sys.stderr)
        raise SystemExit(2)
    module, _ = COMMANDS[name]
    sys.argv = [f"textgen {name}", *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
