"""Training in bfloat16 over float32 masters: what is computed with is bfloat16, what is summed and kept float32.

A student that is trained whole in bfloat16 has bfloat16 weights, so activations, residual stream and norms are bfloat16
too, as under the released FSDP. Beside each weight stands its float32 master, which the optimiser updates and of which
the weight is a rounding; gradients are added up in float32 over the passes of a step, and cross between ranks once, in
`reduce_dtype`. Under ZeRO, DeepSpeed has the masters as shards (`essence/distill/zero.py`); there the gradients of each
pass cross in `reduce_dtype`, and their owner adds them up in float32. Masters may lie in main memory
(`essence/distill/main_memory.py`).
"""

from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from essence.distill.ranks import Ranks
from essence.settings import TrainSettings
from essence.sizes.memory import BUCKET_ELEMENTS

OneTensor = TypeVar("OneTensor", bound=Tensor)


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


class GradientSums:
    """Float32 sums of what the passes of a step find for bfloat16 weights, on their device."""

    def __init__(self, weights: Iterable[nn.Parameter]) -> None:
        """The gradients of these weights are collected here from now on."""
        self.weights = list(weights)
        self.sums: dict[nn.Parameter, Tensor] = {}
        """Weight -> sum; of the step that is under way."""
        self._found: dict[nn.Parameter, None] = {}  # weights whose gradients are not added yet, in order
        self._elements = 0
        for weight in self.weights:
            weight.register_post_accumulate_grad_hook(self._collect)  # type: ignore[no-untyped-call]

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
        for weight, found in self._to_add():
            kind = more if weight in self.sums else first
            if weight not in self.sums:
                self.sums[weight] = torch.empty_like(found, dtype=torch.float32)
            kind.append((self.sums[weight], found))
            weight.grad = None
        for pairs, put in ((first, torch._foreach_copy_), (more, torch._foreach_add_)):
            if pairs:
                put([total for total, _ in pairs], [found for _, found in pairs])
        self._found, self._elements = {}, 0

    def _to_add(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """What was found since, by weight."""
        for weight in self._found:
            assert weight.grad is not None
            yield weight, weight.grad

    def sum_over(self, ranks: Ranks, dtype: torch.dtype) -> None:
        """Add up the gradients of all ranks, which all come here at the end of a step."""
        if ranks.processes == 1:
            return
        for bucket in buckets([self.sums[weight] for weight in self.weights if weight in self.sums]):
            flat = torch.cat([gradient.flatten() for gradient in bucket]).to(dtype)
            dist.all_reduce(flat)
            parts = torch.split(flat, [gradient.numel() for gradient in bucket])
            for gradient, part in zip(bucket, parts, strict=True):
                gradient.copy_(part.view_as(gradient))


class Masters(GradientSums):
    """Float32 weights of a student that lies whole on this rank, beside it, and the sums of its gradients."""

    def __init__(self, student: nn.Module) -> None:
        """Round the student's weights."""
        exact = lower_weights(student)
        weights = dict(student.named_parameters())
        self.of = {weights[name]: nn.Parameter(master) for name, master in exact.items()}
        super().__init__(self.of)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.of.values())

    def take_gradients(self) -> None:
        """Give the masters the sums of the step."""
        for weight, total in self.sums.items():
            self.of[weight].grad = total
        self.sums.clear()

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters to the weights that are computed with."""
        torch._foreach_copy_([*self.of], [*self.of.values()])


def buckets(tensors: Iterable[OneTensor]) -> Iterator[list[OneTensor]]:
    """Tensors in order, so many elements at a time; a larger one alone."""
    bucket: list[OneTensor] = []
    for tensor in tensors:
        if bucket and sum(one.numel() for one in bucket) + tensor.numel() > BUCKET_ELEMENTS:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
