"""Which files are read and which refused, whole weights, and many threads that load at once.

Kinds of models are in `test_model_kinds.py`, causal models that load as ever in `test_language_model.py`.
"""

from __future__ import annotations

import json
import logging
import pickle
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from gguf import GGUFWriter
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from test_language_model import write_gguf
from tiny_models import SIZES, byte_tokenizer, random_model

from textgen_env.lm.language_model import LanguageModel
from textgen_env.scorers import get_scorer

QUERY = "model.layers.0.self_attn.q_proj.weight"


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(byte_model: str, tmp_path: Path) -> Path:
    """A copy of a random Llama's directory that a test may damage."""
    return Path(shutil.copytree(byte_model, tmp_path / "model"))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def edit_config(folder: Path, **fields: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


# --- whole weights ----------------------------------------------------------------------------------------------------

DAMAGE: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "renamed": (lambda t: t.update(other=t.pop(QUERY)), rf"1 missing \({QUERY}\); 1 unexpected \(other\)"),
    "missing": (lambda t: t.pop(QUERY), rf"1 missing \({QUERY}\)"),
    "no head": (lambda t: t.pop("lm_head.weight"), r"1 missing \(lm_head\.weight\)"),
    "misshapen": (
        lambda t: t.update({QUERY: t[QUERY][:5].clone()}),
        rf"1 misshapen \({QUERY} \(5, 32\) for \(32, 32\)",
    ),
    "deeper": (
        lambda t: t.update({key.replace("layers.1", "layers.2"): t[key].clone() for key in [*t] if "layers.1" in key}),
        r"9 unexpected \(model\.layers\.2",
    ),
    "another prefix": (lambda t: [t.update({f"module.{key}": t.pop(key)}) for key in [*t]], "21 missing"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_weights_that_do_not_fit_are_refused(
    damage: str, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    change, message = DAMAGE[damage]
    edit_tensors(folder, change)
    with pytest.raises(ValueError, match=f"model: the tensors of .* do not fit LlamaForCausalLM: {message}"):
        LanguageModel(folder).model  # noqa: B018
    assert caplog.text == "", "the error says all there is to say"
    assert LanguageModel(folder, strict=False).model is not None
    assert "LOAD REPORT" in caplog.text


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]},
        {"model_type": "gpt2"},
        {"architectures": ["GPT2LMHeadModel"]},
        {"num_hidden_layers": 1},
        {"hidden_size": 16, "head_dim": 4},
    ],
)
def test_a_configuration_of_another_model_is_refused(fields: dict[str, Any], folder: Path) -> None:
    with pytest.raises(ValueError, match="^model: .*(do not fit|by its config.json)"):
        LanguageModel(edit_config(folder, **fields)).model  # noqa: B018


def test_what_old_versions_saved_beside_the_weights_is_no_fault(tmp_path: Path) -> None:
    """Buffers of old GPT-2 checkpoints, and names without the body's prefix, as on the hub."""
    model: Any = random_model("gpt2", 259)

    def age(tensors: dict[str, torch.Tensor]) -> None:
        for key in [*tensors]:
            tensors[key.removeprefix("transformer.")] = tensors.pop(key)
        tensors |= {"h.0.attn.bias": torch.ones(1, 1, 4, 4), "h.0.attn.masked_bias": torch.tensor(-1e4)}

    lm = LanguageModel(edit_tensors(saved(model, tmp_path), age))
    tokens = torch.tensor([[5, 60, 61, 62]])
    with torch.no_grad():
        torch.testing.assert_close(lm.model(tokens).logits, model(tokens).logits)


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    config = hf.LlamaConfig(**SIZES, tie_word_embeddings=True)
    folder = saved(hf.LlamaForCausalLM(config), tmp_path)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    model = LanguageModel(folder).model
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


def test_a_gguf_file_must_be_whole_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add = GGUFWriter.add_tensor
    monkeypatch.setattr(
        GGUFWriter, "add_tensor", lambda self, name, *rest: None if "1.attn_q" in name else add(self, name, *rest)
    )
    write_gguf(tmp_path / "small.gguf", random_model("llama", 259), byte_tokenizer())
    with pytest.raises(ValueError, match=r"1 missing \(model\.layers\.1\.self_attn\.q_proj\.weight\)"):
        LanguageModel(tmp_path / "small.gguf").model  # noqa: B018


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_named(value: float, folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors[QUERY].view(-1)[7].fill_(value))
    with pytest.raises(ValueError, match=f"model: {QUERY} of .* holds NaN or infinity as float32"):
        LanguageModel(folder).model  # noqa: B018


def test_weights_too_large_for_a_type_are_named(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors[QUERY].view(-1)[7].fill_(1e6))
    assert LanguageModel(folder).model is not None
    with pytest.raises(ValueError, match=f"{QUERY} of .* holds NaN or infinity as float16"):
        LanguageModel(folder, dtype="float16").model  # noqa: B018


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0, 4, 20, 0.5, 0.999])
def test_a_damaged_file_is_named_at_once(kept: float, folder: Path) -> None:
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(ValueError, match=r"model: .*model\.safetensors' is no whole safetensors file"):
        LanguageModel(folder)


class Bomb:
    """Pickled, it breaks whatever reads it."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("a pickle was read",)


@pytest.fixture
def sharded(folder: Path) -> Path:
    """The same directory with its weights in two files and an index; a pickle lies beside them."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"a.safetensors": names[:10], "b.safetensors": names[10:]}
    for file, keys in shards.items():
        save_file({key: tensors[key] for key in keys}, folder / file, {"format": "pt"})
    index = {"metadata": {"total_size": 0}, "weight_map": {key: file for file, keys in shards.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "evil.bin").write_bytes(pickle.dumps(Bomb()))
    (folder.parent / "b.safetensors").write_bytes((folder / "b.safetensors").read_bytes())
    return folder


@pytest.mark.parametrize("kind", ["model", "fluency"])
@pytest.mark.parametrize(
    "name", ["evil.bin", "../b.safetensors", "/b.safetensors", "x/../../b.safetensors", "..\\b.safetensors", ".."]
)
def test_an_index_leads_to_safetensors_in_its_folder_alone(kind: str, name: str, sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    assert LanguageModel(sharded).model is not None
    index.write_text(index.read_text().replace('"b.safetensors"', json.dumps(name)))
    with pytest.raises(ValueError, match=r"names the weights .*; expected plain names of \*\.safetensors"):
        LanguageModel(sharded) if kind == "model" else get_scorer("fluency", model=sharded)


@pytest.mark.parametrize(
    ("text", "message"), [("[]", "must hold a JSON object"), ("{", "is not JSON"), ("{}", "has no weight_map")]
)
def test_an_index_that_is_none(text: str, message: str, sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=f"model.safetensors.index.json' {message}"):
        LanguageModel(sharded)


def test_a_shard_that_is_missing_or_damaged_is_named(sharded: Path) -> None:
    (sharded / "b.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"b\.safetensors' is no whole safetensors file"):
        LanguageModel(sharded)
    (sharded / "b.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks 'b\.safetensors'"):
        LanguageModel(sharded)


def test_links_out_of_the_folder_are_fine(sharded: Path, tmp_path: Path) -> None:
    """As in a hub's cache."""
    for file in sharded.glob("*.safetensors"):
        file.replace(tmp_path / f"blob-{file.name}")
        file.symlink_to(tmp_path / f"blob-{file.name}")
    assert LanguageModel(sharded).model is not None


@pytest.mark.parametrize("name", ["../b.safetensors", "evil.bin"])
def test_a_configuration_names_no_file_elsewhere(name: str, sharded: Path) -> None:
    with pytest.raises(ValueError, match="names the weights"):
        LanguageModel(edit_config(sharded, transformers_weights=name))


def test_an_adapter_is_no_model(folder: Path, tmp_path: Path) -> None:
    adapted = get_peft_model(random_model("llama", 259), LoraConfig(r=2, target_modules=["q_proj"]))  # type: ignore[arg-type]
    adapted.save_pretrained(str(tmp_path / "adapter"))
    shutil.copy(tmp_path / "adapter" / "adapter_config.json", folder)
    for path in (tmp_path / "adapter", folder):
        with pytest.raises(ValueError, match="holds a PEFT adapter; merge it"):
            LanguageModel(path)
    assert LanguageModel.from_modules(adapted, byte_tokenizer()).weights_loaded


# --- threads ----------------------------------------------------------------------------------------------------------


def at_once(jobs: list[Callable[[], Any]]) -> list[Any]:
    """What the jobs return, all started at the same moment."""
    start = threading.Barrier(len(jobs))

    def run(job: Callable[[], Any]) -> Any:
        start.wait()
        return job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(run, jobs))


@pytest.mark.parametrize("attempt", range(3))
def test_threads_load_once_and_do_not_disturb_each_other(attempt: int, byte_model: str) -> None:
    models = [LanguageModel(byte_model), LanguageModel("tiny")]
    sentiment, fluency = get_scorer("sentiment"), get_scorer("fluency")
    jobs: list[Callable[[], Any]] = [lambda lm=lm: lm.model for lm in models for _ in range(3)]
    jobs += [lambda: sentiment.model.model] * 3 + [lambda: fluency.language_model.model] * 2
    jobs += [lambda: LanguageModel(byte_model).model]
    found = at_once(jobs)
    for group in (found[:3], found[3:6], found[6:9], found[9:11]):
        assert all(model is group[0] for model in group)
    assert all(not p.is_meta for model in found for p in model.parameters())


def test_a_load_that_fails_leaves_the_others_alone(folder: Path, byte_model: str) -> None:
    edit_tensors(folder, lambda tensors: tensors.pop(QUERY))
    broken, sound = LanguageModel(folder), LanguageModel(byte_model)

    def fails() -> bool:
        with pytest.raises(ValueError, match="missing"):
            broken.model  # noqa: B018
        return not broken.weights_loaded

    assert all(at_once([fails, lambda: sound.model is not None] * 3))
    assert not torch.nn.Linear(2, 2).weight.is_meta
    assert LanguageModel(byte_model).model is not None
