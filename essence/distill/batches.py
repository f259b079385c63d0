"""From examples to the tensors of one forward pass, and from a model to the states that its labels need."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from essence.data.truncation import Example
from essence.distill.attention import BLIND, let_tokens_be_blind
from essence.errors import InputError
from essence.sizes.step_rows import padded


@dataclass(frozen=True)
class Batch:
    """Some rows as one right-padded matrix, or one after the other in a single sequence (packed).

    No attention mask: attention is causal, so no token sees the padding behind it, and the padding's own states are
    never used. The released code pads on the left instead, which moves a row's positions as a whole; rotary embeddings
    depend on distances only, so both compute the same function. In a packed sequence the positions start at 0 with each
    row, each row sees itself alone, and the padding behind the last row counts as one more row.

    Where a row's first token is a label, the pad that predicts it comes after the row, and is blind: it takes nothing
    from attention (`essence/distill/attention.py`), so its state is the same there as before the row.
    """

    input_ids: Tensor
    """int64, shape (rows, T) with T the longest row rounded up to the padding multiple; packed: shape (1, T)."""
    predictors: Tensor
    """int64, shape (N,): index into the flattened (rows * T) states of the token that each label is predicted from."""
    labels: Tensor
    """int64, shape (N,)."""
    weights: Tensor
    """float32, shape (N,): 1 / (supervised tokens of the label's row)."""
    examples: Sequence[Example]
    """The rows, in the order in which `predictors`, `labels` and `weights` speak of them."""
    row_lengths: tuple[int, ...] | None = None
    """Positions of the rows of a packed sequence, its padding last; None where each line is one row."""
    blind: Tensor | None = None
    """bool, shape of `input_ids`: the pads from which first tokens are predicted; None where there is none."""

    @classmethod
    def of(
        cls, examples: Sequence[Example], pad_to_multiple: int, device: torch.device, packed: bool = False
    ) -> "Batch":
        """Pad and stack, or pack; the order of the examples, and so that of the labels, is kept."""
        lengths = [example.positions for example in examples]
        width = padded(sum(lengths) if packed else max(lengths), pad_to_multiple)
        starts = np.cumsum([0, *lengths[:-1]]) if packed else np.arange(len(examples)) * width
        input_ids = np.zeros(width if packed else len(examples) * width, dtype=np.int64)
        supervised, blind = np.zeros_like(input_ids, dtype=np.bool_), np.zeros_like(input_ids, dtype=np.bool_)
        predictors = np.arange(input_ids.size) - 1
        for start, example in zip(starts, examples, strict=True):
            behind = start + example.input_ids.size
            input_ids[start:behind] = example.input_ids
            supervised[start:behind] = example.supervised
            if example.pad is not None:
                input_ids[behind], blind[behind], predictors[start] = example.pad, True, behind
        places = np.flatnonzero(supervised)
        counts = [int(np.count_nonzero(example.supervised)) for example in examples]
        weights = np.repeat(1.0 / np.maximum(counts, 1), counts).astype(np.float32)
        padding = width - sum(lengths)
        return cls(
            input_ids=torch.from_numpy(input_ids.reshape(-1, width)).to(device),
            predictors=torch.from_numpy(predictors[places]).to(device),
            labels=torch.from_numpy(input_ids[places]).to(device),
            weights=torch.from_numpy(weights).to(device),
            examples=examples,
            row_lengths=(*lengths, *([padding] if padding else [])) if packed else None,
            blind=torch.from_numpy(blind.reshape(-1, width)).to(device) if blind.any() else None,
        )

    def step_weights(self, normalisation: Literal["row", "token"], step: Sequence[Example]) -> Tensor:
        """Share of each label in the loss of an optimiser step that these rows are some of; float32, shape (N,).

        `row`: 1 / (supervised tokens of the label's row * rows of the step). `token`: 1 / (supervised tokens of the
        step).
        """
        if normalisation == "token":
            return torch.ones_like(self.weights) / max(1, sum(int(np.count_nonzero(row.supervised)) for row in step))
        return self.weights / len(step)

    def model_inputs(self) -> dict[str, Tensor | bool | int]:
        """What the decoder of transformers is called with; packed, its attention must be `use_row_attention`'s, and
        with blind tokens `let_tokens_be_blind` must have seen it."""
        inputs: dict[str, Tensor | bool | int] = {"input_ids": self.input_ids, "use_cache": False}
        if self.blind is not None:
            inputs[BLIND] = self.blind
        if self.row_lengths is None:
            return inputs
        device = self.input_ids.device
        positions = np.concatenate([np.arange(length) for length in self.row_lengths])
        starts = np.cumsum([0, *self.row_lengths], dtype=np.int32)
        return {
            **inputs,
            "position_ids": torch.from_numpy(positions)[None].to(device),
            "row_starts": torch.from_numpy(starts).to(device),
            "longest_row": max(self.row_lengths),
        }


def states_at(model: nn.Module, batch: Batch) -> Tensor:
    """Last hidden states at the batch's predictors, shape (N, H): what the head turns into logits of the labels.

    The head is applied to the states that predict a label and to no other, which changes no value: it acts on each
    state by itself. `model` is a causal language model of transformers with a linear head, as
    `essence/models/loading.py` loads it.
    """
    return model_states(model, batch).index_select(0, batch.predictors)


def states_of_rows(model: nn.Module, batch: Batch) -> list[Tensor]:
    """Last hidden states of every token of each row of a batch, shape (L, H) each, in the order of the rows."""
    states, width = model_states(model, batch), batch.input_ids.shape[1]
    positions = itertools.accumulate((row.positions for row in batch.examples), initial=0)
    starts = positions if batch.row_lengths else range(0, len(states), width)
    return [states[start : start + row.input_ids.size] for start, row in zip(starts, batch.examples, strict=False)]


def states_of_pads(model: nn.Module, pads: Sequence[int], device: torch.device) -> Tensor:
    """Last hidden states of tokens that see nothing, as of the pad that a row's first token is predicted from.

    Shape (pads, H). No other token and no position plays a part in them.
    """
    input_ids = torch.tensor([pads], dtype=torch.int64, device=device)
    nothing = torch.zeros(0, dtype=torch.int64, device=device)
    blind = torch.ones_like(input_ids, dtype=torch.bool)
    return model_states(model, Batch(input_ids, nothing, nothing, nothing.float(), (), blind=blind))


def model_states(model: nn.Module, batch: Batch) -> Tensor:
    """Shape (rows * T, H)."""
    if batch.blind is not None:
        let_tokens_be_blind(model)
    states: Tensor = model.base_model(**batch.model_inputs()).last_hidden_state  # type: ignore[operator]
    return states.reshape(-1, states.shape[-1])


def head_weight(model: nn.Module) -> Tensor:
    """Weight of a causal language model's output layer, shape (V, H); the embedding's own where they are tied.

    Raises:
        InputError: the output layer has a bias.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    if getattr(head, "bias", None) is not None:
        raise InputError("the model's output layer has a bias, which the objective leaves out: choose a model without")
    weight: Tensor = head.weight
    return weight
