"""From examples to the tensors of one forward pass, and from a model to the logits that its labels need."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from essence.distill.sequence import Example


@dataclass(frozen=True)
class Batch:
    """Some rows as one right-padded matrix.

    No attention mask: attention is causal, so no token sees the padding behind it, and the padding's own states are
    never used. The released code pads on the left instead, which moves a row's positions as a whole; rotary embeddings
    depend on distances only, so both compute the same function.
    """

    input_ids: Tensor
    """int64, shape (rows, T); T is the longest row rounded up to the padding multiple."""
    predictors: Tensor
    """int64, shape (N,): index into the flattened (rows * T) states of the token before each label."""
    labels: Tensor
    """int64, shape (N,)."""
    weights: Tensor
    """float32, shape (N,): 1 / (supervised tokens of the label's row)."""

    @classmethod
    def of(cls, examples: Sequence[Example], pad_to_multiple: int, device: torch.device) -> "Batch":
        """Pad and stack; the order of the examples is kept."""
        longest = max(example.input_ids.size for example in examples)
        width = -(-longest // pad_to_multiple) * pad_to_multiple
        input_ids = np.zeros((len(examples), width), dtype=np.int64)
        supervised = np.zeros((len(examples), width), dtype=np.bool_)
        for line, example in enumerate(examples):
            input_ids[line, : example.input_ids.size] = example.input_ids
            supervised[line, : example.supervised.size] = example.supervised
        places = np.flatnonzero(supervised)
        counts = supervised.sum(axis=1)
        weights = np.repeat(1.0 / np.maximum(counts, 1), counts).astype(np.float32)
        return cls(
            input_ids=torch.from_numpy(input_ids).to(device),
            predictors=torch.from_numpy(places - 1).to(device),
            labels=torch.from_numpy(input_ids.reshape(-1)[places]).to(device),
            weights=torch.from_numpy(weights).to(device),
        )


def logits_at(model: nn.Module, batch: Batch) -> Tensor:
    """Logits that predict the batch's labels, shape (N, vocabulary).

    The head is applied to the states that predict a label and to no other, which changes no value: it acts on each
    state by itself. `model` is a causal language model of transformers with a linear head, as
    `essence/distill/models.py` loads it.
    """
    states = model.base_model(input_ids=batch.input_ids, use_cache=False).last_hidden_state  # type: ignore[operator]
    predicting = states.reshape(-1, states.shape[-1]).index_select(0, batch.predictors)
    logits: Tensor = model.get_output_embeddings()(predicting)  # type: ignore[operator]
    return logits
