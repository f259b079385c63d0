"""The least change that brings a training under the memory of its devices, by the formulas of `sizes/memory.py`.

Least: every setting in it is needed. The order is that of what a change costs: first recomputation and shorter passes,
then shares of the models on the same devices, masters in main memory, more devices; each alone before it is joined by
recomputation or shorter passes. On more devices each reads fewer rows of a step, so a pass is no longer than its rows
there (`PassOn`): a shorter one is asked for only below that. Plain Python; no torch.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

from essence.settings import OptimizerPlacement, Parallel
from essence.sizes.memory import DeviceLoad, device_bytes
from essence.sizes.rollout_sizes import RolloutLoad

DEVICE_COUNTS, FEW_DEVICES = (2, 4, 8, 16, 32), 2
"""Of which more are asked for; up to how many use main memory before."""


class Pass(NamedTuple):
    """The largest forward pass of a device."""

    positions: int
    labels: int


PassOn = Callable[[int], Pass]
"""Number of devices -> the largest pass of each, with the tokens of a pass that the training has."""


class Limits(NamedTuple):
    """What a change has to keep to."""

    bytes: int
    """Of a device, that may be used."""
    longest_row: int
    """Tokens; a forward pass cannot have fewer positions."""
    multiple: int
    """The positions are a multiple of it."""
    main_memory: bool = False
    """True where the machine has room for masters and moments there."""


def smallest_change(load: DeviceLoad, limits: Limits, pass_on: PassOn) -> str | None:
    """Settings that bring a training under the limit, the least change first; None where none does.

    Arguments are those of `least_change`.
    """
    changed = least_change(load, limits, pass_on)
    return in_words(as_read_on(load, changed.devices, pass_on), changed) if changed else None


def least_change(load: DeviceLoad, limits: Limits, pass_on: PassOn) -> DeviceLoad | None:
    """What is nearest to a load that does not fit, and does; None where nothing is.

    load: with the pass of `pass_on` on its devices.
    """
    if found := _saving(load, limits):
        return found
    if load.rollouts and (fewer := _fewer_rollouts(load, load.rollouts, limits.bytes)):
        return fewer
    here = [] if load.devices == 1 else _shared_ways(load, limits)
    counts = () if load.rollouts else (count for count in DEVICE_COUNTS if count > load.devices)
    more = (way for count in counts for way in _shared_ways(as_read_on(load, count, pass_on), limits))
    for way in (*here, *_offloaded_ways(load, limits), *more):
        if device_bytes(way) <= limits.bytes:
            return way
        if found := _saving(way, limits):
            return found
    return None


def as_read_on(load: DeviceLoad, devices: int, pass_on: PassOn) -> DeviceLoad:
    """The load on so many devices, with the rows that each of them reads then."""
    if devices == load.devices:
        return load
    largest = pass_on(devices)
    return replace(load, devices=devices, positions=largest.positions, labels=largest.labels)


def _saving(load: DeviceLoad, limits: Limits) -> DeviceLoad | None:
    """The same recomputed, else in the longest passes that fit, else both; None where not even that fits."""
    checkpointed = replace(load, activation_checkpointing=True)
    if not load.activation_checkpointing and device_bytes(checkpointed) <= limits.bytes:
        return checkpointed
    return _most_positions(load, limits) or _most_positions(checkpointed, limits)


def _most_positions(load: DeviceLoad, limits: Limits) -> DeviceLoad | None:
    """The largest forward pass that fits, at least the longest row and below the present one; None where none does."""
    share = load.labels / max(1, load.positions)
    lengths = range(-(-limits.longest_row // limits.multiple), -(-load.positions // limits.multiple))

    def shorter(length: int) -> DeviceLoad:
        positions = length * limits.multiple
        return replace(load, positions=positions, labels=round(positions * share))

    fitting = bisect_left(lengths, True, key=lambda length: device_bytes(shorter(length)) > limits.bytes)
    return shorter(lengths[fitting - 1]) if fitting else None


def _fewer_rollouts(load: DeviceLoad, rollouts: RolloutLoad, limit: int) -> DeviceLoad | None:
    """The most rollouts that can be drawn together; None where even one is too large, or something else is."""
    fewer = (replace(load, rollouts=replace(rollouts, rows=rows)) for rows in range(rollouts.rows - 1, 0, -1))
    return next((less for less in fewer if device_bytes(less) <= limit), None)


def _offloaded_ways(load: DeviceLoad, limits: Limits) -> Iterator[DeviceLoad]:
    """The same with masters and moments in main memory; none where there are no masters, or many devices."""
    if limits.main_memory and load.lowered and load.devices <= FEW_DEVICES:
        parallel: Parallel = "zero2" if load.parallel == "zero3" else load.parallel
        yield replace(load, parallel=parallel, optimizer_placement="main_memory")


def _shared_ways(load: DeviceLoad, limits: Limits) -> Iterable[DeviceLoad]:
    """Ways of sharing models among the devices of a load, the least first; a teacher not loaded is not shared out."""
    loaded = load.teacher is not None and not load.teacher_stored
    backends: tuple[Parallel, ...] = ("zero3", "zero2") if load.parallel == "zero3" else ("zero2", "zero3")
    for parallel in backends:
        moved = load.optimizer_placement == "main_memory" and limits.main_memory and parallel == "zero2"
        optimizer: OptimizerPlacement = "main_memory" if moved else "device"
        way = replace(load, parallel=parallel, optimizer_placement=optimizer)
        yield way
        if loaded and load.teacher_placement != "sharded":
            yield replace(way, teacher_placement="sharded")


def in_words(load: DeviceLoad, other: DeviceLoad) -> str:
    """What of a load is another one in its place, as settings."""
    told = []
    if (other.parallel, other.devices) != (load.parallel, load.devices):
        told.append(f"parallel = '{other.parallel}' on {other.devices} GPUs")
    if other.teacher_placement != load.teacher_placement:
        told.append(f"teacher_placement = '{other.teacher_placement}'")
    if other.optimizer_placement != load.optimizer_placement:
        told.append(f"optimizer_placement = '{other.optimizer_placement}'")
    if other.activation_checkpointing != load.activation_checkpointing:
        told.append("activation_checkpointing = 'on'")
    if other.positions != load.positions:
        told.append(f"micro_batch_tokens = {other.positions}")
    if other.rollouts and other.rollouts != load.rollouts:
        told.append(f"batch_rows x every_steps = {other.rollouts.rows} at most")
    return " and ".join([", ".join(told[:-1]), told[-1]] if told[1:] else told)
