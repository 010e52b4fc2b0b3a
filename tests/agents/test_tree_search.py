"""Searches against brute force on a tree that can be written down, and what they cost, counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from two_tokens import EOS, LEFT_OUT, PROMPT, A, B

from textgen_env.agents.branching import Branching, Node
from textgen_env.agents.search import TreeSearch, beam_search, best_first_search
from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.prefix_cache import PrefixCache

MakeVenv = Callable[..., gym.vector.VectorEnv]
LENGTH = 4


def paid(completions: list[str], **_: Any) -> list[float]:
    """ "b a b …" is worth most, and nothing says so before the end."""
    return [sum(x == y for x, y in zip(text.split(), ["b", "a", "b", "a"], strict=False)) / 4 for text in completions]


def branching(make_venv: MakeVenv, source: Path, num_envs: int = 3, **settings: Any) -> Branching:
    task = {"prompts": ["d e"], "scorer": paid, "max_new_tokens": LENGTH, "forbidden_tokens": LEFT_OUT}
    return Branching(make_venv(num_envs=num_envs, **task), LanguageModel(source), **settings)


def everything() -> Iterator[tuple[int, ...]]:
    """All 31 responses of at most four tokens among three."""
    for length in range(LENGTH):
        for begin in product((A, B), repeat=length):
            yield (*begin, EOS)
    yield from product((A, B), repeat=LENGTH)


@torch.no_grad()
def log_prob(source: Path, response: tuple[int, ...]) -> float:
    """By the library's forward of each prefix, among what is allowed."""
    model, total = LanguageModel(source).model, 0.0
    for t, token in enumerate(response):
        logits = model(torch.tensor([PROMPT + list(response[:t])])).logits[0, -1][[EOS, A, B]]
        total += float(logits.log_softmax(-1)[[EOS, A, B].index(token)])
    return total


@pytest.fixture
def ranked(word_model: Path) -> list[tuple[tuple[int, ...], float]]:
    """Every response with its log π, the likeliest first."""
    found = [(response, log_prob(word_model, response)) for response in everything()]
    assert sum(math.exp(value) for _, value in found) == pytest.approx(1)
    return sorted(found, key=lambda entry: -entry[1])


@pytest.mark.parametrize("num_envs", [1, 3])
def test_best_first_search_finds_the_likeliest_in_order(
    num_envs: int, make_venv: MakeVenv, word_model: Path, ranked: list[Any]
):
    found = best_first_search(branching(make_venv, word_model, num_envs), "d e", responses=9)
    assert [node.tokens for node in found.responses] == [response for response, _ in ranked[:9]]
    assert [node.log_prob for node in found.responses] == pytest.approx([value for _, value in ranked[:9]], abs=1e-4)
    assert found.best is found.responses[0]
    assert found.forwards <= 15  # of 15 states that there are


def test_a_wide_beam_is_exact_and_a_narrow_one_greedy(make_venv: MakeVenv, word_model: Path, ranked: list[Any]):
    wide = beam_search(branching(make_venv, word_model), "d e", width=31)
    assert [node.tokens for node in wide.responses] == [response for response, _ in ranked]
    greedy: tuple[int, ...] = ()
    while len(greedy) < LENGTH and EOS not in greedy:
        greedy = max(((*greedy, token) for token in (EOS, A, B)), key=lambda r: log_prob(word_model, r))
    assert beam_search(branching(make_venv, word_model), "d e", width=1).best.tokens == greedy


def test_a_beam_is_that_of_a_plain_loop(make_venv: MakeVenv, word_model: Path):
    """Width 2, with both kept lists written out."""
    found = beam_search(branching(make_venv, word_model), "d e", width=2)
    alive: list[tuple[int, ...]] = [()]
    complete: list[tuple[int, ...]] = []

    def likely(response: tuple[int, ...]) -> float:
        return -log_prob(word_model, response)

    while alive and (len(complete) < 2 or likely(alive[0]) < likely(complete[1])):
        children = sorted(((*begin, token) for begin in alive for token in (EOS, A, B)), key=likely)[:2]
        ended = [child for child in children if child[-1] == EOS or len(child) == LENGTH]
        alive = [child for child in children if child not in ended]
        complete = sorted([*complete, *ended], key=likely)
    assert [node.tokens for node in found.responses] == complete[:2]


def test_tree_search_finds_the_best_that_there_is(make_venv: MakeVenv, word_model: Path):
    """And what it says of each response is what the environment pays."""
    tree = branching(make_venv, word_model, generator=torch.Generator().manual_seed(1))
    found = TreeSearch(tree).search("d e", simulations=120)
    assert found.best.tokens == (B, A, B, A)
    assert (found.best.score, found.best.rewards, found.best.text.strip()) == (1.0, 1.0, "b a b a")
    rewards = [node.rewards for node in found.responses]
    assert rewards == sorted(rewards, reverse=True)
    for node in found.responses:
        assert node.rewards == pytest.approx(paid([node.text])[0])
        assert node.log_prob == pytest.approx(log_prob(word_model, node.tokens), abs=1e-4)


@pytest.mark.parametrize("num_envs", [1, 3])
def test_tree_search_sees_each_response_once_and_ends(num_envs: int, make_venv: MakeVenv, word_model: Path):
    """Nothing is left of 31 responses and 15 states, long before 10,000 simulations."""
    found = TreeSearch(branching(make_venv, word_model, num_envs)).search("d e", simulations=10_000)
    assert sorted(node.tokens for node in found.responses) == sorted(everything())
    assert found.forwards <= 31 * LENGTH


def test_tree_search_looks_at_what_it_samples_beyond_the_likeliest(make_venv: MakeVenv, word_model: Path):
    """With ``top_k=1`` alone there would be one response."""
    found = TreeSearch(branching(make_venv, word_model), top_k=1).search("d e", simulations=60)
    assert len(found.responses) > 1


@pytest.mark.parametrize("backup", ["max", "mean"])
@pytest.mark.parametrize("num_envs", [1, 4])
def test_visits_and_values_add_up(num_envs: int, backup: str, make_venv: MakeVenv, word_model: Path):
    """After the last simulation nothing is under way, and a node has been visited as often as its children, or once
    more each time it was a leaf."""
    tree = branching(make_venv, word_model, num_envs)
    search, roots = TreeSearch(tree, backup=backup), []
    grow = search._leaves
    search._leaves = lambda root, most: (roots.append(root), grow(root, most))[1]  # type: ignore[method-assign, func-returns-value]
    search.search("d e", simulations=20)

    def check(branch: Any) -> None:
        below = list(branch.children.values())
        assert branch.under_way == 0
        assert branch.visits >= sum(child.visits for child in below) > 0 or not below
        assert branch.highest >= max((child.highest for child in below), default=0.0)
        assert branch.total + 1e-9 >= sum(child.total for child in below)
        for child in below:
            check(child)

    check(roots[0])
    assert roots[0].visits == 20


def test_a_critic_takes_the_place_of_played_out_responses(make_venv: MakeVenv, word_model: Path):
    """Each state is read once, and nothing else: no response is sampled."""
    tree = branching(make_venv, word_model)
    seen = []

    def critic(states: torch.Tensor) -> torch.Tensor:
        seen.append(len(states))
        return torch.full((len(states),), 0.25)

    tree.critic = critic
    found = TreeSearch(tree).search("d e", simulations=60)
    assert found.forwards == sum(seen) <= 15
    assert found.best.rewards == max(node.rewards for node in found.responses)


def test_a_step_costs_one_decode_and_no_prefill(make_venv: MakeVenv, word_model: Path, monkeypatch: pytest.MonkeyPatch):
    """Tokens that the model reads: the prompt once, then one for each state, whatever slot it is taken up in."""
    tree = branching(make_venv, word_model, 3)
    tree.read([tree.root("a b")])  # the first read compares decoding with a plain forward
    read: list[int] = []
    original = PrefixCache._read

    def reading(self: Any, path: str, ids: Any, lengths: Any, rows: Any, starts: Any) -> None:
        read.append(int((lengths - starts).sum()))
        original(self, path, ids, lengths, rows, starts)

    monkeypatch.setattr(PrefixCache, "_read", reading)
    root = tree.root("d e")
    log_probs = tree.read([root]).log_probs[0]
    children = tree.step([root] * 2, [A, B], log_probs[[A, B]].tolist())
    tree.read(children)
    assert (read[0], sum(read[1:])) == (len(PROMPT), 2)
    ended = tree.play_out([children[0]] * 3)
    assert tree.forwards == 4 + sum(len(node.tokens) - 1 for node in ended)


def test_nodes_are_what_the_environment_says(make_venv: MakeVenv, word_model: Path):
    tree = branching(make_venv, word_model)
    root = tree.root("d e")
    assert (root.tokens, root.ended, root.prefix) == ((), False, PROMPT)
    first, second = tree.step([root, root], [B, EOS], [-1.0, -2.0])
    assert (first.tokens, first.prefix, first.ended, first.log_prob) == ((B,), [*PROMPT, B], False, -1.0)
    assert (second.tokens, second.ended, second.log_prob) == ((EOS,), True, -2.0)
    assert math.isnan(first.score)
    assert second.rewards == second.score == 0.0
    assert first.mask.nonzero()[0].tolist() == [EOS, A, B]


def test_many_ways_from_one_node_are_played_side_by_side(make_venv: MakeVenv, word_model: Path):
    """More than there are slots, some complete already; each keeps its beginning."""
    tree = branching(make_venv, word_model, 2)
    root = tree.root("d e")
    a, b, done = tree.step([root] * 3, [A, B, EOS], [0.0] * 3)
    nodes: list[Node] = [a, done, b, a, a]
    ended = tree.play_out(nodes)
    assert [node.tokens[:1] for node in ended] == [(A,), (EOS,), (B,), (A,), (A,)]
    assert all(node.ended for node in ended)
    assert ended[1] is done


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda tree: beam_search(tree, "d e", 0), "width=0 must be an integer of at least 1"),
        (lambda tree: best_first_search(tree, "d e", max_forwards=1, responses=9), "max_forwards=1 are spent"),
        (lambda tree: TreeSearch(tree, exploration=-1), "exploration=-1 must be a finite number ≥ 0"),
        (lambda tree: TreeSearch(tree, backup="sum"), "backup='sum' must be"),
        (lambda tree: TreeSearch(tree).search("d e", 0), "simulations=0 must be"),
    ],
)
def test_mistakes_are_named(call: Any, message: str, make_venv: MakeVenv, word_model: Path):
    with pytest.raises((ValueError, RuntimeError), match=message):
        call(branching(make_venv, word_model))
