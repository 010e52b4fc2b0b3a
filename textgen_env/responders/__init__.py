"""Environments that answer back: what speaks to the agent between its turns.

`base.py` has the protocol and what a reply is, `registry.py` the way from a name to a responder; each other file is one
responder. Who writes when, and how replies become tokens, is `textgen_env.turns`' business.
"""

from __future__ import annotations

from .base import Reply, Responder, Unavailable
from .registry import as_responder, register_responder, responder_names

__all__ = ["Reply", "Responder", "Unavailable", "as_responder", "register_responder", "responder_names"]
