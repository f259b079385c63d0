"""A cached teacher: look up the states that `essence/stages/teacher.py` has stored."""

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from essence.distill.attention import use_row_attention
from essence.distill.batches import Batch, head_weight, states_at
from essence.distill.ranks import Ranks
from essence.distill.stored_states import HEAD, MODEL, ROWS, StoredPads, StoredRows
from essence.distill.zero import shard_frozen
from essence.settings import TeacherPlacement


class CachedTeacher:
    """Looks up the states of the tokens that predict a label. Exact: the states of a row's first tokens are the same
    whatever follows them, so only rounding differs from a live teacher, which reads rows in other batches."""

    def __init__(self, output: Path, device: torch.device) -> None:
        """Map a teacher stage's output; the head alone is loaded.

        Raises:
            InputError: a file is missing or damaged.
        """
        self.rows, self.pads = StoredRows(output / ROWS), StoredPads(output)
        self._device = device
        self._head: Tensor = load_file(output / MODEL / HEAD)["head"].to(device)

    @property
    def head(self) -> Tensor:
        return self._head

    def states(self, batch: Batch) -> Tensor:
        return _at_predictors(self.rows, self.pads, batch).to(self._device)

    def read_packed_rows(self) -> bool:
        """Rows are looked up one by one, however they are packed."""
        return True


def _at_predictors(rows: StoredRows, pads: StoredPads, batch: Batch) -> Tensor:
    """The states that are stored for the tokens that predict a label, in the order of the labels."""
    parts = []
    for example in batch.examples:
        predictors = np.flatnonzero(example.supervised) - 1
        if example.pad is not None:
            parts.append(pads.states(example.pad))
            predictors = predictors[1:]
        if not predictors.size:
            continue
        first = int(predictors[0])
        kept = rows.states(example, first, int(predictors[-1]) + 1)
        parts.append(kept[torch.from_numpy(predictors - first)])
    return torch.cat(parts)


class TeacherStates(Protocol):
    """A teacher as the objective sees it, whether it is computed here or was computed before."""

    @property
    def head(self) -> Tensor:
        """Weight of the output layer, shape (V, H); without gradient."""

    def states(self, batch: Batch) -> Tensor:
        """Last hidden states at `batch.predictors`, in their order, shape (N, H); without gradient."""

    def read_packed_rows(self) -> bool:
        """Get ready for packed batches; False where that is not possible."""


class LiveTeacher:
    """A frozen model that reads every batch."""

    def __init__(
        self, model: nn.Module, compute_dtype: torch.dtype = torch.float32, head: Tensor | None = None
    ) -> None:
        """Freeze `model`, which computes in the dtype of its weights, or where that is another under autocast.

        `head` is given where the model's own is not whole on the device.
        """
        self.model = model.eval().requires_grad_(False)
        self.compute_dtype = compute_dtype
        self._head = head_weight(model).detach() if head is None else head

    @property
    def head(self) -> Tensor:
        return self._head

    @property
    def autocast(self) -> bool:
        return self.compute_dtype != torch.float32 and self._head.dtype != self.compute_dtype

    def states(self, batch: Batch) -> Tensor:
        # Not inference mode, whose tensors a backward pass may not keep.
        with torch.no_grad(), torch.autocast(batch.input_ids.device.type, self.compute_dtype, enabled=self.autocast):
            return states_at(self.model, batch)

    def read_packed_rows(self) -> bool:
        return use_row_attention(self.model)


def place_teacher(
    model: nn.Module, placement: TeacherPlacement, compute_dtype: torch.dtype, ranks: Ranks, device: torch.device
) -> LiveTeacher:
    """Put a teacher where the settings say, from main memory; its head is whole on every device in any case."""
    model.requires_grad_(False)
    if placement == "replicated":
        return LiveTeacher(model.to(device), compute_dtype)
    head = head_weight(model).detach().clone().to(device)
    if placement == "sharded":
        shard_frozen(model, next(model.parameters()).dtype, ranks)
    else:
        from accelerate import cpu_offload  # slow to import

        cpu_offload(model, device)
    return LiveTeacher(model, compute_dtype, head)
