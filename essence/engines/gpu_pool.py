"""The GPUs of this machine, each given to one stage at a time, whichever run and run directory the stage is of.

A GPU is taken by a lock on a file that the stage's own processes keep open: it is free when the last of them is gone,
were the host killed or not. A container keeps no file open, but can be asked when the host is gone: the engine does.
"""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from essence.files import sha256_text
from essence.progress import visible_gpus
from essence.record.facts import query_gpus
from essence.record.manifest import Gpu

NAME_DIGITS = 16
InUse = Callable[[], Mapping[str, Path]]
"""GPU -> folder of the stage whose container has it."""


@dataclass(frozen=True)
class TakenGpus:
    """GPUs of one stage."""

    names: tuple[str, ...]
    """As CUDA_VISIBLE_DEVICES names them."""
    descriptors: tuple[int, ...]
    """Open files that hold them; the stage's processes inherit them."""

    def leave(self) -> None:
        """Close them here; what the stage has inherited goes on to hold its GPUs."""
        for descriptor in self.descriptors:
            os.close(descriptor)


NO_GPUS = TakenGpus((), ())


@dataclass
class GpuPool:
    """What this run may use, and what of it is free."""

    identities: Mapping[str, str] = field(default_factory=dict)
    """Name of a GPU, as CUDA_VISIBLE_DEVICES has it -> what it is called whatever name is used."""
    in_use: InUse = dict

    @classmethod
    def of_this_machine(cls, in_use: InUse = dict) -> "GpuPool":
        """The GPUs of CUDA_VISIBLE_DEVICES, or all that the driver tells of."""
        gpus = query_gpus()
        names = visible_gpus() or [gpu.index for gpu in gpus if gpu.index]
        return cls({name: _identity(name, gpus) for name in names}, in_use)

    def stages_at_once(self, count: int) -> int:
        """How many stages of so many GPUs these are enough for; 0 where a stage asks for none."""
        return len(self.identities) // count if count else 0

    def take(self, count: int, stage: Path) -> TakenGpus | None:
        """So many free GPUs for the stage of this folder, or None; those that a container of its own has come first."""
        in_use = self.in_use()
        mine = [name for name in self.identities if in_use.get(name) == stage]
        free = [name for name in self.identities if name not in in_use]
        taken: dict[str, int] = {}
        for name in [*mine, *free]:
            if len(taken) < count and (descriptor := self._lock(name)) is not None:
                taken[name] = descriptor
        if len(taken) == count:
            return TakenGpus(tuple(taken), tuple(taken.values()))
        for descriptor in taken.values():
            os.close(descriptor)
        return None

    def _lock(self, name: str) -> int | None:
        """An open, locked file; None where somebody else has it."""
        folder = lock_folder()
        folder.mkdir(mode=0o700, exist_ok=True)
        path = folder / sha256_text(self.identities[name])[:NAME_DIGITS]
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        os.close(descriptor)
        return None


def lock_folder() -> Path:
    """Of this user on this machine: GPUs of a machine are few, and runs of one user meet there."""
    return Path(tempfile.gettempdir()) / f"essence-gpus-{os.getuid()}"


def _identity(name: str, gpus: Iterable[Gpu]) -> str:
    """The same for every name that a GPU has: its index, its UUID, or the start of that."""
    return next((gpu.uuid for gpu in gpus if gpu.uuid and (gpu.index == name or gpu.uuid.startswith(name))), name)
