"""Reference trainers for the token environments, installed as ``textgen_env.agents``.

Nothing is imported here: each trainer is a module of its own (``from textgen_env.agents.ppo import PPO``), so that
using one does not pull in the libraries of another.
"""
