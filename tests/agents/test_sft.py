"""Supervised fine-tuning against transformers' own loss, and that minibatches and epochs are what they say."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from words import WORDS

from textgen_env.agents.policy import ActorConfig, ActorCritic
from textgen_env.agents.sft import SFT, SFTConfig, examples
from textgen_env.agents.training.supervised import Example, deal
from textgen_env.lm.language_model import LanguageModel

MakeVenv = Callable[..., gym.vector.VectorEnv]
TEXTS = [("a b", "c d e"), ("f", "g"), ("a", "b c d e f g h"), ("c d e f", "a"), ("d", "d d"), ("e a", "b b b")]


def ids(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


def made(texts: list[tuple[str, str]]) -> list[Example]:
    return [Example(prompt, response, ids(prompt), [*ids(response), 0]) for prompt, response in texts]


def make(source: Path, texts: list[tuple[str, str]] = TEXTS, *, total_updates: int = 100, seed: int = 1, **settings):
    policy = ActorCritic(LanguageModel(source), ActorConfig())
    config = SFTConfig(**{"minibatch_size": 4, "micro_batch_size": 4, "lr": 1e-2, "warmup_updates": 0, **settings})
    held_out = made([("b a", "c"), ("g", "f e")])
    return SFT(policy, config, made(texts), held_out=held_out, seed=seed, total_updates=total_updates)


def library_loss(model: Any, batch: list[Example]) -> torch.Tensor:
    """transformers' own: labels of −100 at prompts and padding."""
    width = max(len(e.prompt_ids) + len(e.response_ids) for e in batch)
    rows, labels, attention = [], [], []
    for e in batch:
        text, padding = e.prompt_ids + e.response_ids, width - len(e.prompt_ids) - len(e.response_ids)
        rows.append(text + [1] * padding)
        labels.append([-100] * len(e.prompt_ids) + e.response_ids + [-100] * padding)
        attention.append([1] * len(text) + [0] * padding)
    return model(input_ids=torch.tensor(rows), attention_mask=torch.tensor(attention), labels=torch.tensor(labels)).loss


def test_loss_and_gradient_are_those_of_transformers(word_model: Path):
    trainer = make(word_model, minibatch_size=6, micro_batch_size=6)
    batch = trainer.batch(trainer.examples)
    loss, _ = trainer.loss(batch, torch.arange(6))
    theirs = library_loss(trainer.policy.actor, trainer.examples)
    assert loss.item() == pytest.approx(theirs.item(), abs=1e-5)
    params = [p for p in trainer.policy.parameters() if p.requires_grad]
    for ours, other in zip(*(torch.autograd.grad(x, params) for x in (loss, theirs)), strict=True):
        torch.testing.assert_close(ours, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3])
def test_micro_batches_weigh_by_their_response_tokens(word_model: Path, micro_batch_size: int):
    """The gradient of a minibatch is that of transformers' loss over all of it, however it is cut up."""
    trainer = make(word_model, minibatch_size=6, micro_batch_size=micro_batch_size)
    trainer._gradient(trainer.batch(trainer.examples), torch.arange(6).split(micro_batch_size))
    params = [p for p in trainer.policy.parameters() if p.requires_grad]
    theirs = torch.autograd.grad(library_loss(trainer.policy.actor, trainer.examples), params)
    for param, other in zip(params, theirs, strict=True):
        torch.testing.assert_close(param.grad, other, atol=1e-5, rtol=1e-4)


def test_held_out_loss_is_that_of_transformers(word_model: Path):
    trainer = make(word_model, micro_batch_size=1)
    measured = trainer.held_out()
    with torch.no_grad():
        expected = library_loss(trainer.policy.actor, list(trainer.held_out_examples))
    assert measured["loss"] == pytest.approx(expected.item(), abs=1e-5)
    assert measured["perplexity"] == pytest.approx(expected.exp().item(), rel=1e-4)


def test_scores_of_samples_are_log_probs_per_token(word_model: Path):
    trainer = make(word_model, minibatch_size=6, micro_batch_size=2, lr=0.0)
    _, batch = trainer.iterate()
    assert sorted(zip(batch.prompts, batch.texts, strict=True)) == sorted(TEXTS)
    for prompt, text, score in zip(batch.prompts, batch.texts, batch.scores.tolist(), strict=True):
        with torch.no_grad():
            assert score == pytest.approx(-library_loss(trainer.policy.actor, made([(prompt, text)])).item(), abs=1e-5)


def test_every_epoch_has_each_example_once_in_another_order(word_model: Path):
    trainer = make(word_model, lr=0.0)
    batches = [trainer.iterate() for _ in range(4)]
    assert [metrics["epoch"] for metrics, _ in batches] == [0.5, 1, 1.5, 2]
    first, second = ([text for _, batch in batches[i : i + 2] for text in batch.texts] for i in (0, 2))
    assert Counter(first) == Counter(second) == Counter(response for _, response in TEXTS)
    epochs = [[text for _ in range(2) for text in trainer.iterate()[1].texts] for _ in range(4)]
    assert len({tuple(order) for order in (first, second, *epochs)}) > 1
    orders = {tuple(make(word_model, seed=seed, lr=0.0).iterate()[1].texts) for seed in range(5)}
    assert len(orders) > 1


def test_minibatches_hold_texts_of_similar_length():
    lengths = torch.randint(1, 100, (640,), generator=torch.Generator().manual_seed(0))
    dealt = deal(lengths, 8, torch.Generator().manual_seed(1))
    assert sorted(torch.cat(dealt).tolist()) == list(range(640))
    assert {len(part) for part in dealt} == {8}
    spread = sum(float(lengths[part].max() - lengths[part].min()) for part in dealt) / len(dealt)
    assert spread < 12  # of 99; eight drawn at random spread by 77
    means = torch.stack([lengths[part].float().mean() for part in dealt])
    assert torch.corrcoef(torch.stack([means, torch.arange(80.0)]))[0, 1].abs() < 0.3  # no order among them


def test_groups_are_dealt_side_by_side():
    """Of 40 groups at most one is torn per border of minibatches; the order of groups, and that within, is random."""
    sizes = torch.randint(1, 16, (40,), generator=torch.Generator().manual_seed(0))
    groups = torch.arange(40).repeat_interleave(sizes)
    groups = groups[torch.randperm(len(groups), generator=torch.Generator().manual_seed(1))]
    lengths = torch.randint(1, 100, groups.shape, generator=torch.Generator().manual_seed(2))
    orders = [deal(lengths, 16, torch.Generator().manual_seed(seed), groups) for seed in (3, 4)]
    for dealt in orders:
        assert sorted(torch.cat(dealt).tolist()) == list(range(len(groups)))
        assert sum(len(groups[part].unique()) for part in dealt) <= 40 + len(dealt) - 1
    assert not torch.equal(*(torch.cat(dealt) for dealt in orders))
    whole = [[i for i in torch.cat(dealt).tolist() if groups[i] == sizes.argmax()] for dealt in orders]
    assert whole[0] != whole[1]
    alone = deal(lengths, 16, torch.Generator().manual_seed(3), torch.arange(len(groups)))
    assert torch.equal(torch.cat(alone), torch.cat(deal(lengths, 16, torch.Generator().manual_seed(3))))


def test_it_goes_on_as_if_never_stopped(word_model: Path):
    straight, stopped = make(word_model), make(word_model)
    straight.train(5)
    stopped.train(3)
    state = stopped.state_dict()
    resumed = make(word_model)
    resumed.load_state_dict(state)
    resumed.train(2)
    assert resumed.updates == 5
    for a, b in zip(straight.policy.state_dict().values(), resumed.policy.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_it_learns_the_texts_that_it_is_given(word_model: Path):
    trainer = make(word_model, minibatch_size=6, micro_batch_size=6, total_updates=60)
    history = trainer.train(60)
    assert history[0]["perplexity"] > 10
    assert history[-1]["perplexity"] < 1.5


def test_examples_are_prompts_and_references_as_the_environment_has_them(
    make_venv: MakeVenv, word_model: Path, tmp_path: Path
):
    """Several references are several examples; a column "completion" goes before them; what is too long is cut."""
    rows = [
        {"prompt": "a b", "references": ["c d", "e"]},
        {"prompt": "f", "references": ["g"], "completion": "h i"},
        {"prompt": "a b c d e f g h i j", "references": ["a a a a a a a a"]},
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    venv = make_venv(prompts=str(path))
    with pytest.warns(UserWarning, match="1 of 4 responses are longer than max_new_tokens=6"):
        found = examples(venv, LanguageModel(word_model))
    assert [(e.prompt, e.response) for e in found[:3]] == [("a b", "c d"), ("a b", "e"), ("f", "h i")]
    assert [e.response_ids for e in found[:3]] == [[*ids("c d"), 0], [*ids("e"), 0], [*ids("h i"), 0]]
    assert found[3].prompt_ids == ids("c d e f g h i j")  # cut on the left, to the environment's limit
    assert found[3].response_ids == ids("a a a a a a")
    observation, _ = venv.reset(options={"prompt": 0})
    assert found[0].prompt_ids == observation["input_ids"][0][observation["attention_mask"][0] == 1].tolist()
    with pytest.raises(ValueError, match=r"prompts\[0\]='a b' has neither \"references\" nor a \"completion\""):
        examples(make_venv(), LanguageModel(word_model))


def test_a_separator_stands_where_there_is_no_white_space(byte_model: str):
    """Between "x" and "y", once; not where either side has white space, nor behind a chat template."""
    prompts = [{"prompt": p, "references": [r]} for p, r in (("x", "y"), ("x ", "y"), ("x", " y"))]
    venv = gym.make_vec("textgen/TextGen-v0", model=byte_model, prompts=prompts, scorer="bleu", max_new_tokens=8)
    model = LanguageModel(byte_model)
    wanted = [[*model.encode_as_is(text), model.end_token_id] for text in (" y", "y", " y")]
    assert [e.response_ids for e in examples(venv, model)] == wanted
    assert examples(venv, model, "")[0].response_ids == wanted[1]
    model.tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}>"
    chat = [{"messages": [{"role": "user", "content": "x"}], "references": ["y"]}]
    venv = gym.make_vec("textgen/TextGen-v0", model=model, prompts=chat, scorer="bleu", max_new_tokens=8)
    (example,) = examples(venv, model)
    assert example.prompt_ids == model.encode_as_is("x>")
    assert example.response_ids == wanted[1]


def test_nothing_to_learn_from_is_refused(word_model: Path):
    with pytest.raises(ValueError, match="examples holds none"):
        make(word_model, [])
