"""The GPUs of this machine, each given to one stage at a time, whichever run and run directory the stage is of.

A GPU is taken by a lock on a file that the host and the stage's own process keep open, one file for all users of the
machine (`gpu_locks.py`). Neither what that process starts (ranks, workers of a library) nor a container keeps it open:
they are known by a variable that all of them inherit. A GPU is free when its lock is free and no process has it in its
environment, whichever engine started it; the environments of other users' processes cannot be read.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from essence.engines.gpu_locks import lock_folder
from essence.errors import MachineError
from essence.files import sha256_text
from essence.progress import visible_gpus
from essence.record.facts import query_gpus
from essence.record.manifest import Gpu

NAME_DIGITS = 16
HELD = "ESSENCE_HELD_GPUS"
"""In the environment of all that a stage starts: its GPUs, by the names of their lock files."""
InUse = Callable[[], Mapping[str, Path] | None]
"""GPU -> folder of the stage whose container has it; None where the engine does not say just now."""


@dataclass(frozen=True)
class TakenGpus:
    """GPUs of one stage."""

    names: tuple[str, ...]
    """As CUDA_VISIBLE_DEVICES names them."""
    descriptors: tuple[int, ...]
    """Open files that hold them; the stage's process inherits them."""
    locks: tuple[str, ...] = ()
    """Names of these files."""

    def variables(self) -> dict[str, str]:
        """What the stage's processes are known by."""
        return {HELD: ",".join(self.locks)} if self.locks else {}

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

        def identified() -> dict[str, Path] | None:
            """Another run may know a GPU by another name."""
            found = in_use()
            return None if found is None else {_identity(name, gpus): stage for name, stage in found.items()}

        return cls({name: _identity(name, gpus) for name in names}, identified)

    def stages_at_once(self, count: int) -> int:
        """How many stages of so many GPUs these are enough for; 0 where a stage asks for none."""
        return len(self.identities) // count if count else 0

    def remark(self) -> str:
        """What people are to know of how these GPUs are held; empty where all is well."""
        alone = lock_folder().alone if self.identities else None
        told = [f"a run of another user may be given the same ones, as {alone.problem}: {alone.cure}"] if alone else []
        told += [f"{name} is left out, as {error.problem}: {error.cure}" for name, error in self._refused()]
        return f"GPUs: {'; '.join(told)}" if told else ""

    def _refused(self) -> Iterator[tuple[str, MachineError]]:
        """Those whose locks cannot be kept."""
        for name in self.identities:
            try:
                descriptor = self._lock(name)
            except MachineError as error:
                yield name, error
            else:
                if descriptor is not None:
                    os.close(descriptor)

    def take(self, count: int, stage: Path) -> TakenGpus | None:
        """So many free GPUs for the stage of this folder, or None; those that a container of its own has come first.

        Raises:
            MachineError: there will never be so many, or never so many whose locks can be kept.
        """
        if count > len(self.identities):
            raise MachineError(
                f"a stage asks for {count} GPUs, and this run may use {len(self.identities)}",
                "set CUDA_VISIBLE_DEVICES to more, or gpus in [resources] to fewer",
            )
        passed_over: set[str] = set()
        while (taken := self._lock_some(count, stage, passed_over)) is not None:
            # A host that died in between may have left a container on one of them, or processes.
            (mine, free), held = self._usable(stage), held_by_processes()
            in_use = {name for name in taken if self._lock_name(name) in held and name not in mine}
            if set(taken) <= {*mine, *free} and not in_use:
                locks = tuple(self._lock_name(name) for name in taken)
                return TakenGpus(tuple(taken), tuple(taken.values()), locks)
            for descriptor in taken.values():
                os.close(descriptor)
            if not in_use:
                return None
            passed_over |= in_use
        return None

    def _lock_some(self, count: int, stage: Path, passed_over: set[str]) -> dict[str, int] | None:
        """GPU -> its open, locked file, of so many; None where fewer can be locked just now."""
        taken: dict[str, int] = {}
        refused: list[MachineError] = []
        mine, free = self._usable(stage)
        for name in (name for name in mine + free if name not in passed_over):
            if len(taken) == count:
                break
            # What another user has put in the place of one file ends no run that has others.
            try:
                descriptor = self._lock(name)
            except MachineError as error:
                refused.append(error)
            else:
                if descriptor is not None:
                    taken[name] = descriptor
        if len(taken) == count:
            return taken
        for descriptor in taken.values():
            os.close(descriptor)
        if len(self.identities) - len(refused) < count:
            raise refused[0]
        return None

    def _usable(self, stage: Path) -> tuple[list[str], list[str]]:
        """Those that a container of this stage has, and those that none has; none where the engine does not say."""
        in_use = self.in_use()
        if in_use is None:
            return [], []
        mine = [name for name, identity in self.identities.items() if in_use.get(identity) == stage]
        return mine, [name for name, identity in self.identities.items() if identity not in in_use]

    def _lock_name(self, name: str) -> str:
        return sha256_text(self.identities[name])[:NAME_DIGITS]

    def _lock(self, name: str) -> int | None:
        """An open, locked file; None where somebody else has it."""
        return lock_folder().lock(self._lock_name(name))


def held_by_processes() -> set[str]:
    """Names of the lock files of all GPUs that a process has in its environment: of this user, in containers too."""
    found: set[str] = set()
    for process in psutil.process_iter():
        # Of other users' processes nothing is told; one may end while it is looked at.
        with contextlib.suppress(psutil.Error, OSError):
            found |= set(process.environ().get(HELD, "").split(",")) - {""}
    return found


def _identity(name: str, gpus: Iterable[Gpu]) -> str:
    """The same for every name that a GPU has: its index, its UUID, or the start of that."""
    return next((gpu.uuid for gpu in gpus if gpu.uuid and (gpu.index == name or gpu.uuid.startswith(name))), name)
