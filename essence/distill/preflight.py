"""Checks before the first step: a training that would fail after an hour fails in the first minute.

- *memory*: the estimate of `essence/sizes/memory.py` for the largest forward pass of this training against the memory
  of the device; what does not fit is refused with the smallest change that would;
- *data*: the fingerprint of the rows equals the one that an earlier attempt wrote down.

That the loss is finite the loop itself looks at in every step, the first included.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from essence.data.truncation import Example, fingerprint
from essence.distill.devices import memory_bytes
from essence.errors import InputError, MachineError
from essence.files import GIB, read_json, write_json
from essence.settings import Resources
from essence.sizes.host import USABLE_MAIN_SHARE, MachineLoad, main_memory_bytes
from essence.sizes.memory import USABLE_SHARE, DeviceLoad, estimate_memory, smallest_change
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


def largest_pass(
    examples: Sequence[Example],
    steps: Iterable[Step],
    processes: int,
    packed: bool,
    multiple: int,
    resources: Resources,
) -> Largest:
    """Deal the rows of every step out as the training will, and take the most positions and the most labels."""
    positions = labels = 0
    for step in steps:
        rows = [examples[index] for index in step]
        lengths = [row.positions for row in rows]
        dealt = deal(lengths, processes, packed, multiple, resources)
        for share in (share for passes in dealt for share in passes if share):
            positions = max(positions, shape(lengths, share, packed, multiple).positions)
            labels = max(labels, sum(int(rows[index].supervised.sum()) for index in share))
    return Largest(positions, labels, max(row.positions for row in examples))


def check_memory(
    load: DeviceLoad, largest: Largest, multiple: int, device: torch.device, machines: int = 1
) -> dict[str, Any]:
    """The manifest's words on memory.

    Args:
        load: what a device is given; `positions` and `labels` are taken from `largest`.
        largest: the largest forward pass.
        multiple: sequence lengths are padded to a multiple of this.
        device: whose memory it is; processes on a CPU share the machine's.
        machines: that train together.

    Raises:
        MachineError: the estimate is above the usable share of the device's memory; names the smallest change.
    """
    load = replace(load, positions=largest.positions, labels=largest.labels)
    sharers = load.devices if device.type == "cpu" else 1
    moved = MachineLoad.of(replace(load, optimizer_placement="main_memory"), machines)
    roomy = device.type != "cpu" and main_memory_bytes(moved) <= memory_bytes(CPU) * USABLE_MAIN_SHARE
    if device.type == "cpu":  # all lies in the same memory
        load = replace(load, optimizer_placement="device")
    memory, there = estimate_memory(load), memory_bytes(device) // sharers
    usable = int(there * USABLE_SHARE[device.type])
    if memory.total > usable:
        change = smallest_change(load, usable, largest.longest_row, multiple, roomy)
        cure = f"set {change}" if change else "use a device with more memory or a smaller model"
        raise MachineError(
            f"this training needs about {memory.total / GIB:.1f} GiB on each device ({memory.static / GIB:.1f} "
            f"whatever the length, {memory.dynamic / GIB:.1f} for {load.positions} positions), but of "
            f"{there / GIB:.1f} GiB {usable / GIB:.1f} can be used: {cure}"
        )
    return {
        "static_bytes": memory.static,
        "dynamic_bytes": memory.dynamic,
        "device_bytes": there,
        "usable_bytes": usable,
        "largest_positions": load.positions,
        "largest_labels": load.labels,
        "longest_row": largest.longest_row,
    }


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
