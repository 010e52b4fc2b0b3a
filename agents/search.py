"""Searching for responses instead of sampling them: beam search, best-first search, Monte-Carlo tree search.

What lives here: the three, and what they return. What does not: the tree itself (``branching.py``), sampling many and
taking the best (``best_of_n.py``), training on what was found.

A score is known at the end of a response alone. Beam and best-first search look for the response that the model finds
likeliest, best-first exactly. Monte-Carlo tree search looks for the best score: it plays responses out from where it
has found good ones, so that at the same number of decodes it finds better ones than independent samples.

References:
    Silver et al., "A general reinforcement learning algorithm that masters chess, shogi, and Go through self-play"
        (2018): PUCT.
    Schrittwieser et al., "Mastering Atari, Go, chess and shogi by planning with a learned model" (2020): values brought
        to [0, 1] by the best and the worst seen.
    Liu et al., "Watch the unobserved" (2020): simulations side by side, those under way counted as visits.
    Leblond et al., "Machine translation decoding beyond beam search" (2021): both for text.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch

from .branching import Branching, Node, Path


@dataclass(frozen=True)
class Found:
    """What a search has found.

    Attributes:
        best: the response it settles for.
        responses: all complete ones that it met, best first.
        forwards: states at which the model was read.
    """

    best: Node
    responses: Sequence[Node]
    forwards: int


def beam_search(branching: Branching, prompt: Any, width: int) -> Found:
    """Keep the ``width`` likeliest beginnings until nothing alive can become likelier than what is complete.

    Args:
        branching: the tree.
        prompt: anything that ``reset(options={"prompt": …})`` takes.
        width: at least 1; 1 is greedy decoding.

    Returns:
        Responses by log π(y|x), the likeliest first; at most ``width``.
    """
    _positive("width", width)
    begin, alive, complete = branching.forwards, [branching.root(prompt)], list[Node]()
    while alive and (len(complete) < width or alive[0].log_prob > complete[width - 1].log_prob):
        log_probs = branching.read(alive).log_probs
        totals = (torch.tensor([node.log_prob for node in alive])[:, None] + log_probs.cpu()).flatten()
        likeliest = totals.topk(min(width, int((totals > -math.inf).sum()))).indices
        rows, actions = (likeliest // log_probs.shape[1]).tolist(), (likeliest % log_probs.shape[1]).tolist()
        told = [float(log_probs[row, action]) for row, action in zip(rows, actions, strict=True)]
        children = branching.step([alive[row] for row in rows], actions, told)
        alive = _likeliest(node for node in children if not node.ended)
        complete = _likeliest([*complete, *(node for node in children if node.ended)])
    return Found(complete[0], complete[:width], branching.forwards - begin)


def best_first_search(branching: Branching, prompt: Any, *, responses: int = 1, max_forwards: int = 10_000) -> Found:
    """Go on where what is written is likeliest: the first complete response is the likeliest of all (Dijkstra 1959).

    Args:
        branching: the tree.
        prompt: anything that ``reset(options={"prompt": …})`` takes.
        responses: how many of the likeliest to find.
        max_forwards: give up behind so many, since a flat distribution has no likeliest response within reach.

    Returns:
        Exactly the likeliest ``responses``, in order.

    Raises:
        RuntimeError: ``max_forwards`` did not suffice.
    """
    _positive("responses", responses)
    begin, order = branching.forwards, count()
    queue: list[tuple[float, int, Node, int | None, float]] = [(0.0, next(order), branching.root(prompt), None, 0.0)]
    found: list[Node] = []
    while queue and len(found) < responses:
        _, _, node, action, told = heapq.heappop(queue)
        if action is not None:  # children are stepped to when their turn comes, not when they are seen
            (node,) = branching.step([node], [action], [told])
        if node.ended:
            found.append(node)
            continue
        if branching.forwards - begin >= max_forwards:
            raise RuntimeError(f"max_forwards={max_forwards} are spent, {len(found)} of {responses} responses found")
        log_probs = branching.read([node]).log_probs[0]
        for child in (log_probs > -math.inf).nonzero().flatten().tolist():
            log_prob = float(log_probs[child])
            heapq.heappush(queue, (-node.log_prob - log_prob, next(order), node, child, log_prob))
    return Found(found[0], found, branching.forwards - begin)


@dataclass(eq=False)
class _Branch:
    """A node of the search tree: N, W, the highest value below, and π over its continuations."""

    node: Node
    parent: _Branch | None = None
    visits: int = 0
    under_way: int = 0  # simulations that went through here and have no value yet
    total: float = 0.0
    highest: float = -math.inf
    exhausted: bool = False  # complete, or all its continuations are exhausted
    actions: list[int] = field(default_factory=list)
    priors: list[float] = field(default_factory=list)  # π of ``actions``
    told: list[float] = field(default_factory=list)  # log π of ``actions``
    children: dict[int, _Branch] = field(default_factory=dict)  # by place in ``actions``


class TreeSearch:
    """Monte-Carlo tree search (PUCT) for the response with the highest reward.

    Each simulation walks down by Q + c·P·√N/(1 + n), where Q is the best that was found below, brought to [0, 1] by the
    best and the worst that was seen at all, and P is π of the ``top_k`` likeliest tokens. Where it leaves the tree, the
    new node is worth what a sampled response from there is paid, or what the critic says. All states of a sampled
    response join the tree, since the model was read there anyway: the next simulation can leave it at any of them. What
    was seen whole is not walked again. As many simulations as there are slots run at once; those under way count in n
    and N, and not in Q.

    Args:
        branching: the tree; with a critic, its values stand for responses played out.
        exploration: c.
        top_k: continuations of each node, beside those that were sampled.
        backup: whether Q is the "max" of what was found below, since nothing here happens by chance, or the "mean",
            which lets a critic's errors cancel.

    Example::

        found = TreeSearch(Branching(venv, LanguageModel("tiny"))).search("The soup was", simulations=64)
    """

    def __init__(self, branching: Branching, *, exploration: float = 0.2, top_k: int = 8, backup: str = "max") -> None:
        _positive("top_k", top_k)
        if not 0 <= exploration < math.inf:
            raise ValueError(f"exploration={exploration!r} must be a finite number ≥ 0")
        if backup not in ("max", "mean"):
            raise ValueError(f'backup={backup!r} must be "max" or "mean"')
        self.branching, self.exploration, self.top_k, self.backup = branching, exploration, top_k, backup

    def search(self, prompt: Any, simulations: int, *, max_forwards: int | None = None) -> Found:
        """The best response of so many simulations, or of fewer: as ``max_forwards`` allow, or as there are responses.

        Args:
            prompt: anything that ``reset(options={"prompt": …})`` takes.
            simulations: how many.
            max_forwards: begin none once the model was read at so many states.

        Returns:
            Responses by what they are paid, the best first.
        """
        _positive("simulations", simulations)
        begin, root, left = self.branching.forwards, _Branch(self.branching.root(prompt)), simulations
        most = math.inf if max_forwards is None else begin + max_forwards
        self._low, self._high = math.inf, -math.inf
        complete: dict[tuple[int, ...], Node] = {}
        while left > 0 and not root.exhausted and self.branching.forwards < most:
            leaves = self._leaves(root, min(left, self.branching.venv.num_envs))
            for leaf, (end, value) in zip(leaves, self._evaluate(leaves), strict=True):
                if end.node.ended:
                    complete[end.node.tokens] = end.node
                self._credit(leaf, end, value)
            left -= len(leaves)
        if not complete:  # a critic judged them all: one response from the best place
            (node,) = self.branching.play_out([self._best(root)])
            complete[node.tokens] = node
        responses = sorted(complete.values(), key=lambda node: -node.rewards)
        return Found(responses[0], responses, self.branching.forwards - begin)

    def _leaves(self, root: _Branch, most: int) -> list[_Branch]:
        """Where so many simulations leave the tree; each is on its way, and counted, before the next one chooses."""
        leaves: list[_Branch] = []
        while len(leaves) < most and not root.exhausted:
            branch = root
            while branch.actions:
                branch = self._child(branch, self._choose(branch))
            leaves.append(branch)
            if branch.node.ended:
                _exhaust(branch)
            for passed in _upwards(branch):
                passed.under_way += 1
        return leaves

    def _child(self, branch: _Branch, place: int) -> _Branch:
        if place not in branch.children:
            (node,) = self.branching.step([branch.node], [branch.actions[place]], [branch.told[place]])
            branch.children[place] = _Branch(node, branch)
        return branch.children[place]

    def _evaluate(self, leaves: Sequence[_Branch]) -> list[tuple[_Branch, float]]:
        """How far each simulation came, in a tree that has grown by what was read, and what that is worth."""
        if self.branching.critic is not None:
            return self._judge(leaves)
        paths = self.branching.paths([leaf.node for leaf in leaves])
        ends = [self._join(leaf, path) for leaf, path in zip(leaves, paths, strict=True)]
        return [(end, end.node.rewards) for end in ends]

    def _judge(self, leaves: Sequence[_Branch]) -> list[tuple[_Branch, float]]:
        """By the critic."""
        fresh = list({id(leaf): leaf for leaf in leaves if not leaf.node.ended}.values())
        later: dict[int, float] = {}
        if fresh:
            log_probs, values = self.branching.read([leaf.node for leaf in fresh])
            assert values is not None
            for leaf, of_actions, value in zip(fresh, log_probs, values.tolist(), strict=True):
                self._grow(leaf, of_actions)
                later[id(leaf)] = value
        return [(leaf, leaf.node.rewards + later.get(id(leaf), 0.0)) for leaf in leaves]

    def _join(self, branch: _Branch, path: Path) -> _Branch:
        """All states of a response that was played out, as branches; returns its end."""
        for log_probs, node in zip(path.log_probs, path.nodes[1:], strict=True):
            if not branch.actions:
                self._grow(branch, log_probs)
            if (action := node.tokens[-1]) not in branch.actions:
                self._offer(branch, log_probs, torch.tensor([action]))
            branch = branch.children.setdefault(branch.actions.index(action), _Branch(node, branch))
        _exhaust(branch)
        return branch

    def _grow(self, leaf: _Branch, log_probs: torch.Tensor) -> None:
        possible = min(self.top_k, int((log_probs > -math.inf).sum()))
        self._offer(leaf, log_probs, log_probs.topk(possible).indices)

    def _offer(self, branch: _Branch, log_probs: torch.Tensor, actions: torch.Tensor) -> None:
        told = log_probs[actions.to(log_probs.device)]
        branch.actions += actions.tolist()
        branch.told += told.tolist()
        branch.priors += told.exp().tolist()

    def _choose(self, branch: _Branch) -> int:
        """PUCT; a child that was never seen is worth what its parent is."""
        own, root = self._scaled(branch), math.sqrt(max(branch.visits + branch.under_way, 1))

        def urge(place: int) -> float:
            child = branch.children.get(place)
            if child is not None and child.exhausted:
                return -math.inf
            visits = 0 if child is None else child.visits + child.under_way
            value = own if child is None or not child.visits else self._scaled(child)
            return value + self.exploration * branch.priors[place] * root / (1 + visits)

        return max(range(len(branch.actions)), key=urge)

    def _scaled(self, branch: _Branch) -> float:
        """Q, the worst value seen being 0 and the best 1."""
        if not branch.visits or self._high <= self._low:
            return 0.5
        value = branch.highest if self.backup == "max" else branch.total / branch.visits
        return (value - self._low) / (self._high - self._low)

    def _credit(self, leaf: _Branch, end: _Branch, value: float) -> None:
        """The value of a simulation, all the way up from where it came to an end."""
        self._low, self._high = min(self._low, value), max(self._high, value)
        for branch in _upwards(leaf):
            branch.under_way -= 1
        for branch in _upwards(end):
            branch.visits += 1
            branch.total += value
            branch.highest = max(branch.highest, value)

    def _best(self, root: _Branch) -> Node:
        """Down the most visited children."""
        branch = root
        while branch.children:
            branch = max(branch.children.values(), key=lambda child: child.visits)
        return branch.node


def _exhaust(branch: _Branch) -> None:
    """A complete response was seen; so may be all that its beginnings offer."""
    branch.exhausted = True
    above = branch.parent
    while above is not None and all(
        place in above.children and above.children[place].exhausted for place in range(len(above.actions))
    ):
        above.exhausted = True
        above = above.parent


def _upwards(branch: _Branch) -> Iterator[_Branch]:
    """A branch and those above it."""
    step: _Branch | None = branch
    while step is not None:
        yield step
        step = step.parent


def _likeliest(nodes: Iterable[Node]) -> list[Node]:
    return sorted(nodes, key=lambda node: -node.log_prob)


def _positive(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r} must be an integer of at least 1")
