"""What a running stage is given, and how it says how far it is."""

import fcntl
import functools
import json
import os
import resource
import select
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from essence.errors import ExitCode
from essence.files import GIB, write_atomically
from essence.settings import Resources
from essence.signals import STOP_SIGNALS, die_with_parent

PROGRESS_EVERY_S = 0.5
STDIN = 0
LIFELINE = "ESSENCE_LIFELINE"
PARENT = "ESSENCE_PARENT"


class Stopped(Exception):
    """The stage was asked to stop (Ctrl-C, SIGTERM, SIGUSR1) and has written what it needs to go on."""


class StopRequest:
    """Remembers that a signal asked the stage to stop; long loops look at it between two steps."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    def install(self) -> None:
        for number in STOP_SIGNALS:
            signal.signal(number, self._remember)

    def ask(self, why: str) -> None:
        """Ask for a stop, as a signal does; the first reason stays."""
        self.signal_name = self.signal_name or why

    def _remember(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.ask(signal.Signals(number).name)

    def check(self) -> None:
        """Raise Stopped when a stop was asked for. Call it where everything needed to go on is on disk."""
        if self.signal_name:
            raise Stopped(self.signal_name)

    def __bool__(self) -> bool:
        return self.signal_name is not None


def die_with_launcher(number: signal.Signals) -> None:
    """Where the kit started this process itself: be sent a signal when the one that did is killed (Linux)."""
    if PARENT in os.environ and sys.platform == "linux":
        die_with_parent(int(os.environ[PARENT]), number)


def parent_is_gone() -> bool:
    """True when the kit started this process itself, and what did has died meanwhile."""
    parent = os.environ.get(PARENT)
    return parent is not None and os.getppid() != int(parent)


def stop_when_alone() -> None:
    """Where the kit holds the other end of standard input: be sent SIGTERM when that closes (Linux).

    As `die_with_launcher`, for a process whose parent is not the kit, or is so in another PID namespace.
    """
    if LIFELINE not in os.environ or sys.platform != "linux":
        return
    fcntl.fcntl(STDIN, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(STDIN, fcntl.F_SETSIG, signal.SIGTERM)
    fcntl.fcntl(STDIN, fcntl.F_SETFL, fcntl.fcntl(STDIN, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([STDIN], [], [], 0)[0]:
        raise SystemExit(ExitCode.STOPPED)  # it closed before


@dataclass
class Progress:
    """How far a stage is, as `progress.json` in its folder: read by the host, by `invoke status`, over ssh."""

    path: Path
    watch_gpus: bool = False
    """True to report how busy the GPUs are, too."""
    _last_write: float = 0.0
    _phase: str = ""
    _phase_started: float = 0.0
    _phase_first: int = 0
    _looks: int = 0
    _busy_sum: float = 0.0

    @property
    def gpu_busy_share(self) -> float | None:
        """Mean over all looks of how busy the GPUs were, as a share; None where no driver told."""
        return self._busy_sum / self._looks / 100.0 if self._looks else None

    def update(self, phase: str, done: int, total: int, unit: str, note: str = "") -> None:
        """Say that `done` of `total` units (rows, steps, samples) of a phase are finished; cheap to call often."""
        now = time.time()
        if phase != self._phase:
            self._phase, self._phase_started, self._phase_first = phase, now, done
        elif now - self._last_write < PROGRESS_EVERY_S and done < total:
            return
        self._last_write = now
        advanced = done - self._phase_first
        left_s = (now - self._phase_started) / advanced * (total - done) if advanced > 0 else None
        record = {
            "phase": phase,
            "done": done,
            "total": total,
            "unit": unit,
            "note": note,
            "seconds_left": left_s,
            "updated": now,
            "pid": os.getpid(),
            "gpus": self._look_at_gpus() if self.watch_gpus else [],
        }
        write_atomically(self.path, json.dumps(record))

    def _look_at_gpus(self) -> list[dict[str, float]]:
        seen = gpu_use()
        self._looks += len(seen)
        self._busy_sum += sum(gpu["busy_percent"] for gpu in seen)
        return seen


@dataclass(frozen=True)
class StageContext:
    """A stage's surroundings."""

    partial: Path
    """Where output is written; what a killed attempt left here is to be used again. Becomes `output/` at the end."""
    inputs: dict[str, Path]
    """Input name -> that stage's `output/` folder, read only."""
    resources: Resources
    progress: Progress
    stop: StopRequest
    graders: dict[str, float] = field(default_factory=dict)
    """As in `Spec`."""
    engine: str = "local"
    """That started the stage."""

    @property
    def scratch(self) -> Path:
        """For checkpoints and the like: kept across attempts, removed when the stage is done."""
        folder = self.partial.parent / "scratch"
        folder.mkdir(exist_ok=True)
        return folder


def peak_memory_gib() -> float:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # In KiB on Linux and in bytes on macOS.
    return peak * (1 if sys.platform == "darwin" else 1024) / GIB


def visible_gpus() -> list[str]:
    """The GPUs that the caller has been given, as CUDA_VISIBLE_DEVICES names them; empty = all of the machine."""
    return [word.strip() for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word.strip()]


def gpu_use() -> list[dict[str, float]]:
    """Share of the last moment that each visible GPU was busy, in percent, and its memory in use and in all, in GiB.

    Empty where no driver answers, as without a GPU or on a part of one (MIG), which NVML counts nothing for.
    """
    handles = _handles()
    if not handles:
        return []
    import pynvml

    try:
        return [_one(pynvml, handle) for handle in handles]
    except pynvml.NVMLError:
        return []


def _one(nvml: Any, handle: Any) -> dict[str, float]:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return {
        "busy_percent": float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
        "memory_gib": round(memory.used / GIB, 1),
        "total_gib": round(memory.total / GIB, 1),
    }


@functools.cache
def _handles() -> tuple[Any, ...]:
    """NVML's handles of the GPUs that CUDA_VISIBLE_DEVICES leaves, all of them where it is not set."""
    try:
        import pynvml
    except ImportError:
        return ()
    try:
        pynvml.nvmlInit()
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = map(str, range(pynvml.nvmlDeviceGetCount())) if named is None else filter(None, named.split(","))
        return tuple(
            pynvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else pynvml.nvmlDeviceGetHandleByUUID(name)
            for name in names
        )
    except pynvml.NVMLError:
        return ()
