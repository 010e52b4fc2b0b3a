"""The reward model: its loss by hand, environments that score as it was trained, ensembles, and a judge it finds."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from torch.nn.functional import logsigmoid
from transformers import AutoModelForSequenceClassification
from words import WORDS

from textgen_env.agents.preferences.labellers import SyntheticLabeller, choose_by_disagreement
from textgen_env.agents.preferences.pairs import Pair
from textgen_env.agents.preferences.rewards import RewardModel
from textgen_env.agents.reward_model import RewardExample, RewardModelConfig, RewardModelTrainer, examples
from textgen_env.lm.language_model import LanguageModel
from textgen_env.scorers.registry import get_scorer

PAIRS = [
    Pair("a b", " c d e", " f", "a"),
    Pair("f", " g", " a b c d e", "b"),
    Pair("a", " b", " c", "tie"),
    Pair("c d e f", " a a", "", "b"),
    Pair("d", " h", " d d", "cannot tell"),
    Pair("d", " h", " d d"),
]


def reward_model(source: Any, members: int = 1, seed: int = 0) -> RewardModel:
    """With heads that say something."""
    model = RewardModel(LanguageModel(source), members)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for member in model.members:
            member.score.weight.normal_(0, 0.3, generator=generator)  # type: ignore[union-attr, operator]
    return model


def make(source: Any, members: int = 1, *, total_updates: int = 100, **settings: Any) -> RewardModelTrainer:
    model = reward_model(source, members)
    config = RewardModelConfig(
        **{"minibatch_size": 2, "micro_batch_size": 2, "lr": 1e-3, "warmup_updates": 0, **settings}
    )
    bootstrap = torch.Generator().manual_seed(0) if members > 1 else None
    made, held_out = examples(PAIRS, model, bootstrap), examples(PAIRS[:3], model)
    return RewardModelTrainer(model, config, made, held_out=held_out, total_updates=total_updates)


def library_rewards(member: Any, texts: tuple[list[int], list[int]]) -> list[torch.Tensor]:
    """transformers' own, each text alone."""
    return [member(torch.tensor([ids])).logits[0, 0] for ids in texts]


@pytest.mark.parametrize(("margin", "center"), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.3), (0.5, 0.3)])
@pytest.mark.parametrize("members", [1, 3])
def test_loss_and_gradient_are_those_of_the_formula(word_model: Path, members: int, margin: float, center: float):
    """On transformers' own rewards, pair by pair, member by member; a tie is half of each direction."""
    trainer = make(word_model, members, margin=margin, center_coef=center)
    count = len(trainer.examples)
    loss, _ = trainer.loss(trainer.batch(trainer.examples), torch.arange(count))
    theirs = torch.zeros(())
    for number, member in enumerate(trainer.policy.members):
        for e in trainer.examples:
            first, second = library_rewards(member, e.ids)
            d = first - second
            own = -logsigmoid(d - margin) if e.target == 1 else -0.5 * (logsigmoid(d) + logsigmoid(-d))
            theirs = theirs + e.weights[number] * (own + center * (first + second) ** 2) / (count * members)
    assert count == 4
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    params = [p for p in trainer.policy.parameters() if p.requires_grad]
    grads = (torch.autograd.grad(x, params, allow_unused=True) for x in (loss, theirs))
    for ours, other in zip(*grads, strict=True):
        torch.testing.assert_close(ours, other, atol=1e-5, rtol=1e-3)


def test_a_response_in_several_pairs_is_read_once(word_model: Path):
    """Six pairs of four responses: the forward pass has four rows, and loss and gradient are those of six pairs."""
    texts = [" c", " d e", " f g h", " b"]
    pairs = [Pair("a b", a, b, "a") for a, b in combinations(texts, 2)]
    model, read = reward_model(word_model), list[int]()
    config = RewardModelConfig(minibatch_size=6, micro_batch_size=6, center_coef=0.1)
    trainer = RewardModelTrainer(model, config, examples(pairs, model))
    model.register_forward_pre_hook(lambda _, given: read.append(len(given[0].lengths)))
    loss, parts = trainer.loss(batch := trainer.batch(trainer.examples), torch.arange(6))
    assert read == [4]
    rewards = [library_rewards(model.members[0], e.ids) for e in trainer.examples]
    theirs = torch.stack([-logsigmoid(a - b) + 0.1 * (a + b) ** 2 for a, b in rewards]).mean()
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert batch.scores.tolist() == pytest.approx([(a - b).item() for a, b in rewards], abs=1e-5)
    assert parts["accuracy"].item() == pytest.approx(sum((a > b).item() for a, b in rewards) / 6)
    grads = (torch.autograd.grad(x, list(model.members.parameters()), allow_unused=True) for x in (loss, theirs))
    for ours, other in zip(*grads, strict=True):
        torch.testing.assert_close(ours, other, atol=1e-5, rtol=1e-3)
    trainer.loss(batch, torch.tensor([0, 1]))
    assert read == [4, 3]  # of two pairs with one response in common


def test_fresh_blocks_are_the_top_ones_and_new_for_each_seed_and_member(word_model: Path):
    language_model = LanguageModel(word_model)
    before = language_model.model.base_model.state_dict()
    blocks = language_model.model.config.num_hidden_layers
    assert blocks == 2

    def changed(fresh_layers: int | None, seed: int = 0) -> list[dict[str, torch.Tensor]]:
        model, rng = RewardModel(language_model, 2, fresh_layers=fresh_layers, seed=seed), torch.random.get_rng_state()
        assert torch.equal(torch.random.get_rng_state(), rng)
        states = [member.base_model.state_dict() for member in model.members]  # type: ignore[union-attr]
        return [{k: v for k, v in state.items() if not torch.equal(v, before[k])} for state in states]

    matrices = {name for name, value in before.items() if ".1." in name and value.dim() == 2}
    one, other = changed(1)
    assert matrices == {name for name in one if one[name].dim() == 2} == {n for n in other if other[n].dim() == 2}
    assert not any(torch.equal(one[name], other[name]) for name in matrices)
    assert not any(torch.equal(one[name], changed(1, seed=1)[0][name]) for name in matrices)
    assert all(torch.equal(one[name], changed(1)[0][name]) for name in one)
    assert changed(0) == [{}, {}]
    assert {name.split(".")[1] for name in changed(None)[0]} == {"0", "1"}  # a small model: all
    with pytest.raises(ValueError, match="fresh_layers=3 must be from 0 to the 2 blocks"):
        changed(3)


def test_a_stronger_preference_asks_for_a_wider_margin(word_model: Path):
    """Llama 2's margin, on transformers' own rewards: 0.1 + 2·strength, and none for a tie."""
    model, strengths = reward_model(word_model), (0.0, 0.5, 1.5, None)
    pairs = [replace(p, columns={} if s is None else {"strength": s}) for p, s in zip(PAIRS, strengths, strict=False)]
    config = RewardModelConfig(margin=0.1, strength_margin=2.0, center_coef=0.0, minibatch_size=4, micro_batch_size=4)
    trainer = RewardModelTrainer(model, config, examples(pairs, model))
    loss, _ = trainer.loss(trainer.batch(trainer.examples), torch.arange(4))
    margins, terms = [0.1, 0.1 + 2 * 0.5, 0.0, 0.1], []
    for e, margin in zip(trainer.examples, margins, strict=True):
        first, second = library_rewards(model.members[0], e.ids)
        d = first - second - margin
        terms.append(-logsigmoid(d) if e.target == 1 else -0.5 * (logsigmoid(d) + logsigmoid(-d)))
    assert loss.item() == pytest.approx(sum(term.item() for term in terms) / 4, rel=1e-5)


def test_examples_have_the_preferred_response_first(word_model: Path):
    model = reward_model(word_model)
    ids = [[WORDS.index(word) for word in text.split()] for text in ("a b c d e", "a b f", "f a b c d e", "f g")]
    first, second, tie, _ = examples(PAIRS, model)
    assert first == RewardExample("a b", " c d e", (ids[0], ids[1]), 1.0, (1.0,))
    assert second == RewardExample("f", " a b c d e", (ids[2], ids[3]), 1.0, (1.0,))
    assert tie.target == 0.5


def test_bootstrap_samples_are_of_the_size_of_the_data_and_differ(word_model: Path):
    model = reward_model(word_model, 3)
    made = examples(PAIRS[:3] * 20, model, torch.Generator().manual_seed(1))
    weights = torch.tensor([e.weights for e in made]).T
    assert weights.shape == (3, 60)
    assert weights.sum(dim=1).tolist() == [60.0] * 3
    assert 10 < int((weights[0] == 0).sum()) < 34  # 60/e = 22 are left out
    assert not torch.equal(weights[0], weights[1])


@pytest.mark.parametrize("members", [1, 2])
def test_environments_score_as_it_was_trained(word_model: Path, tmp_path: Path, members: int):
    """The folder as a scorer gives each text its reward, whatever stands beside it; transformers loads it too."""
    model = reward_model(word_model, members)
    model.save(tmp_path)
    texts = [("a b", " c d e"), ("f", ""), ("a", " b"), ("c d e f", " a a a a a a a")]
    pairs = [Pair(prompt, text, text + " a") for prompt, text in texts]
    rewards = model(model.batch([model.encode(pair)[0] for pair in pairs]))
    for number in range(members):
        folder = tmp_path / f"member-{number}" if number else tmp_path
        scorer = get_scorer({"name": "classifier", "model": str(folder), "output": "logit"})
        prompts, responses = zip(*texts, strict=True)
        together = scorer(list(responses), prompts=list(prompts))
        alone = [scorer([text], prompts=[prompt])[0] for prompt, text in texts]
        assert together == pytest.approx(rewards[number].tolist(), abs=1e-5)
        assert together == pytest.approx(alone, abs=1e-5)
        assert len({round(score, 4) for score in together}) == 4
        AutoModelForSequenceClassification.from_pretrained(folder)
    env = gym.make(
        "textgen/TextGen-v0",
        model=str(word_model),
        prompts=["a b"],
        scorer={"name": "classifier", "model": str(tmp_path), "output": "logit"},
        max_new_tokens=2,
    )
    env.reset(seed=0)
    reward, info = 0.0, {}
    for word in ("c", "d"):
        _, reward, _, _, info = env.step(WORDS.index(word))
    expected = model(model.batch([[WORDS.index(word) for word in "abcd"]]))[0].item()
    assert info["score"] == reward == pytest.approx(expected, abs=1e-5)


def test_adapters_and_head_learn_and_are_saved_merged(word_model: Path, tmp_path: Path):
    """The weights below the adapters stay; transformers finds the same rewards in what is saved."""
    model = RewardModel(LanguageModel(word_model), 2, lora_rank=2, lora_alpha=4, seed=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = RewardModelConfig(lr=1e-2, warmup_updates=0, minibatch_size=4, micro_batch_size=4)
    RewardModelTrainer(model, config, examples(PAIRS, model)).train(4)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name for name in before if "lora_" in name or "score" in name} == changed
    starts = [value for name, value in before.items() if "layers.0.self_attn.q_proj.lora_A" in name]
    assert not torch.equal(*starts)  # each member begins elsewhere
    model.save(tmp_path)
    for number, folder in enumerate((tmp_path, tmp_path / "member-1")):
        saved = AutoModelForSequenceClassification.from_pretrained(folder)
        theirs = [library_rewards(saved, model.encode(pair)) for pair in PAIRS]
        differences = torch.stack([a - b for a, b in theirs])
        torch.testing.assert_close(model.differences(PAIRS)[number], differences.detach(), atol=1e-5, rtol=1e-4)


def test_conversations_are_read_through_the_chat_template(word_model: Path):
    language_model = LanguageModel(word_model)
    chat = Pair([{"role": "user", "content": "a b"}], "c", "d")
    with pytest.raises(ValueError, match="prompt='a b' is a conversation, but the tokenizer has no chat template"):
        RewardModel(language_model).encode(chat)
    language_model.tokenizer.chat_template = "{% for m in messages %}f {{ m['content'] }} g {% endfor %}"
    a, b = RewardModel(language_model).encode(chat)
    assert a == [WORDS.index(word) for word in "fabgfcg"]
    assert b == [WORDS.index(word) for word in "fabgfdg"]


def test_it_begins_at_zero_and_leaves_the_language_model_and_the_generator_alone(word_model: Path):
    language_model, state = LanguageModel(word_model), torch.random.get_rng_state()
    before = {name: value.clone() for name, value in language_model.model.state_dict().items()}
    model = RewardModel(language_model, 2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.differences(PAIRS).tolist() == [[0.0] * 6] * 2
    trainer = RewardModelTrainer(model, RewardModelConfig(lr=1e-2, warmup_updates=0), examples(PAIRS, model))
    trainer.train(2)
    assert all(torch.equal(value, before[name]) for name, value in language_model.model.state_dict().items())
    assert model.differences(PAIRS).abs().min() > 0


def test_centring_holds_the_level(word_model: Path):
    """Preferences alone leave it open; with the term the mean reward goes to 0, and the order stays."""

    def level(center: float) -> float:
        trainer = make(word_model, center_coef=center, lr=3e-3, minibatch_size=4, micro_batch_size=4)
        with torch.no_grad():  # far off at first
            for layer in trainer.policy.members:
                layer.score.weight.add_(0.2)
        history = trainer.train(60)
        assert history[-1]["accuracy"] == pytest.approx((3 + 0.5) / 4)
        return abs(history[-1]["reward"])

    assert level(1.0) < 0.1 < level(0.0)


def test_it_goes_on_as_if_never_stopped(word_model: Path):
    straight, stopped = make(word_model, 2), make(word_model, 2)
    straight.train(5)
    stopped.train(3)
    resumed = make(word_model, 2)
    resumed.load_state_dict(stopped.state_dict())
    resumed.train(2)
    for a, b in zip(straight.policy.state_dict().values(), resumed.policy.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_an_ensemble_disagrees_where_it_has_seen_nothing(word_model: Path):
    """Members agree on the pairs they learned, and the others are chosen first."""
    seen = [Pair(f"{x} {y}", " a", " b", "a") for x in "cdef" for y in "cdef"]
    unseen = [Pair(f"{x} {y}", " l", " m", "a") for x in "cdef" for y in "cd"]
    model = reward_model(word_model, 4)
    config = RewardModelConfig(lr=3e-3, warmup_updates=0, members=4, minibatch_size=16, micro_batch_size=16)
    trainer = RewardModelTrainer(model, config, examples(seen, model, torch.Generator().manual_seed(0)))
    trainer.train(60)
    assert model.differences(seen).min() > 1
    chosen = choose_by_disagreement([*seen, *unseen], len(unseen), model.differences)
    assert {p.a for p in chosen} == {" l"}


def test_held_out_differences_are_those_of_the_pairs(word_model: Path):
    trainer = make(word_model, 2)
    differences, targets = trainer.held_out_differences()
    signs = torch.tensor([1.0, -1.0, 1.0])  # of the second pair b is preferred
    torch.testing.assert_close(differences, trainer.policy.differences(PAIRS[:3]) * signs)
    assert targets.tolist() == [1.0, 1.0, 0.5]


def test_it_finds_the_order_of_a_hidden_judge(word_model: Path):
    """A judge that counts "a" and dislikes "b": learned from noisy labels, right on pairs it has not seen."""

    def judge(completions: list[str], **_: Any) -> list[float]:
        return [float(text.split().count("a") - text.split().count("b")) for text in completions]

    generator, words = torch.Generator().manual_seed(0), ["a", "b", "c", "d"]

    def text() -> str:
        return "".join(f" {words[i]}" for i in torch.randint(4, (4,), generator=generator).tolist())

    drawn = [(text(), text()) for _ in range(460)]
    pairs = [Pair("e f", *texts) for texts in drawn if len(set(texts)) == 2]
    labelled = SyntheticLabeller(judge, temperature=0.5)(pairs)
    model = RewardModel(LanguageModel(word_model))
    config = RewardModelConfig(lr=3e-3, warmup_updates=4, minibatch_size=32, micro_batch_size=32)
    RewardModelTrainer(model, config, examples(labelled[:300], model), total_updates=60).train(60)
    found = model.differences(labelled[300:])[0]
    scores = torch.tensor([p.columns["scores"] for p in labelled[300:]])
    wanted = scores[:, 0] - scores[:, 1]
    clear = wanted.abs() >= 2
    assert int(clear.sum()) > 40
    assert float((found[clear].sign() == wanted[clear].sign()).float().mean()) >= 0.95
