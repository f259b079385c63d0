"""Attention over rows that follow each other in one sequence: each row sees itself alone.

transformers 5 would find such rows itself where `position_ids` start at 0, and build a mask of T x T for SDPA: exact,
but on a GPU no flash kernel takes a mask, and the work grows with the square of the whole sequence instead of the
squares of its rows. The function here is registered with transformers under a name of its own and gives each row its
own causal attention: on a GPU PyTorch's variable-length flash kernel in one call, elsewhere one SDPA call a row, which
is one operation to PyTorch's compiler (`attend_rows`): it could not follow a number of rows that changes.

And tokens that see nothing. The released code pads on the left with a mask, so all that a pad could see is masked, and
SDPA gives such a query zeros: a pad takes nothing from any attention, and its state depends on no position and on no
other token, be it a pad (run under its torch 2.6.0 and transformers 4.53.2, and under those of today). Here the same
zeros are put in place of what attention found for such tokens, whatever the implementation of attention is.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from essence.errors import InputError

ROW_ATTENTION = "essence_rows"
VARLEN_DTYPES = (torch.bfloat16, torch.float16)
BLIND = "blind_tokens"
"""Argument of a model that `let_tokens_be_blind` has seen: bool, shape (batch, T), the tokens that see nothing."""
OUTPUT_PROJECTION = "o_proj"
"""Name, in an attention layer, of the matrix that what attention found goes through."""


def use_row_attention(model: nn.Module) -> bool:
    """Let a model of transformers read packed rows; False where its attention cannot be exchanged.

    Without `row_starts` the model then computes what it does under SDPA without a mask. Sliding windows are not known.
    """
    config: Any = model.config
    layer_types = getattr(config, "layer_types", None) or ["full_attention"]
    if not getattr(model, "_supports_attention_backend", False) or set(layer_types) != {"full_attention"}:
        return False
    AttentionInterface.register(ROW_ATTENTION, row_attention)
    set_implementation: Any = model.set_attn_implementation
    set_implementation(ROW_ATTENTION)
    return True


def row_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    row_starts: Tensor | None = None,
    longest_row: int | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **more: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each row, in the signature that transformers calls.

    Args:
        module: the attention layer.
        query: shape (batch, heads, T, size of a head).
        key: shape (batch, heads of keys and values, T, size of a head).
        value: as `key`.
        attention_mask: None here, as transformers makes no mask for an attention that it does not know.
        row_starts: int32, shape (rows + 1,), on the device: where the rows start in the one sequence, which they fill,
            and T; None = every sequence is one row.
        longest_row: its tokens, for the kernel; with `row_starts`.
        scaling: factor of the scores.
        dropout: must be 0.
        more: what transformers hands to every attention; SDPA looks at some of it.

    Returns:
        Shape (batch, T, heads, size of a head); no weights.
    """
    if row_starts is None or longest_row is None:
        states: Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **more)[0]
        return states, None
    if dropout:
        raise InputError(f"dropout of attention is {dropout}, and packed rows are read without: set it to 0")
    query, key, value = as_computed(query, key, value)
    if query.is_cuda and query.dtype in VARLEN_DTYPES:
        return _flash_rows(query, key, value, row_starts, longest_row, scaling), None
    if torch.compiler.is_compiling():
        seen: Tensor = attend_rows(query, key, value, row_starts, scaling)
        return seen, None
    return _row_by_row(query, key, value, row_starts, scaling), None


def _row_by_row(query: Tensor, key: Tensor, value: Tensor, row_starts: Tensor, scaling: float | None) -> Tensor:
    """One call of SDPA for each row; shapes as in `row_attention`."""
    lengths, grouped = row_starts.diff().tolist(), query.shape[1] != key.shape[1]
    queries, keys, values = (torch.split(states, lengths, dim=2) for states in (query, key, value))
    attend = nn.functional.scaled_dot_product_attention
    # A row of one token sees itself, with and without a mask.
    seen = [
        attend(one, of_one, its_own, is_causal=one.shape[2] > 1, scale=scaling, enable_gqa=grouped)
        for one, of_one, its_own in zip(queries, keys, values, strict=True)
    ]
    return torch.cat([one.transpose(1, 2) for one in seen], dim=1)


@torch.library.custom_op("essence::attend_rows", mutates_args=())
def attend_rows(query: Tensor, key: Tensor, value: Tensor, row_starts: Tensor, scaling: float | None = None) -> Tensor:
    """`_row_by_row` as one operation, whose backward pass computes it again."""
    return _row_by_row(query, key, value, row_starts, scaling).contiguous()


@attend_rows.register_fake
def _(query: Tensor, _key: Tensor, value: Tensor, *_: object) -> Tensor:
    batch, heads, tokens = query.shape[:3]
    return query.new_empty(batch, tokens, heads, value.shape[3])


@torch.library.custom_op("essence::attend_rows_backward", mutates_args=())
def attend_rows_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, row_starts: Tensor, scaling: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `attend_rows` in query, key and value."""
    # Inside an operation autograd keeps no record; `vjp` keeps its own.
    attend = functools.partial(_row_by_row, row_starts=row_starts, scaling=scaling)
    pull: Any = torch.func.vjp(attend, query, key, value)[1]
    of_query, of_key, of_value = (one.contiguous() for one in pull(gradient))
    return of_query, of_key, of_value


@attend_rows_backward.register_fake
def _(_gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    of_query, of_key, of_value = (states.new_empty(states.shape) for states in (query, key, value))
    return of_query, of_key, of_value


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001 - torch names it
    *states, ctx.scaling = inputs
    ctx.save_for_backward(*states)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return (*attend_rows_backward(gradient, *ctx.saved_tensors, ctx.scaling), None, None)


attend_rows.register_autograd(_backward, setup_context=_keep)


def as_computed(*states: Tensor) -> tuple[Tensor, ...]:
    """In the dtype that autocast computes attention in, where it is on, as it would do for SDPA.

    With float32 weights queries and keys leave their norms in float32, for which the kernel has no form.
    """
    kind = states[0].device.type
    if not torch.is_autocast_enabled(kind):
        return states
    return tuple(one.to(torch.get_autocast_dtype(kind)) for one in states)


def _flash_rows(
    query: Tensor, key: Tensor, value: Tensor, row_starts: Tensor, longest: int, scaling: float | None
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    grouped = query.shape[1] != key.shape[1]
    q, k, v = (states.transpose(1, 2).squeeze(0) for states in (query, key, value))
    seen = varlen_attn(
        q,
        k,
        v,
        row_starts,
        row_starts,
        longest,
        longest,
        scale=scaling,
        window_size=(-1, 0),
        enable_gqa=grouped,
    )
    assert isinstance(seen, Tensor)
    return seen.unsqueeze(0)


def let_tokens_be_blind(model: nn.Module) -> None:
    """Let a model of transformers take the argument `BLIND`, whatever its attention is; once a model is enough.

    Raises:
        InputError: its attention layers are not built as those of Qwen and Llama.
    """
    layers = [module for module in model.modules() if isinstance(getattr(module, OUTPUT_PROJECTION, None), nn.Module)]
    if not layers:
        raise InputError(
            f"{type(model).__name__} has no attention layer with {OUTPUT_PROJECTION}, which protocol 'released' needs "
            "to predict first tokens from pads: use a model built like Qwen or Llama, or protocol 'corrected'"
        )
    for layer in layers:
        if not hasattr(layer, BLIND):
            setattr(layer, BLIND, _Blindfold(layer))


class _Blindfold:
    """Puts zeros in place of what one layer's attention found for blind tokens.

    The layer is looked at in each call, so the recomputation of activation checkpointing does the same.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.blind: Tensor | None = None
        layer.register_forward_pre_hook(self.look, with_kwargs=True)
        getattr(layer, OUTPUT_PROJECTION).register_forward_pre_hook(self.cover)

    def look(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        self.blind = kwargs.pop(BLIND, None)
        return args, kwargs

    def cover(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        found, *more = args
        return args if self.blind is None else (found.masked_fill(self.blind.unsqueeze(-1), 0.0), *more)
