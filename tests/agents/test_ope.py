"""Off-policy estimates against trees in which everything can be counted."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import write_prompts
from torch import Tensor

pytest.importorskip("minari")
pytest.importorskip("h5py")

from textgen_env.agents.minari_data import read
from textgen_env.agents.offline_estimates import OffPolicy
from textgen_env.agents.ope import OffPolicyEvaluation, OPESettings, off_policy, read_policy
from textgen_env.agents.policy import ActorCritic, PolicyConfig
from textgen_env.agents.record import Recorder, RecordSettings
from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.sampling import SamplingParams

TOKENS, STATES = 3, [(), (0,), (1,)]  # token 2 ends; a second token always does
EPISODES = [(2,), *product((0, 1), range(TOKENS))]


class Tree:
    """Two policies and rewards of every step, at random."""

    def __init__(self, seed: int, apart: float = 0.5) -> None:
        generator = torch.Generator().manual_seed(seed)
        draw = lambda: torch.randn(3, TOKENS, generator=generator, dtype=torch.float64)  # noqa: E731
        logits = draw()
        self.behaviour = dict(zip(STATES, logits.log_softmax(1), strict=True))
        self.target = dict(zip(STATES, (logits + apart * draw()).log_softmax(1), strict=True))
        self.rewards = dict(zip(STATES, draw(), strict=True))

    def probability(self, policy: dict[Any, Tensor], episode: tuple[int, ...]) -> float:
        return float(sum(policy[episode[:t]][a] for t, a in enumerate(episode)).exp())

    def paid(self, episode: tuple[int, ...]) -> float:
        return float(sum(self.rewards[episode[:t]][a] for t, a in enumerate(episode)))

    @property
    def value(self) -> float:
        """Of the target, exactly."""
        return sum(self.probability(self.target, e) * self.paid(e) for e in EPISODES)

    def q(self, state: tuple[int, ...], action: int) -> float:
        after = 0.0 if state or action == 2 else self.v((action,))
        return float(self.rewards[state][action]) + after

    def v(self, state: tuple[int, ...]) -> float:
        return sum(float(self.target[state][a].exp()) * self.q(state, a) for a in range(TOKENS))

    def grids(self, episodes: list[tuple[int, ...]]) -> dict[str, Tensor]:
        """(B, 4) each; the prompt is a column, a reply another, and whatever is there is not to be read."""
        names = ("log_ratios", "rewards", "values", "action_values")
        found = {name: torch.full((len(episodes), 4), float("nan"), dtype=torch.float64) for name in names}
        found["response_mask"] = torch.zeros(len(episodes), 4)
        for row, episode in enumerate(episodes):
            for t, action in enumerate(episode):
                state, at = episode[:t], 1 + 2 * t
                found["response_mask"][row, at] = 1
                found["log_ratios"][row, at] = self.target[state][action] - self.behaviour[state][action]
                found["rewards"][row, at] = self.rewards[state][action]
                found["values"][row, at] = self.v(state)
                found["action_values"][row, at] = self.q(state, action)
        return found


def of(grids: dict[str, Tensor], prompts: list[int], **more: Any) -> OffPolicy:
    kept = {name: grids[name] for name in ("log_ratios", "rewards", "response_mask")}
    return OffPolicy(**{**kept, **more}, prompts=prompts)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_said_to_be_unbiased_is(seed: int):
    """Expectations over all episodes, each as likely as π_b writes it; for any V, right or wrong."""
    tree = Tree(seed)
    grids = tree.grids(EPISODES)
    chance = torch.tensor([tree.probability(tree.behaviour, e) for e in EPISODES], dtype=torch.float64)
    assert float(chance.sum()) == pytest.approx(1)
    wrong = grids["values"] * 0 + torch.tensor([0.0, 0.7, 0.0, -2.0])
    for values in (grids["values"], wrong):
        columns = of(grids, list(range(7)), values=values).per_episode()
        for name in ("ordinary", "per decision", "doubly robust"):
            assert float(chance @ columns[name]) == pytest.approx(tree.value, abs=1e-9), name
        assert float(chance @ columns["weight"]) == pytest.approx(1)
    exact = of(grids, list(range(7)), values=grids["values"], action_values=grids["action_values"]).per_episode()
    assert float(chance @ exact["doubly robust"]) == pytest.approx(tree.value, abs=1e-9)


def test_doubly_robust_is_right_with_right_values_and_wrong_ratios():
    """Where the next state is certain and Q and V are exact, each episode by itself says the truth."""
    tree = Tree(7)
    grids = tree.grids(EPISODES)
    grids["log_ratios"] = grids["log_ratios"] + 0.3
    columns = of(grids, list(range(7)), values=grids["values"], action_values=grids["action_values"]).per_episode()
    assert columns["doubly robust"].tolist() == pytest.approx([tree.value] * 7, abs=1e-9)
    chance = torch.tensor([tree.probability(tree.behaviour, e) for e in EPISODES], dtype=torch.float64)
    assert abs(float(chance @ columns["ordinary"]) - tree.value) > 0.1


def test_by_hand():
    """Two prompts, three episodes of weights 2, ½ and 1, and returns 1, 3 and 0."""
    log_ratios = torch.tensor([[0.0, 2.0, 1.0], [0.0, 0.25, 2.0], [0.0, 1.0, 1.0]]).log().nan_to_num(neginf=9.0)
    rewards = torch.tensor([[9.0, 0.0, 1.0], [9.0, 1.0, 2.0], [9.0, 0.0, 0.0]])
    mask = torch.tensor([[0, 1, 1]] * 3)
    found = OffPolicy(log_ratios, rewards, mask, [4, 4, 9]).estimate()
    assert found.behaviour.value == pytest.approx(4 / 3)
    assert found.values["ordinary"].value == pytest.approx((2 + 1.5 + 0) / 3)
    assert found.values["weighted"].value == pytest.approx(3.5 / 3.5)
    assert found.values["per decision"].value == pytest.approx((2 * 1 + 0.25 * 1 + 0.5 * 2) / 3)
    assert found.ess == pytest.approx(3.5**2 / (4 + 0.25 + 1))
    assert found.mean_weight.value == pytest.approx(3.5 / 3)
    assert not found.reliable
    assert "doubly robust" not in found.values


TRIALS = 250


def test_intervals_cover_the_truth():
    """95 % intervals over prompts, each of which has a tree of its own; the truth is the mean over the trees."""
    trees = [Tree(seed) for seed in range(8)]
    truth = sum(tree.value for tree in trees) / len(trees)
    chances = [torch.tensor([t.probability(t.behaviour, e) for e in EPISODES]) for t in trees]
    tables = [tree.grids(EPISODES) for tree in trees]
    generator, covered = torch.Generator().manual_seed(3), dict.fromkeys(["ordinary", "weighted", "per decision"], 0)
    covered["doubly robust"] = narrower = 0
    for trial in range(TRIALS):
        which = torch.randint(8, (150,), generator=generator).tolist()  # prompts, four episodes each
        drawn = [torch.multinomial(chances[w], 4, replacement=True, generator=generator) for w in which]
        grids = {name: torch.cat([tables[w][name][d] for w, d in zip(which, drawn, strict=True)]) for name in tables[0]}
        prompts = [number for number in range(150) for _ in range(4)]
        found = of(grids, prompts, values=grids["values"], action_values=grids["action_values"]).estimate(seed=trial)
        for name, (_, low, high) in found.values.items():
            covered[name] += low <= truth <= high
        widths = {name: high - low for name, (_, low, high) in found.values.items()}
        narrower += widths["doubly robust"] < widths["ordinary"]
    assert all(0.9 <= count / TRIALS <= 0.99 for count in covered.values()), covered
    assert narrower > 0.95 * TRIALS


def test_one_prompt_has_an_interval_over_its_episodes():
    tree = Tree(1)
    found = of(tree.grids(EPISODES * 20), [5] * 140).estimate()
    value, low, high = found.values["ordinary"]
    assert low < value < high


def test_bad_arguments():
    grids = Tree(0).grids(EPISODES)
    with pytest.raises(ValueError, match="prompts has 3 numbers; it needs one for each of 7 episodes"):
        of(grids, [1, 2, 3])
    with pytest.raises(ValueError, match="action_values needs values beside it"):
        of(grids, list(range(7)), action_values=grids["action_values"])
    with pytest.raises(ValueError, match="rewards has shape"):
        of({**grids, "rewards": grids["rewards"][:, 1:]}, list(range(7)))


# --- policies ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(word_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recorded")
    given: dict[str, Any] = {"env": "textgen/TextGen-v0", "model": str(word_model), "scorer": "distinct"}
    given |= {"prompts": str(write_prompts(folder / "prompts.jsonl")), "num_envs": 8, "max_new_tokens": 4}
    given |= {"episodes": 48, "eval_prompts": 4, "responses": 4, "temperature": 0.8}
    Recorder(RecordSettings(**given, output=str(folder / "words-v0"))).execute()
    return folder / "words-v0"


def changed(source: Path) -> ActorCritic:
    policy = ActorCritic(LanguageModel(source), PolicyConfig(critic="separate"))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
    return policy


def test_who_played_is_worth_what_was_paid(dataset: Path, word_model: Path):
    recorded = read(dataset)
    found = off_policy(recorded, read_policy(str(word_model))).estimate()
    assert found.ess == pytest.approx(48, abs=1e-3)
    for value, _, _ in found.values.values():
        assert value == pytest.approx(recorded.rollout.scores.mean().item(), abs=1e-5)


def test_ratios_are_those_of_the_models(dataset: Path, word_model: Path, tmp_path: Path):
    """By transformers' own forward of each prefix, at another temperature."""
    changed(word_model).save(tmp_path / "changed")
    recorded, model = read(dataset), LanguageModel(tmp_path / "changed").model
    found = off_policy(recorded, read_policy(str(tmp_path / "changed")), SamplingParams(1.3))
    rollout = recorded.rollout
    for row in range(6):
        for t in rollout.response_mask[row].nonzero().flatten().tolist():
            with torch.no_grad():
                log_probs = (model(rollout.input_ids[row : row + 1, :t]).logits[0, -1] / 1.3).log_softmax(0)
            ratio = log_probs[rollout.input_ids[row, t]] - rollout.sampled_log_probs[row, t]
            assert found.log_ratios[row, t].item() == pytest.approx(ratio.item(), abs=1e-4)


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_a_critic_is_read_with_its_policy(critic: Any, dataset: Path, word_model: Path, tmp_path: Path):
    policy = ActorCritic(LanguageModel(word_model), PolicyConfig(critic=critic))
    torch.nn.init.normal_(policy.value_head.out.weight, generator=torch.Generator().manual_seed(2))
    policy.save(tmp_path / "saved")
    recorded = read(dataset)
    found, direct = off_policy(recorded, read_policy(str(tmp_path / "saved"))), off_policy(recorded, policy)
    assert found.values is not None
    torch.testing.assert_close(found.values, direct.values)
    assert found.values.abs().sum() > 0
    assert set(found.estimate().values) == {"ordinary", "weighted", "per decision", "doubly robust"}


def test_the_command(dataset: Path, word_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    policy = changed(word_model)
    policy.save(tmp_path / "changed")
    settings = OPESettings(dataset=str(dataset), policy=str(tmp_path / "changed"), output=str(tmp_path / "found.json"))
    found = OffPolicyEvaluation(settings).execute()
    told, said = json.loads((tmp_path / "found.json").read_text()), capsys.readouterr().out
    assert told["values"]["weighted"] == pytest.approx(list(found.values["weighted"]))
    assert 1 < found.ess < 48
    assert not told["reliable"]
    assert "doubly robust" in said
    assert "below 100 intervals are too narrow" in " ".join(said.split())


def test_it_refuses_what_it_cannot_judge(dataset: Path, word_model: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="policy=None: name whom to judge"):
        OPESettings(dataset=str(dataset))
    with pytest.raises(ValueError, match="has .* tokens, and the episodes are of 16"):
        OffPolicyEvaluation(OPESettings(dataset=str(dataset), policy="tiny"))
    with pytest.raises(ValueError, match="must be a temperature alone"):
        off_policy(read(dataset), read_policy(str(word_model)), SamplingParams(top_k=3))
    recorded = read(dataset)
    recorded.sampling = SamplingParams(0.8, top_p=0.5)
    with pytest.warns(UserWarning, match="what that left out was never seen"):
        off_policy(recorded, read_policy(str(word_model)))
