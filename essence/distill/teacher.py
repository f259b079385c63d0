"""What a student is taught by: the teacher's last hidden states where labels are predicted, and the head on them."""

from typing import Protocol

import torch
from torch import Tensor, nn

from essence.distill.attention import use_row_attention
from essence.distill.batches import Batch, head_weight, states_at
from essence.distill.ranks import Ranks
from essence.distill.top_k import TopK
from essence.distill.zero import shard_frozen
from essence.settings import TeacherPlacement


class TeacherStates(Protocol):
    """A teacher as the objective sees it, whether it is computed here or was computed before."""

    @property
    def head(self) -> Tensor | None:
        """Weight of the output layer, shape (V, H); without gradient. None where distributions are stored."""

    def states(self, batch: Batch) -> Tensor | TopK:
        """Last hidden states at `batch.predictors`, in their order, shape (N, H), or distributions; no gradient."""

    def read_packed_rows(self) -> bool:
        """Get ready for packed batches; False where that is not possible."""


class LiveTeacher:
    """A frozen model that reads every batch."""

    def __init__(
        self, model: nn.Module, compute_dtype: torch.dtype = torch.float32, head: Tensor | None = None
    ) -> None:
        """Freeze `model`; float32 computes in the dtype of its weights, bfloat16 under autocast.

        `head` is given where the model's own does not lie whole on the device.
        """
        self.model = model.eval().requires_grad_(False)
        self.compute_dtype = compute_dtype
        self._head = head_weight(model).detach() if head is None else head

    @property
    def head(self) -> Tensor:
        return self._head

    def states(self, batch: Batch) -> Tensor:
        lower = self.compute_dtype != torch.float32
        # Not inference mode, whose tensors a backward pass may not keep.
        with torch.no_grad(), torch.autocast(batch.input_ids.device.type, self.compute_dtype, enabled=lower):
            return states_at(self.model, batch)

    def read_packed_rows(self) -> bool:
        return use_row_attention(self.model)


def place_teacher(
    model: nn.Module, placement: TeacherPlacement, compute_dtype: torch.dtype, ranks: Ranks, device: torch.device
) -> LiveTeacher:
    """Put a teacher where the settings say, from main memory; its head lies whole on every device in any case."""
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
