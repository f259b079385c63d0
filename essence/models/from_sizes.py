"""A model of given sizes with random weights, made where it is to be: no file is read."""

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from essence.sizes.architecture import Architecture

INITIAL_SPREAD = 0.02


def random_model(sizes: Architecture, positions: int, dtype: torch.dtype, device: torch.device, seed: int) -> nn.Module:
    """A decoder of the kind that has these sizes, whose weights are drawn from a seed.

    Args:
        sizes: Qwen3 where queries and keys are normalised, Qwen2 where they have a bias, else Llama.
        positions: the longest sequence that it can read.
        dtype: of its weights.
        device: where they are drawn; another kind of device draws others.
        seed: of the draw.
    """
    torch.manual_seed(seed)
    with torch.device(device):
        made = AutoModelForCausalLM.from_config(config_of(sizes, positions), dtype=dtype, attn_implementation="sdpa")
    model: nn.Module = made
    return model


def config_of(sizes: Architecture, positions: int) -> PreTrainedConfig:
    """The configuration of transformers; no token ends a sequence."""
    kind = Qwen3Config if sizes.qk_norm else Qwen2Config if sizes.qkv_bias else LlamaConfig
    return kind(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.hidden,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        intermediate_size=sizes.intermediate,
        max_position_embeddings=positions,
        initializer_range=INITIAL_SPREAD,
        tie_word_embeddings=sizes.tied,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
