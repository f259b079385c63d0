"""Training in bfloat16 over float32 masters: what is computed with is bfloat16, what is summed and kept float32.

A student that is trained whole in bfloat16 has bfloat16 weights, so activations, residual stream and norms are bfloat16
too, as under the released FSDP. Beside each weight stands its float32 master, which the optimiser updates and of which
the weight is a rounding; gradients are added up in float32 over the passes of a step, and cross between ranks once, in
`reduce_dtype`. Under ZeRO, DeepSpeed has the masters as shards (`essence/distill/zero.py`); there the gradients of each
pass cross in `reduce_dtype`, and their owner adds them up in float32.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from essence.distill.ranks import Ranks
from essence.settings import TrainSettings

BUCKET_ELEMENTS = 1 << 25
"""Gradients that are added up, or cross between ranks, at a time."""


def lowers_weights(settings: TrainSettings) -> bool:
    """Whether the student's own weights become bfloat16; adapters stay float32, beside frozen ones, under autocast."""
    return settings.compute_dtype == "bfloat16" and settings.lora.rank == 0


def lower_weights(student: nn.Module) -> dict[str, Tensor]:
    """Round the weights that are trained to bfloat16 in place; what they were, float32, by name."""
    exact: dict[str, Tensor] = {}
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            exact[name] = parameter.detach()
            parameter.data = exact[name].to(torch.bfloat16)
    return exact


def without_rounding(parameter: nn.Parameter, exact: Tensor) -> bool:
    """Whether a weight's rounding is the weight itself, as of every model that was published in bfloat16."""
    return torch.equal(parameter.detach().to(exact.dtype), exact)


class Masters:
    """Float32 weights and sums of gradients of a student that lies whole on this rank."""

    def __init__(self, student: nn.Module) -> None:
        """Round the student's weights; its gradients are collected here from now on."""
        exact = lower_weights(student)
        weights = dict(student.named_parameters())
        self.of = {weights[name]: nn.Parameter(master) for name, master in exact.items()}
        self._found: dict[nn.Parameter, None] = {}  # weights whose gradients are not added yet, in order
        self._elements = 0
        for weight in self.of:
            weight.register_post_accumulate_grad_hook(self._collect)  # type: ignore[no-untyped-call]

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.of.values())

    def _collect(self, weight: Tensor) -> None:
        """Take note of what one backward pass found for a weight; add what is together where it is enough."""
        assert isinstance(weight, nn.Parameter) and weight.grad is not None
        if weight not in self._found:
            self._found[weight] = None
            self._elements += weight.numel()
        if self._elements >= BUCKET_ELEMENTS:
            self.add_up()

    def add_up(self) -> None:
        """Add the gradients of this rank that are not in the sums yet, all of them in few kernels."""
        first: list[tuple[Tensor, Tensor]] = []
        more: list[tuple[Tensor, Tensor]] = []
        for weight in self._found:
            master, found = self.of[weight], weight.grad
            assert found is not None
            kind = first if master.grad is None else more
            if master.grad is None:
                master.grad = torch.empty_like(master)
            kind.append((master.grad, found))
            weight.grad = None
        for pairs, put in ((first, torch._foreach_copy_), (more, torch._foreach_add_)):
            if pairs:
                put([total for total, _ in pairs], [found for _, found in pairs])
        self._found, self._elements = {}, 0

    def sum_over(self, ranks: Ranks, dtype: torch.dtype) -> None:
        """Add up the gradients of all ranks, which all come here at the end of a step."""
        if ranks.processes == 1:
            return
        for bucket in _buckets([master.grad for master in self.of.values() if master.grad is not None]):
            flat = torch.cat([gradient.flatten() for gradient in bucket]).to(dtype)
            dist.all_reduce(flat)
            parts = torch.split(flat, [gradient.numel() for gradient in bucket])
            for gradient, part in zip(bucket, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters to the weights that are computed with."""
        torch._foreach_copy_([*self.of], [*self.of.values()])


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients in order, so many elements at a time; a larger one alone."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        if bucket and sum(one.numel() for one in bucket) + gradient.numel() > BUCKET_ELEMENTS:
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket
