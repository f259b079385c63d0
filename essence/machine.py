"""What this machine has that a run can use."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil

from essence.record.environment import GIB, query_gpus


@dataclass(frozen=True)
class Machine:
    """What a run can use here."""

    gpus: list[dict[str, object]]
    memory_gib: float
    disk_gib: float
    """Free where the run directory lies."""

    @property
    def gpu_memory_gib(self) -> float:
        """Of the smallest GPU; 0 without one."""
        return min((float(str(gpu["memory_gib"])) for gpu in self.gpus), default=0.0)

    def describe(self) -> str:
        gpus = f"{len(self.gpus)} GPUs of {self.gpu_memory_gib:.0f} GiB" if self.gpus else "no GPU"
        return f"{gpus}, {self.memory_gib:.0f} GiB of memory, {self.disk_gib:.0f} GiB of free disk"


def this_machine(run_directory: Path) -> Machine:
    """Look at GPUs, memory and the disk that the run directory is, or will be, on."""
    existing = next(folder for folder in (run_directory, *run_directory.parents) if folder.is_dir())
    memory = psutil.virtual_memory().total / GIB
    return Machine(query_gpus(), memory, shutil.disk_usage(existing).free / GIB)
