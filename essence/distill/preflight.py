"""Checks before the first step: a training that would fail after an hour fails in the first minute.

- *memory*: the estimate of `essence/sizes/memory.py` for the largest forward pass of this training against the memory
  of the device: by it activations are kept or recomputed (`essence/sizes/recomputation.py`); what does not fit either
  way is refused with the smallest change that would;
- *data*: the fingerprint of the rows equals the one that an earlier attempt wrote down.

That the loss is finite the loop itself looks at in every step, the first included.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from essence.data.truncation import Example, fingerprint
from essence.distill.devices import memory_bytes
from essence.distill.rollouts import largest_rollouts, rollouts_together
from essence.errors import InputError, MachineError
from essence.files import GIB, read_json, write_json
from essence.models.template import reason
from essence.settings import Resources, TrainSettings, rollout_tokens
from essence.sizes.host import USABLE_MAIN_SHARE, MachineLoad, main_memory_bytes
from essence.sizes.least_change import Limits, Pass, PassOn, smallest_change
from essence.sizes.memory import USABLE_SHARE, DeviceLoad, device_bytes, estimate_memory
from essence.sizes.recomputation import Activations, StepReading, choose_activations
from essence.sizes.step_rows import Step, deal, shape

RECORD = "preflight.json"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Largest:
    """The largest forward pass of a training."""

    positions: int
    labels: int
    longest_row: int
    """Positions of the longest row."""
    passes_of_step: float
    """Of a rank, on average."""


def largest_pass(
    examples: Sequence[Example],
    steps: Iterable[Step],
    processes: int,
    packed: bool,
    multiple: int,
    resources: Resources,
) -> Largest:
    """Deal the rows of every step out as the training will, and take the most positions and the most labels."""
    positions = labels = passes = taken = 0
    for step in steps:
        rows = [examples[index] for index in step]
        lengths = [row.positions for row in rows]
        dealt = deal(lengths, processes, packed, multiple, resources)
        passes, taken = passes + len(dealt[0]), taken + 1
        for share in (share for own in dealt for share in own if share):
            positions = max(positions, shape(lengths, share, packed, multiple).positions)
            labels = max(labels, sum(int(rows[index].supervised.sum()) for index in share))
    return Largest(positions, labels, max(row.positions for row in examples), passes / max(1, taken))


class DeviceRoom(NamedTuple):
    """Bytes of memory that one process of a training has."""

    there: int
    usable: int

    @classmethod
    def of(cls, device: torch.device, processes: int) -> "DeviceRoom":
        """All of the device's, free or not; processes on a CPU share the machine's."""
        there = memory_bytes(device) // (processes if device.type == "cpu" else 1)
        return cls(there, int(there * USABLE_SHARE[device.type]))


class SizedUp(NamedTuple):
    """A training and its device before the first step."""

    load: DeviceLoad
    """As it will be."""
    largest: Largest
    activations: Activations
    pass_on: PassOn


def size_up(
    settings: TrainSettings,
    resources: Resources,
    load: DeviceLoad,
    examples: Sequence[Example],
    steps: Sequence[Step],
    usable_bytes: int,
    device: torch.device,
) -> SizedUp:
    """Choose how activations are held, by the largest forward pass of these steps.

    Args:
        settings: of the training.
        resources: of these, the sizes of passes, and what is asked for of activations.
        load: what a device is given, without its rows.
        examples: what is read; of a student that learns from its own words, the prompts.
        steps: indices of the rows of each.
        usable_bytes: of the device; the same on every rank.
        device: that trains.
    """
    if device.type == "cpu":  # all lies in the same memory
        load = replace(load, optimizer_placement="device")
    if settings.rollouts and (most := rollout_tokens(settings.view.span)):
        together = rollouts_together(examples, steps, settings.rollouts.every_steps, most)
        load, examples = replace(load, rollouts=together), largest_rollouts(examples, most)

    def passes_of(tokens: int, processes: int = settings.processes) -> Largest:
        shorter = resources.model_copy(update={"micro_batch_tokens": tokens})
        return largest_pass(examples, steps, processes, settings.packing, settings.pad_to_multiple, shorter)

    def pass_on(devices: int) -> Pass:
        found = passes_of(chosen.micro_batch_tokens, devices)
        return Pass(found.positions, found.labels)

    largest = passes_of(resources.micro_batch_tokens)
    readings = max(1, sum(map(len, steps)))
    tokens = sum(examples[index].input_ids.size for step in steps for index in step)
    reading = StepReading(
        rows=readings / max(1, len(steps)) / settings.processes,
        row_tokens=tokens / readings,
        longest_row=largest.longest_row,
        passes=lambda most: passes_of(most).passes_of_step,
    )
    asked = replace(load, positions=largest.positions, labels=largest.labels)
    chosen = choose_activations(settings, resources, asked, reading, usable_bytes)
    if chosen.micro_batch_tokens != resources.micro_batch_tokens:
        largest = passes_of(chosen.micro_batch_tokens)
    held = replace(load, positions=largest.positions, labels=largest.labels)
    return SizedUp(replace(held, activation_checkpointing=chosen.recomputed), largest, chosen, pass_on)


def check_memory(
    sized: SizedUp, multiple: int, room: DeviceRoom, device: torch.device, machines: int = 1
) -> dict[str, int]:
    """The manifest's words on memory.

    Args:
        sized: what a device is given.
        multiple: sequence lengths are padded to a multiple of this.
        room: what the device has.
        device: whose memory it is.
        machines: that train together.

    Raises:
        MachineError: training, or loading the models, takes more than the usable share of the device's memory; names
            the smallest change.
    """
    load, longest_row = sized.load, sized.largest.longest_row
    moved = MachineLoad.of(replace(load, optimizer_placement="main_memory"), machines)
    roomy = device.type != "cpu" and main_memory_bytes(moved) <= memory_bytes(CPU) * USABLE_MAIN_SHARE
    memory, needed, (there, usable) = estimate_memory(load), device_bytes(load), room
    if needed > usable:
        change = smallest_change(load, Limits(usable, longest_row, multiple, roomy), sized.pass_on)
        cure = f"set {change}" if change else "use a device with more memory or a smaller model"
        parts = "while its models are loaded, before the first step"
        if needed == memory.total:
            static, dynamic = memory.static / GIB, memory.dynamic / GIB
            parts = f"{static:.1f} whatever the length, {dynamic:.1f} for {load.positions} positions"
        raise MachineError(
            f"this training needs about {needed / GIB:.1f} GiB on each device ({parts}), but of "
            f"{there / GIB:.1f} GiB {usable / GIB:.1f} can be used: {cure}"
        )
    return {
        "static_bytes": memory.static,
        "dynamic_bytes": memory.dynamic,
        "device_bytes": there,
        "usable_bytes": usable,
        "largest_positions": load.positions,
        "largest_labels": load.labels,
        "longest_row": longest_row,
    }


@contextlib.contextmanager
def explained_end_of_memory(told: str, cure: str) -> Iterator[None]:
    """A device that runs out of memory, as one sentence: `told`, which says when.

    Raises:
        MachineError: in the place of PyTorch's error, which says what of the device other processes hold.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MachineError(f"{told} ({reason(error)})", cure) from error


def explained_loading() -> contextlib.AbstractContextManager[None]:
    """`explained_end_of_memory` of what comes before the first step."""
    cure = "end what else runs on it (nvidia-smi lists it), or give the stage a GPU with more memory"
    return explained_end_of_memory("a device ran out of memory before the first step", cure)


@contextlib.contextmanager
def explained_memory(sized: SizedUp) -> Iterator[None]:
    """A device that runs out of memory all the same, as one sentence.

    Raises:
        MachineError: in the place of PyTorch's error.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        fewer = f"set micro_batch_tokens in [resources] below {sized.load.positions}"
        cure = fewer if sized.activations.recomputed else "set activation_checkpointing = 'on' in [resources]"
        needed, usable = (size / GIB for size in (estimate_memory(sized.load).total, sized.activations.usable_bytes))
        raise MachineError(
            f"a device ran out of memory, though {needed:.1f} GiB were to be enough and {usable:.1f} can be used where "
            f"nothing else is on it ({reason(error)})",
            cure,
        ) from error


def check_data(work: Path, training: Sequence[Example], validation: Sequence[Example]) -> dict[str, Any]:
    """Compare the rows with those of an earlier attempt under `work`, or write their fingerprints down.

    Raises:
        InputError: they differ: the tokens were changed between two attempts.
    """
    found = {"train_sha256": fingerprint(training), "validation_sha256": fingerprint(validation)}
    path = work / RECORD
    earlier = read_json(path) if path.is_file() else None
    for name, value in found.items():
        if earlier is not None and earlier[name] != value:
            raise InputError(
                f"{path}: {name} was {earlier[name][:16]} in an earlier attempt and is {value[:16]} now: the tokens "
                "were changed in between",
                "remove this stage's folder to start it again",
            )
    if earlier is None:
        work.mkdir(parents=True, exist_ok=True)
        write_json(path, found)
    return {**found, "equals_earlier_attempt": None if earlier is None else True}
