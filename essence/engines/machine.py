"""What this machine has that a run can use."""

import contextlib
import errno
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from essence.errors import MachineError
from essence.files import GIB
from essence.progress import visible_gpus
from essence.record.facts import query_gpus
from essence.record.manifest import Gpu

CONTROL_GROUPS = Path("/sys/fs/cgroup")
CORE_LIMIT = "cpu.max"
OWN_GROUP = Path("/proc/self/cgroup")
IMAGES_PLATFORM = "Linux x86_64"
BUILD_ELSEWHERE = f"make them on a machine of {IMAGES_PLATFORM}, and here run without images: --engine local"


@dataclass(frozen=True)
class Machine:
    """What a run can use here."""

    gpus: list[Gpu]
    memory_gib: float
    disk_gib: float
    """Free where the run directory lies."""

    @property
    def gpu_memory_gib(self) -> float:
        """Of the smallest GPU; 0 without one."""
        return min((float(gpu.memory_gib or 0.0) for gpu in self.gpus), default=0.0)

    @property
    def driver(self) -> str:
        """Version of the GPUs' driver; empty without one."""
        return (self.gpus[0].driver_version or "") if self.gpus else ""

    def describe_gpus(self) -> str:
        return f"{len(self.gpus)} GPUs of {self.gpu_memory_gib:.0f} GiB" if self.gpus else "no GPU"

    def describe(self) -> str:
        return f"{self.describe_gpus()}, {self.memory_gib:.0f} GiB of memory, {self.disk_gib:.0f} GiB of free disk"


def this_machine(run_directory: Path) -> Machine:
    """Look at GPUs, memory and the disk that the run directory is, or will be, on."""
    memory, visible = psutil.virtual_memory().total / GIB, visible_gpus()
    gpus = [gpu for gpu in query_gpus() if not visible or _named(gpu, visible)]
    return Machine(gpus, memory, shutil.disk_usage(existing(run_directory)).free / GIB)


def usable_cores() -> float:
    """Cores that this process may use: those it is bound to, or what its control group allows where that is less."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([float(bound), *_core_limits()])


def _core_limits() -> Iterator[float]:
    """Of this process's control group and those above it; none where the kernel has no such groups (version 2)."""
    with contextlib.suppress(OSError):
        lines = OWN_GROUP.read_text(encoding="utf-8").splitlines()
        own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
        for group in (CONTROL_GROUPS / own, *(CONTROL_GROUPS / own).parents):
            # What lies above the root of a container's groups is not seen from here.
            if group.is_relative_to(CONTROL_GROUPS) and (group / CORE_LIMIT).is_file():
                allowed, period = (group / CORE_LIMIT).read_text(encoding="ascii").split()
                if allowed != "max":
                    yield int(allowed) / int(period)


def _named(gpu: Gpu, names: list[str]) -> bool:
    """Whether one of the names, an index or the start of a UUID, is this GPU's; a part of a GPU is of any."""
    return any(name.startswith("MIG-") or gpu.index == name or str(gpu.uuid).startswith(name) for name in names)


def refusal(folder: Path) -> int | None:
    """The errno with which a folder, or the one it would be made in, refuses writes; None = it can be written."""
    place = existing(folder)
    if os.access(place, os.W_OK | os.X_OK):
        return None
    return errno.EROFS if os.statvfs(place).f_flag & os.ST_RDONLY else errno.EACCES


def check_images_platform(what: str, cure: str = "run without images: --engine local") -> None:
    """MachineError where no image of the kit can be made or run: their versions are locked for one platform."""
    here = f"{platform.system()} {platform.machine()}"
    if here != IMAGES_PLATFORM:
        raise MachineError(
            f"{what}: its images are locked for {IMAGES_PLATFORM}, and this machine is {here}",
            cure,
        )


def existing(folder: Path) -> Path:
    """The folder, or where it would be made the first that is there."""
    return next(place for place in (folder, *folder.parents) if place.is_dir())
