"""Imports run one way: the rooms of the package form no circle, and each imports only rooms below it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What each room stands on, lowest first; a module may import rooms on earlier lines, and siblings in its own.
ORDER = [
    ["assets", "checkout", "kl", "locations", "moved", "notices", "reasoning_tasks", "render", "tasks"],
    ["lm", "episode", "messages"],
    ["prompt_files", "responders", "scorers"],
    ["prompts"],
    ["config", "kl_penalty", "action_masks", "reward", "saved_state", "stop_strings", "vocabulary"],
    ["replies"],
    ["turns"],
    ["starts"],
    ["engine"],
    ["frames", "token_sequences"],
    ["base_env"],
    ["env", "vector_env"],
    ["wrappers"],
    ["integrations", "testing", "recipes"],
    ["agents"],
    ["__main__"],
]
# The same within lm/.
LM_ORDER = [
    ["backbone", "logits_memo", "sampling", "token_batch", "token_log_probs", "token_text"],
    ["adapters", "gqa_attention", "loading", "model_kinds", "position_switches", "slot_attention", "upcast_linear"],
    ["whole_texts"],
    ["fallback_cache", "verification"],
    ["log_probs"],
    ["continuations", "prefix_cache"],
    ["language_model"],
]
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
LM_LEVEL = {room: level for level, rooms in enumerate(LM_ORDER) for room in rooms}


def modules() -> dict[str, Path]:
    files = {
        f"textgen_env.{path.relative_to(ROOT / 'textgen_env').with_suffix('')}": path
        for path in (ROOT / "textgen_env").rglob("*.py")
    }
    files |= {
        f"textgen_env.agents.{path.relative_to(ROOT / 'agents').with_suffix('')}": path
        for path in (ROOT / "agents").rglob("*.py")
    }
    return {name.replace("/", ".").removesuffix(".__init__"): path for name, path in files.items()}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def runtime_imports(tree: ast.AST) -> list[ast.Import | ast.ImportFrom]:
    """Every import but those for type checkers alone."""
    found, left = [], [tree]
    while left:
        node = left.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found.append(node)
        elif not is_type_checking(node):
            left.extend(ast.iter_child_nodes(node))
    return found


def imported(name: str, path: Path, known: set[str]) -> set[str]:
    """Modules of the package that a module imports when it is run."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    targets = set()
    for node in runtime_imports(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        else:
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join(parent + ([node.module] if node.module else []))
            targets |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names}
    return {target for target in targets if target in known and target not in ("textgen_env", name)}


GRAPH = {name: imported(name, path, set(modules())) for name, path in modules().items()}


def room(name: str) -> str:
    """The recipes lie in the folder of what they make, but they are programs that stand on the package."""
    return "recipes" if name.startswith("textgen_env.assets.recipes") else name.split(".")[1]


def test_every_room_has_its_place() -> None:
    assert {room(name) for name in GRAPH if name != "textgen_env"} <= set(LEVEL)
    assert {name.split(".")[2] for name in GRAPH if name.startswith("textgen_env.lm.")} == set(LM_LEVEL)


@pytest.mark.parametrize("name", sorted(GRAPH))
def test_imports_only_rooms_below(name: str) -> None:
    if name == "textgen_env":
        pytest.skip("the package itself re-exports")
    above = {target for target in GRAPH[name] if LEVEL[room(target)] > LEVEL[room(name)]}
    assert not above


@pytest.mark.parametrize("name", sorted(name for name in GRAPH if name.startswith("textgen_env.lm.")))
def test_lm_imports_only_rooms_below(name: str) -> None:
    inner = {target.split(".")[2] for target in GRAPH[name] if target.startswith("textgen_env.lm.")}
    assert all(LM_LEVEL[target] <= LM_LEVEL[name.split(".")[2]] for target in inner)


TRAINERS = ("ppo", "vine_ppo", "reinforce", "expected", "grpo", "sft", "iql", "dpo", "reward_model", "sb3_ppo")
ALGORITHMS = {f"textgen_env.agents.{name}" for name in TRAINERS}


PIPELINES = {"textgen_env.agents.rlhf", "textgen_env.agents.rlhf_config"}  # made of algorithms


@pytest.mark.parametrize("name", sorted(n for n in GRAPH if n.startswith("textgen_env.agents.") and n not in PIPELINES))
def test_no_trainer_knows_an_algorithm_but_itself(name: str) -> None:
    assert not GRAPH[name] & (ALGORITHMS | PIPELINES)


def test_no_circle() -> None:
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " → ".join([*trail, name])
        if name not in done:
            for target in GRAPH[name]:
                visit(target, (*trail, name))
            done.add(name)

    for name in GRAPH:
        visit(name, ())


def roots(path: Path) -> set[str]:
    """First names of everything that a file imports from outside its own folder."""
    found = set()
    for node in runtime_imports(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif not node.level:
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("file", ["advantages.py", "losses.py", "offline_losses.py", "preference_losses.py"])
def test_the_mathematics_of_agents_imports_torch_and_kl_alone(file: str) -> None:
    standard = {"__future__", "collections", "typing", "dataclasses", "math"}
    assert roots(ROOT / "agents" / file) <= {*standard, "torch", "textgen_env"}
    ours = GRAPH[f"textgen_env.agents.{file.removesuffix('.py')}"]
    assert ours <= {"textgen_env.kl", "textgen_env.agents.advantages"}


def test_only_the_language_rooms_touch_transformers() -> None:
    touching = {room(name) for name, path in modules().items() if "transformers" in roots(path)}
    assert touching <= {"lm", "responders", "scorers", "assets", "recipes", "agents"}


def test_importing_the_package_is_light() -> None:
    code = "import sys, textgen_env; print(sorted({'torch', 'transformers', 'stable_baselines3'} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
