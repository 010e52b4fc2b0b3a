"""What the package imports is declared, and what is only an extra is asked for by name where it is missing."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = {"PIL": "pillow", "openenv": "openenv-core"}  # imported under another name than the distribution's
PLUGINS = {"integrations", "recipes", "testing", "vader.py", "spacy_classifier.py"}  # imported when asked for
OPTIONAL = {*PLUGINS, "agents", "benchmarks", "examples"}
AGENTS = ("tyro", "rich", "matplotlib", "tensorboard", "peft")


def declared() -> dict[str, set[str]]:
    """Distributions by extra, those of every installation under ""."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lists = {"": setup["options"]["install_requires"], **setup["options.extras_require"]}
    names = {extra: {re.split(r"[\[<>=~! ]", line)[0] for line in text.split()} for extra, text in lists.items()}
    return {extra: {normal(name) for name in found} for extra, found in names.items()}


def normal(name: str) -> str:
    return NAMES.get(name, name).lower().replace("_", "-")


def third_party(nodes: list[ast.AST]) -> set[str]:
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module or "")
    tops = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"textgen_env", "benchmarks"}
    return {normal(name) for name in tops}


FOLDERS = ("textgen_env", "agents", "benchmarks", "examples")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_import_is_declared(path: Path) -> None:
    tree, by_extra = ast.parse(path.read_text()), declared()
    assert third_party(list(ast.walk(tree))) <= set().union(*by_extra.values())
    if not OPTIONAL & set(path.relative_to(ROOT).parts):  # what the environment imports at once comes with it
        assert third_party(list(ast.iter_child_nodes(tree))) <= by_extra[""]


def test_the_extra_of_the_trainers_and_who_includes_it() -> None:
    by_extra, text = declared(), (ROOT / "setup.cfg").read_text()
    assert set(AGENTS) == by_extra["agents"]
    assert not set(AGENTS) & by_extra[""]
    assert re.search(r"^dev =\n    textgen_env\[agents,label,offline,sb3,tools\]$", text, re.MULTILINE)
    assert {"nltk", "tokenizers"} <= by_extra[""]


def python(code: str, *hidden: str) -> str:
    """What a program prints that cannot import some modules."""
    hide = f"import sys\nsys.modules.update(dict.fromkeys({hidden}))\n"
    command = [sys.executable, "-c", hide + code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


REFUSED = """
for name in {names}:
    try:
        __import__(f"textgen_env.agents.{{name}}")
    except ImportError as error:
        print(str(error))
"""


@pytest.mark.parametrize("library", ["tyro", "rich"])
def test_a_trainer_without_its_libraries_says_how_to_get_them(library: str) -> None:
    (said,) = python(REFUSED.format(names=["ppo"]), library).splitlines()
    assert re.fullmatch(
        rf"the trainers need rich and tyro \(.*{library}.*\): pip install 'textgen_env\[agents\]'", said
    )


def test_the_sb3_trainer_without_sb3_says_how_to_get_it() -> None:
    (said,) = python(REFUSED.format(names=["sb3_ppo"]), "stable_baselines3").splitlines()
    assert said.endswith("pip install 'textgen_env[agents,sb3]'")


def test_what_needs_no_extra_works_without_it() -> None:
    """An episode, the equations, the actor-critic and a rollout; LoRA alone asks for peft, by name."""
    code = """
import gymnasium as gym, torch, textgen_env
from textgen_env import LanguageModel
from textgen_env.agents import advantages, losses
from textgen_env.agents.training import optim
from textgen_env.agents.policy import ActorCritic, PolicyConfig
from textgen_env.agents.rollout import collect
venv = gym.make_vec("textgen/Sentiment-v0", num_envs=2, autoreset_mode="Disabled", max_new_tokens=3)
venv.reset(seed=1)
model = LanguageModel("tiny")
print(len(collect(venv, ActorCritic(model).language_model, 2, generator=torch.Generator()).texts))
try:
    ActorCritic(model, PolicyConfig(lora_rank=2))
except ImportError as error:
    print(error)
"""
    count, refusal = python(code, *AGENTS).splitlines()
    assert count == "2"
    assert refusal.startswith("lora_rank=2 needs peft (")
    assert refusal.endswith("pip install 'textgen_env[agents]'")
