"""Small random models of many architectures, those that decode in ways of their own among them, and what they say.

The oracle is `own_output`: one unpadded text, no cache, and a copy of the model that has read nothing before.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import numpy as np
import torch
import transformers as hf
from tiny_models import SMALL, VOCAB

from textgen_env.lm.token_batch import TokenBatch

LONGEST = 24  # tokens of a text

PLAIN: dict[str, Any] = {name: value for name, value in SMALL.items() if name != "num_key_value_heads"}
SIZES: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.3}
MAMBA: dict[str, Any] = SIZES | {"state_size": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BART: dict[str, Any] = {
    **{"vocab_size": 64, "d_model": 32, "max_position_embeddings": 64, "init_std": 0.3, "pad_token_id": 0},
    **{"encoder_layers": 1, "encoder_attention_heads": 4, "encoder_ffn_dim": 48},
    **{"decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48},
}
SWITCH = 9  # tokens up to which LongRoPE is short
LONGROPE: dict[str, Any] = {
    **{"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": SWITCH},
    **{"short_factor": [1.0] * 4, "long_factor": [3.0, 5.0, 7.0, 9.0]},
}
PHI3: dict[str, Any] = SMALL | {"rope_parameters": LONGROPE, "original_max_position_embeddings": SWITCH}
PHIMOE: dict[str, Any] = {
    **PHI3,
    **{"rope_parameters": LONGROPE | {"short_mscale": 1.1, "long_mscale": 1.3}},
    **{"num_local_experts": 2, "num_experts_per_tok": 1},
}
DYNAMIC: dict[str, Any] = SMALL | {
    **{"max_position_embeddings": 8},
    **{"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}},
}
GEMMA3: dict[str, Any] = SMALL | {
    **{"head_dim": 8, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    **{"query_pre_attn_scalar": 8},
}
SHORT_ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e4}
DYNAMIC_BY_LAYER: dict[str, Any] = {
    "rope_parameters": {"sliding_attention": SHORT_ROPE, "full_attention": DYNAMIC["rope_parameters"]},
    "max_position_embeddings": 8,
}
LONGROPE_BY_LAYER: dict[str, Any] = {"rope_parameters": {"sliding_attention": SHORT_ROPE, "full_attention": LONGROPE}}
SSM: dict[str, Any] = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8}

# name: (class, configuration's class, its arguments, how prefixes are to be read)
KINDS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "mamba": ("MambaForCausalLM", "MambaConfig", MAMBA, "whole"),
    "mamba2": (
        *("Mamba2ForCausalLM", "Mamba2Config"),
        MAMBA | {"num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8},
        "whole",
    ),
    "rwkv": ("RwkvForCausalLM", "RwkvConfig", SIZES | {"attention_hidden_size": 32, "context_length": 64}, "whole"),
    "recurrentgemma": (
        *("RecurrentGemmaForCausalLM", "RecurrentGemmaConfig"),
        PLAIN | {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 6},
        "whole",
    ),
    "bamba": ("BambaForCausalLM", "BambaConfig", SMALL | SSM | {"attn_layer_indices": [1]}, "library"),
    "bart": ("BartForCausalLM", "BartConfig", BART, "whole"),
    "marian": ("MarianForCausalLM", "MarianConfig", BART | {"decoder_vocab_size": 64}, "whole"),
    "roberta": ("RobertaForCausalLM", "RobertaConfig", PLAIN | {"is_decoder": True}, "whole"),
    "bert": ("BertLMHeadModel", "BertConfig", PLAIN | {"is_decoder": True}, "library"),
    "electra": ("ElectraForCausalLM", "ElectraConfig", PLAIN | {"is_decoder": True, "embedding_size": 16}, "library"),
    "phi3-longrope": ("Phi3ForCausalLM", "Phi3Config", PHI3, "slots"),
    "phi3-longrope-window": ("Phi3ForCausalLM", "Phi3Config", PHI3 | {"sliding_window": 5}, "slots"),
    "phimoe-longrope": ("PhimoeForCausalLM", "PhimoeConfig", PHIMOE, "slots"),
    "llama-longrope": ("LlamaForCausalLM", "LlamaConfig", SMALL | {"rope_parameters": LONGROPE}, "slots"),
    "llama-dynamic": ("LlamaForCausalLM", "LlamaConfig", DYNAMIC, "slots"),
    "stablelm-dynamic": (
        "StableLmForCausalLM",
        "StableLmConfig",
        DYNAMIC | {"head_dim": 8, "partial_rotary_factor": 0.5},
        "library",
    ),
    "gemma3-dynamic": ("Gemma3ForCausalLM", "Gemma3TextConfig", GEMMA3 | DYNAMIC_BY_LAYER, "slots"),
    "gemma3-longrope": ("Gemma3ForCausalLM", "Gemma3TextConfig", GEMMA3 | LONGROPE_BY_LAYER, "slots"),
    "mistral-window": ("MistralForCausalLM", "MistralConfig", SMALL | {"sliding_window": 5}, "slots"),
    "llama4-chunks": (
        *("Llama4ForCausalLM", "Llama4TextConfig"),
        SMALL | {"head_dim": 8, "num_local_experts": 2, "attention_chunk_size": 8, "intermediate_size_mlp": 48},
        "library",
    ),
    "falcon-alibi": (
        *("FalconForCausalLM", "FalconConfig"),
        SIZES | {"num_attention_heads": 4, "alibi": True},
        "library",
    ),
    "bloom": ("BloomForCausalLM", "BloomConfig", SIZES | {"n_head": 4}, "library"),
    "gpt-neo": (
        *("GPTNeoForCausalLM", "GPTNeoConfig"),
        {"vocab_size": 64, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "initializer_range": 0.3}
        | {"attention_types": [[["global", "local"], 1]], "window_size": 5, "max_position_embeddings": 64},
        "library",
    ),
    "opt": (
        *("OPTForCausalLM", "OPTConfig"),
        PLAIN | {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.3},
        "slots",
    ),
    "xlnet": (
        *("XLNetLMHeadModel", "XLNetConfig"),
        SIZES | {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48, "attn_type": "uni"},
        "whole",
    ),
}


def build(name: str, **other: Any) -> Any:
    """The model of this name with some settings changed, always with the same random weights."""
    kind, config, settings, _ = KINDS[name]
    return random_of(kind, config, **(settings | other))


def random_of(kind: str, config: str, **settings: Any) -> Any:
    """A random model of a class of transformers, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(hf, kind)(getattr(hf, config)(**copy.deepcopy(settings))).eval()


def own_output(model: Any, text: Any) -> Any:
    """The plain forward of one text by a model that has read nothing before; with gradient where there is any."""
    unread = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    takes_cache = {"use_cache", "kwargs"} & set(inspect.signature(unread.forward).parameters)
    return unread(torch.as_tensor(np.asarray(text)).unsqueeze(0), **({"use_cache": False} if takes_cache else {}))


def own_log_probs(model: Any, text: Any) -> torch.Tensor:
    """(V,) log π of the token after a text."""
    return own_output(model, text).logits[0, -1, :VOCAB].float().log_softmax(-1)


def batch() -> TokenBatch:
    """Texts on both sides of every switch; one response has a stretch that the agent did not write."""
    ids = torch.randint(3, VOCAB, (4, LONGEST), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([12, SWITCH, LONGEST, 5])
    attention = (torch.arange(LONGEST) < lengths[:, None]).long()
    response = attention * (torch.arange(LONGEST) >= torch.tensor([3, 2, 4, 4])[:, None]).long()
    response[2, 10:18] = 0
    return TokenBatch(ids * attention, attention, response)
