"""Turn a GGUF file into safetensors and tokenizer files: ``python -m textgen_env.assets.convert FILE.gguf FOLDER``.

Here: that one conversion, worth doing once: reading a GGUF file takes some thirty times as long as its safetensors.
Not here: loading models for use (``lm/language_model.py``) and fetching (``fetch.py``, which runs this as a process).
Needs the optional library gguf.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["convert_gguf"]


def convert_gguf(source: Path, folder: Path) -> None:
    """Write the model and the tokenizer (with its chat template) of ``source`` into ``folder``.

    Weights are stored as float16: 4-bit GGUF blocks are float16 scales times small integers, and ten bits of mantissa
    keep them to a relative 5e-4; bfloat16 with its seven keeps only 4e-3. The configuration asks for float32 all the
    same, the type that is exact and fast on any CPU, so a plain ``from_pretrained(folder)`` computes in float32.

    Raises:
        ValueError: A weight does not fit float16.
    """
    model = _dequantised(source)
    for name, weight in model.state_dict().items():
        if (largest := weight.abs().max().item()) > torch.finfo(torch.float16).max:
            raise ValueError(f"cannot store {name} of {source.name} as float16: its largest weight is {largest:g}")
    model.half().save_pretrained(folder)
    model.config.dtype = torch.float32
    model.config.save_pretrained(folder)
    _tokenizer(source).save_pretrained(folder)


def _dequantised(source: Path) -> PreTrainedModel:
    """The model in float32, free of the marks of its quantisation, with which it could not be saved."""
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    quantizer: Any = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        quantizer.remove_quantization_config(model)
    return model


def _tokenizer(source: Path) -> PreTrainedTokenizerBase:
    """The tokenizer, with the digit rule that transformers does not read from the file.

    GGUF names the pre-tokeniser in ``tokenizer.ggml.pre``; "smollm" stands for single digits, then GPT-2's rule.
    Without it a run of spaces before a number is split in another way than the model was trained on.
    """
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    name = GGUFReader(source).get_field("tokenizer.ggml.pre")
    if name is not None and name.contents() == "smollm":
        backend = tokenizer.backend_tokenizer
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    return tokenizer


def main() -> None:
    """Read the two paths from the command line and convert."""
    parser = argparse.ArgumentParser(prog="python -m textgen_env.assets.convert", description=main.__doc__)
    parser.add_argument("source", type=Path, help="the GGUF file")
    parser.add_argument("folder", type=Path, help="where the safetensors folder is written")
    arguments = parser.parse_args()
    convert_gguf(arguments.source, arguments.folder)


if __name__ == "__main__":
    main()
