"""Where the time of a step goes: its parts by marks between them, and what a profiler sees of the device and the ranks.

Marks are moments on the device's own clock, so that making one waits for nothing. What ranks bring together may cross
beside the computation, and a GPU may wait for its next kernel in any part: both are seen by PyTorch's profiler alone,
in a step of their own, since it makes the processor slower.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from essence.distill.proof_machine import settle

PARTS = ("teacher", "forward", "backward", "optimizer")
COLLECTIVES = ("nccl", "gloo")
"""How the names of what brings ranks together begin, of kernels and of calls."""
US = 1e6
SILENT = "99"
"""The profiler's library would write two lines each time."""


class Marks:
    """Moments of one step."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.made: list[tuple[str, torch.cuda.Event | float]] = []

    def mark(self, part: str) -> None:
        """What was started since the mark before is this part of the step."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self.made.append((part, event))
        else:
            self.made.append((part, time.perf_counter()))

    def seconds(self) -> dict[str, float]:
        """Of each part, all that the step has of it together."""
        settle(self.device)
        found = dict.fromkeys(PARTS, 0.0)
        for (_, before), (part, after) in zip(self.made, self.made[1:], strict=False):
            found[part] += _between_s(before, after)
        return found


def _between_s(before: torch.cuda.Event | float, after: torch.cuda.Event | float) -> float:
    if isinstance(before, torch.cuda.Event) and isinstance(after, torch.cuda.Event):
        return float(before.elapsed_time(after)) / 1e3  # of milliseconds
    assert isinstance(before, float) and isinstance(after, float)
    return after - before


class Timed(NamedTuple):
    """Steps of one kind: medians of seconds."""

    seconds: float
    """Wall time of a step."""
    parts: dict[str, float]
    """Of `PARTS`."""
    communication_s: float | None
    """In which something was brought together between ranks; None where no profiler told."""
    host_gap_s: float | None
    """Of the wall time, in which the GPU had nothing to do; None on a CPU."""


def timed(step: Callable[[Marks], object], device: torch.device, warming: int, steps: int) -> Timed:
    """Time a step that makes its marks."""
    for _ in range(warming):
        step(Marks(device))
    seconds, parts = [], []
    for _ in range(steps):
        settle(device)
        marks, started = Marks(device), time.perf_counter()
        step(marks)
        settle(device)
        seconds.append(time.perf_counter() - started)
        parts.append(marks.seconds())
    median = statistics.median(seconds)
    busy_s, communication_s = _profiled(lambda: step(Marks(device)), device)
    gap_s = None if busy_s is None else max(0.0, median - busy_s)
    return Timed(
        median, {name: statistics.median(one[name] for one in parts) for name in PARTS}, communication_s, gap_s
    )


def _profiled(work: Callable[[], object], device: torch.device) -> tuple[float | None, float | None]:
    """Seconds that the GPU was busy (None on a CPU), and that something was on its way between ranks."""
    events = profiled(work, device)
    if not events:
        return None, None  # a driver that lets nobody look
    crossing = [event for event in events if event.name.startswith(COLLECTIVES)]
    busy = covered_s(_spans(events)) if device.type == "cuda" else None
    return busy, covered_s(_spans(crossing))


def profiled(work: Callable[[], object], device: torch.device) -> Sequence[FunctionEvent]:
    """What PyTorch's profiler saw of some work: kernels of a GPU, or calls on a CPU."""
    os.environ.setdefault("KINETO_LOG_LEVEL", SILENT)
    activity, kind = (ProfilerActivity.CPU, DeviceType.CPU)
    if device.type == "cuda":
        activity, kind = (ProfilerActivity.CUDA, DeviceType.CUDA)
    with profile(activities=[activity]) as seen:
        work()
        settle(device)
    found = [event for event in seen.events() or [] if event.device_type == kind]
    # What code has named on a GPU is no kernel: it lasts over the gaps between those that it started.
    return [event for event in found if kind == DeviceType.CPU or not event.is_user_annotation]


def _spans(events: Sequence[FunctionEvent]) -> list[tuple[float, float]]:
    return [(event.time_range.start / US, event.time_range.end / US) for event in events]


def covered_s(spans: Iterable[tuple[float, float]]) -> float:
    """Seconds that lie in at least one of the spans, each from when to when."""
    covered, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        covered += max(0.0, end - max(begin, until))
        until = max(until, end)
    return covered
