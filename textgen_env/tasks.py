"""The registered tasks: what makes each id. Names only, so that every EnvSpec stays JSON."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

DIALOGUE: dict[str, Any] = {"max_prompt_tokens": 64, "max_new_tokens": 48, "max_turns": 3, "max_reply_tokens": 32}
TASKS: dict[str, dict[str, Any]] = {
    "textgen/TextGen-v0": {},
    "textgen/Sentiment-v0": {
        "model": "tiny",
        "prompts": "reviews",
        "scorer": "sentiment",
        "max_prompt_tokens": 32,
        "max_new_tokens": 32,
    },
    "textgen/Summarize-v0": {
        "model": "tiny",
        "prompts": "summaries",
        "scorer": "rougeL",
        "max_prompt_tokens": 128,
        "max_new_tokens": 32,
    },
    "textgen/Translate-v0": {
        "model": "tiny",
        "prompts": "translations",
        "scorer": "bleu",
        "max_prompt_tokens": 64,
        "max_new_tokens": 32,
    },
    "textgen/Describe-v0": {
        "model": "tiny",
        "prompts": "descriptions",
        "scorer": "cider",
        "max_prompt_tokens": 64,
        "max_new_tokens": 32,
    },
    "textgen/Calculate-v0": {
        "model": "tiny",
        "prompts": "calculations",
        "scorer": {"name": "last_turn", "scorer": "exact_match"},
        "responder": {
            "name": "tools",
            "tools": {"calculator": "calculator"},
            "calls": {"calculator": r"^\s*calc (?P<expression>.+)"},
        },
        **DIALOGUE,
    },
    "textgen/Lookup-v0": {
        "model": "tiny",
        "prompts": "look-ups",
        "scorer": {"name": "last_turn", "scorer": "exact_match"},
        "responder": {
            "name": "tools",
            "tools": {"search": {"name": "search", "documents": "entries", "k": 1, "template": "{text}"}},
            "calls": {"search": r"^\s*find (?P<query>.+)"},
        },
        **DIALOGUE,
    },
    "textgen/Browse-v0": {
        "model": "tiny",
        "prompts": "look-ups",
        "scorer": {"name": "last_turn", "scorer": "exact_match"},
        "responder": {
            "name": "site",
            "documents": "entries",
            "results": 2,
            "actions": ["search", "open"],
            "calls": {"search": r"^\s*find (?P<query>.+)", "open": r"^\s*(?!find )(?P<link>\w+( \w+)?)\.?\s*$"},
            "mark": "",
            "template": "{text}",
        },
        **DIALOGUE | {"max_turns": 4},
    },
    "textgen/Dialogue-v0": {
        "model": "tiny",
        "prompts": "talks",
        "scorer": {"name": "last_turn", "scorer": "exact_match"},
        "responder": "script",
        **DIALOGUE,
    },
}


def register_tasks() -> None:
    """Register every task with Gymnasium; a second call changes nothing."""
    for task, arguments in TASKS.items():
        if task not in gym.registry:
            gym.register(
                task,
                entry_point="textgen_env.env:TextGenEnv",
                vector_entry_point="textgen_env.vector_env:TextGenVectorEnv",
                kwargs=arguments,
            )
