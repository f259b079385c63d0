"""What has to be right before a training is worth its time, each told in one sentence.

Arithmetic is tried on two small models on the device that trains, in the dtype and the form of the loss that the
settings name. What has a bound is compared with arithmetic that is nobody's fast form: the loss in float64, rows one by
one, one process, float32.
"""

import contextlib
import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import psutil
import torch
from torch import Tensor

from essence.distill.compiled_layers import CheckedLayers
from essence.distill.devices import COMPUTE_DTYPES, memory_bytes
from essence.distill.module import objective_from_states
from essence.distill.preflight import DeviceRoom, explained_end_of_memory
from essence.distill.proof_machine import seconds_of
from essence.distill.proof_steps import SEED, alone, as_pair
from essence.files import GIB
from essence.memory_limit import memory_limit_bytes
from essence.settings import LossResources, ObjectiveSettings, Resources
from essence.settings.proving import ProveTrainingSettings
from essence.sizes.architecture import Architecture
from essence.sizes.host import (
    CHECKPOINT_BYTES,
    USABLE_MAIN_SHARE,
    MachineLoad,
    main_memory_bytes,
    trained_parameters,
)
from essence.sizes.memory import device_bytes, load_of
from essence.sizes.recomputation import choose_for_full_steps

LABELS = 96
"""Small, and such that chunks and what is left over occur."""
BOUNDS = {"float32": (1e-5, 1e-4), "bfloat16": (1e-2, 3e-2)}
"""Largest relative difference from float64: of the loss, and of a gradient in the norm of the whole tensor. Heads in
bfloat16 have logits of eight bits, whoever computes them."""
MOVED_BOUNDS = {"float32": 1e-3, "bfloat16": 0.25}
"""Of how weights moved (`moved_apart`). On a CPU rounding in another order gave 1e-5 and 0.06, bfloat16 beside float32
0.09, moments that a checkpoint had forgotten 0.45, packed rows that see each other 1.1."""
AGAIN_BOUND = {"cpu": 0.0, "cuda": 1e-2}
"""Of losses and gradient norms of the same steps once more: a GPU may sum in another order."""
DISK_SHARE = 0.25
"""Of the time between two checkpoints: the most that writing one may take."""
LEAST_BETWEEN_S = 60.0
"""Taken for the time between two checkpoints where less is asked for, 0 (one after every step) included."""


class Finding(NamedTuple):
    """One check as it came out."""

    name: str
    passed: bool
    sentence: str


def largest(values: Iterable[float]) -> float:
    """NaN where one of them is: Python's max goes by their order then."""
    found = list(values)
    return math.nan if any(map(math.isnan, found)) else max(found)


def bounded(name: str, what: str, found: float, most: float, cure: str) -> Finding:
    """A difference that is at most so large; NaN is not."""
    passed = found <= most
    told = f"{what} differ by {found:.1e}, at most {most:.0e} is right"
    return Finding(name, passed, told if passed else f"{told}: {cure}")


class Went(NamedTuple):
    """How a few steps went: their losses, with or without the gradients' norms, and what they trained."""

    numbers: list[float]
    before: list[Tensor]
    after: list[Tensor]


class Distance(NamedTuple):
    """Between two trainings, or the most that it may be."""

    numbers: float
    """Largest relative difference of two losses or norms."""
    moved: float
    """As of `moved_apart`."""

    @classmethod
    def between(cls, found: Went, expected: Went) -> "Distance":
        return cls(numbers_apart(found.numbers, expected.numbers), moved_apart(found, expected))

    @classmethod
    def again(cls, dtype: str, device: torch.device) -> "Distance":
        """The most between a training and the same one again."""
        return cls(AGAIN_BOUND[device.type], 0.0 if device.type == "cpu" else MOVED_BOUNDS[dtype])


def compared(name: str, what: str, pair: tuple[Went, Went], most: Distance, cure: str) -> Finding:
    """Two short trainings beside each other, the second as it is to be."""
    found = Distance.between(*pair)
    passed = found.numbers <= most.numbers and found.moved <= most.moved
    told = f"{what} differ by {found.numbers:.1e} in losses, at most {most.numbers:.3g} is right, and by "
    told += f"{found.moved:.1e} in how weights moved, at most {most.moved:.3g}"
    return Finding(name, passed, told if passed else f"{told}: {cure}")


def numbers_apart(found: Sequence[float], expected: Sequence[float]) -> float:
    return largest(abs(one - other) / abs(other) for one, other in zip(found, expected, strict=True))


def moved_apart(found: Went, expected: Went) -> float:
    """Distance of the trained weights over how far they were to go, in the norm of all of them together.

    Against the weights themselves, a few steps that did nothing would be as near.
    """
    pairs = zip(found.after, expected.after, expected.before, strict=True)
    squares = [(norm(one - other), norm(other - first)) for one, other, first in pairs]
    missed, way = (math.hypot(*sizes) for sizes in zip(*squares, strict=True))
    return missed / way if way else math.nan


def norm(tensor: Tensor) -> float:
    """Of the whole tensor, summed in float64."""
    return float(tensor.double().norm())


explained_measuring = functools.partial(
    explained_end_of_memory,
    "a device ran out of memory while it was measured",
    "end what else runs on it (nvidia-smi lists it); where nothing does, the memory rule is too low: report it",
)
"""For all that a proof does on a device."""


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Products of float32 as they are: a GPU is let round their factors to ten bits by `devices.prepare_device`, and
    the bounds for float32 are not those of such products."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def loss_finding(asked: ProveTrainingSettings, resources: Resources, device: torch.device) -> Finding:
    """Loss and gradients of the form that trains, beside the plain one in float64 on the same numbers."""
    try:
        return _loss_finding(asked, resources, device)
    except torch.OutOfMemoryError:
        there = f"{memory_bytes(device) / GIB:.3g} GiB of this device"
        told = f"the {resources.loss.form} loss and the plain one in float64, with whole heads, do not fit the {there}"
        return Finding("loss", False, f"{told}, so it is not checked: free the device's memory, or take a larger one")


@exact_float32()
def _loss_finding(asked: ProveTrainingSettings, resources: Resources, device: torch.device) -> Finding:
    tensors = _random_states(asked, LABELS, device)
    labels = torch.arange(LABELS, device=device) * 7919 % asked.student_sizes.vocabulary
    chunks = {"chunk_rows": LABELS // 4 + 1, "gradient_rows": LABELS // 2}
    fast = _objective(tensors, labels, asked.objective, resources.loss.model_copy(update=chunks))
    plain = resources.loss.model_copy(update={"form": "plain"})
    exact = _objective([one.double() for one in tensors], labels, asked.objective, plain)
    distances = [apart(one, other) for one, other in zip(fast, exact, strict=True)]
    of_loss, of_gradient = BOUNDS[asked.compute_dtype]
    passed = distances[0] <= of_loss and all(one <= of_gradient for one in distances[1:])
    form = f"compiled {resources.loss.form}" if resources.loss.compiled else resources.loss.form
    found = ", ".join(f"{one:.1e}" for one in distances)
    told = f"the {form} loss and its gradients differ from float64 by {found}"
    told += f" (at most {of_loss:.0e}, of a gradient {of_gradient:.0e})"
    cure = ': set form = "plain" in [resources.loss], and report the versions of this machine'
    return Finding("loss", passed, told if passed else told + cure)


def _objective(
    tensors: Sequence[Tensor], labels: Tensor, settings: ObjectiveSettings, loss: LossResources
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, and the gradients of the student's states and head."""
    states, head = (one.detach().clone().requires_grad_() for one in tensors[:2])
    weights = torch.full(labels.shape, 1.0 / labels.numel(), device=labels.device)
    taught, teacher_head = tensors[2:]
    losses = objective_from_states(states, head, taught, teacher_head, labels, weights, settings, loss)
    losses.loss.backward()  # type: ignore[no-untyped-call]
    assert states.grad is not None and head.grad is not None
    return losses.loss.detach(), states.grad, head.grad


def layers_finding(layers: CheckedLayers) -> Finding:
    """Whether the decoder layers of the steps that are timed were compiled, and are right."""
    if layers.fell_back:
        return Finding("layers", False, f"{'; '.join(layers.fell_back)}: set compile_layers = false in [training]")
    found = ", ".join(f"{one.compiled_error:.1e} ({one.model}, at most {one.bound:.1e})" for one in layers.parity)
    return Finding("layers", True, f"compiled layers differ from exact ones by {found}")


def loss_seconds(asked: ProveTrainingSettings, resources: Resources, device: torch.device) -> float:
    """Seconds a label that heads and loss take, forward and backward, at the shortest length that is timed."""
    count, tensors = min(asked.lengths), _random_states(asked, min(asked.lengths), device)
    labels = torch.zeros(count, dtype=torch.int64, device=device)
    return seconds_of(lambda: _objective(tensors, labels, asked.objective, resources.loss), device) / count


def _random_states(asked: ProveTrainingSettings, count: int, device: torch.device) -> tuple[Tensor, ...]:
    """States and head of the student, then of the teacher, in the dtype of the computation; logits near 1."""
    draws = torch.Generator(device).manual_seed(SEED)

    def drawn(rows: int, columns: int) -> Tensor:
        one = torch.randn(rows, columns, generator=draws, device=device)
        return one.mul_(columns**-0.25).to(COMPUTE_DTYPES[asked.compute_dtype])

    sizes = (asked.student_sizes, asked.teacher_sizes)
    return tuple(drawn(rows, model.hidden) for model in sizes for rows in (count, model.vocabulary))


def apart(found: Tensor, expected: Tensor) -> float:
    """Relative difference, in the norm of the whole tensor."""
    scale = expected.double().norm().clamp(min=torch.finfo(torch.float64).tiny)
    return float((found.double() - expected.double()).norm() / scale)


def memory_finding(asked: ProveTrainingSettings, resources: Resources, device: torch.device) -> Finding:
    """Whether the whole pair as it is to be trained has room here: on each device, and in main memory."""
    pair, longest = as_pair(asked), max(asked.lengths)
    names = ["parallel", "processes", "teacher_placement", "teacher"]
    # Without a GPU all lies in the same main memory.
    names += [] if device.type == "cpu" else ["optimizer_placement"]
    settings = alone(asked, **{name: getattr(asked, name) for name in names})
    here = -(-asked.processes // asked.machines)
    usable = DeviceRoom.of(device, here).usable
    load = load_of(settings, pair.student, pair.teacher, resources.loss)
    load, chosen = choose_for_full_steps(settings, resources, load, longest, usable)
    needed, how = device_bytes(load), "recomputed" if chosen.recomputed else "kept"
    told = f"a training with {how} activations needs {needed / GIB:.3g} of the {usable / GIB:.3g} GiB that can be used "
    told += "of each device's memory"
    if needed > usable:
        return Finding(
            "memory",
            False,
            f"{told}: take a larger device, or share it among more (invoke plan names the least change)",
        )
    if device.type == "cpu":
        return Finding("memory", True, told)
    main = main_memory_bytes(MachineLoad.of(load, asked.machines))
    free = psutil.virtual_memory().available
    room = int(min(free, memory_limit_bytes() or free) * USABLE_MAIN_SHARE)
    told += f", and {main / GIB:.3g} of the {room / GIB:.3g} GiB of main memory that are free"
    return Finding(
        "memory", main <= room, told + ("" if main <= room else ": free main memory, or take a machine with more")
    )


def disk_finding(asked: ProveTrainingSettings, resources: Resources, write_bytes_per_s: float) -> Finding:
    """Whether checkpoints can be written as often as is asked for."""
    student = Architecture(**asked.student_sizes.model_dump())
    size = CHECKPOINT_BYTES * trained_parameters(student, asked.lora)
    seconds = size / write_bytes_per_s
    most = DISK_SHARE * max(resources.checkpoint_every_s, LEAST_BETWEEN_S)
    told = f"a checkpoint of {size / GIB:.3g} GiB takes {seconds:.3g} s at {write_bytes_per_s / 1e9:.3g} GB/s"
    if seconds <= most:
        return Finding("disk", True, told)
    share = f"a quarter of checkpoint_every_s, which counts as {LEAST_BETWEEN_S:.0f} s at least"
    cure = "name a run directory on a faster disk with --runs, or set checkpoint_every_s in [resources] to at least "
    cure += f"{math.ceil(seconds / DISK_SHARE):,}"
    return Finding("disk", False, f"{told}, at most {most:.3g} s is right ({share}): {cure}")
