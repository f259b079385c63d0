"""Names and shapes of the weights of the dense decoders that the host knows by heart: Qwen3, Qwen2, Llama.

`Wanted` is made from config.json alone, so that a folder is judged before anything starts. A stage asks the library
itself, whatever the kind of model (essence/models/loading.py).
"""

import re
from collections.abc import Mapping
from typing import Any

from essence.errors import InputError

KNOWN = ("qwen3", "qwen2", "llama")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
BUFFERS = re.compile(r"(.*\.)?rotary_emb\.inv_freq")
"""Tensors that older versions stored, and that every version computes by itself."""
SIZES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "vocab_size"),
)
OPTIONAL_SIZES = ("num_key_value_heads", "head_dim")

Shape = tuple[int, ...]


def wanted_weights(config: Mapping[str, Any], named: object) -> dict[str, Shape] | None:
    """Every weight that a model of this configuration has; None for a kind that is not known by heart.

    InputError, which calls config.json `named`, when a size is no positive integer.
    """
    if config.get("model_type") not in KNOWN:
        return None
    sizes = read_sizes(config, named)
    hidden, vocabulary = sizes["hidden_size"], sizes["vocab_size"]
    wanted: dict[str, Shape] = {EMBEDDING: (vocabulary, hidden), "model.norm.weight": (hidden,)}
    for layer in range(sizes["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        wanted.update({prefix + name: shape for name, shape in _layer(config, sizes).items()})
    if not ties(config):
        wanted[HEAD] = (vocabulary, hidden)
    return wanted


def ties(config: Mapping[str, Any]) -> bool:
    """True when the head is the embedding; as the library has it where config.json says nothing."""
    return bool(config.get("tie_word_embeddings", False))


def read_sizes(config: Mapping[str, Any], named: object) -> dict[str, int]:
    """The sizes of a dense decoder, those that may be left out filled in; InputError when one is no size."""
    for name in SIZES:
        value = config.get(name)
        if value is None and name in OPTIONAL_SIZES:
            continue
        if type(value) is not int or value < 1:
            if name in config:
                raise InputError(f"{named}: {name} is {value!r}, wanted: a positive integer", "download it again")
            raise InputError(f"{named}: {name} is missing: the kit knows dense decoders only", "choose another model")
    heads, kv_heads = config["num_attention_heads"], config.get("num_key_value_heads")
    sizes = {name: config[name] for name in SIZES if name not in OPTIONAL_SIZES}
    # Where config.json leaves them out, the library takes 32 for Qwen3 and Qwen2, and the number of heads for Llama.
    sizes["num_key_value_heads"] = kv_heads or (heads if config["model_type"] == "llama" else 32)
    of_heads = 128 if config["model_type"] == "qwen3" else config["hidden_size"] // heads
    sizes["head_dim"] = config.get("head_dim") or of_heads
    return sizes


def _layer(config: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Shape]:
    kind, hidden, inner = config["model_type"], sizes["hidden_size"], sizes["intermediate_size"]
    width = sizes["head_dim"]
    queries, keys = sizes["num_attention_heads"] * width, sizes["num_key_value_heads"] * width
    shapes: dict[str, Shape] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    if kind == "qwen3":
        shapes |= {"self_attn.q_norm.weight": (width,), "self_attn.k_norm.weight": (width,)}
    biases: list[str] = []
    if kind == "qwen2" or config.get("attention_bias"):
        biases += ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
    if kind != "qwen2" and config.get("attention_bias"):
        biases.append("self_attn.o_proj")
    if kind == "llama" and config.get("mlp_bias"):
        biases += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    return shapes | {f"{name}.bias": shapes[f"{name}.weight"][:1] for name in biases}
