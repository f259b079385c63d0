"""What a proof finds of the place that a stage runs in: the compilers' folder, and of a container what it is to keep.

A container is promised to have no capabilities, a file system that nothing is written to but what was given, and for
trainings and evaluations no network. What an engine was told says little of what it does: here each is tried.
"""

import contextlib
import os
import shutil
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil

from essence.distill.proof_checks import Finding
from essence.files import GIB
from essence.settings import Resources

CLOSED = ("docker", "apptainer")
"""Engines that promise it; under pyxis the root of a container can be written, and it has its machine's network."""
LOOPBACK = "lo"
SYSTEM_FOLDERS = (Path("/"), Path("/usr"), Path("/etc"))
"""That an image brings, and that stay as they are."""
SHARED, TEMPORARY = Path("/dev/shm"), Path("/tmp")  # noqa: S108 - looked at, not used
SHARED_SHARE = 0.9
"""Of the shared memory in `[resources]`, the least that is right: a file system keeps some for itself."""
STATUS = Path("/proc/self/status")
QUEUED = "SLURM_JOB_ID"


def place_findings(scratch: Path, engine: str, resources: Resources) -> list[Finding]:
    """Of the compilers' folder, and of the container if a stage runs in one.

    engine: that started the stage; the local one has no container.
    """
    found = [_compilers_folder(scratch)]
    return found if engine == "local" else [*found, container_finding(engine, resources)]


def _compilers_folder(folder: Path) -> Finding:
    """Compilers of kernels keep what they make in the stage's own folder, and load it from there."""
    if runs_programs(folder):
        return Finding("compilers' folder", True, f"programs in {folder} can be run")
    told = f"{folder} is mounted noexec, and kernels are compiled there: name another run directory with --runs"
    return Finding("compilers' folder", False, told)


def container_finding(engine: str, resources: Resources) -> Finding:
    """One line of a container: what is right of it, or what is not; of one that promises less, what it leaves open."""
    left_open = [told for look in (_capabilities, _root, _network) if (told := look())]
    wrong = [told for told in (_temporary(), _shared(resources)) if told]
    wrong += left_open if engine in CLOSED else []
    if wrong:
        cure = "compare with what `invoke run --dry-run` prints for a stage, and with the engine's own configuration"
        return Finding("container", False, f"{'; '.join(wrong)}: {cure}")
    room = f"programs in {TEMPORARY} can be run, {shared_gib():.3g} GiB of shared memory"
    if left_open:
        return Finding("container", True, f"{engine} promises no closed container ({'; '.join(left_open)}); {room}")
    closed = f"user {os.getuid()} without capabilities, the system's folders are read-only, {_networks()}"
    return Finding("container", True, f"{closed}, {room}")


def _capabilities() -> str:
    """Effective ones, as the kernel has them."""
    lines = STATUS.read_text(encoding="ascii").splitlines()
    effective = next((line.split()[1] for line in lines if line.startswith("CapEff:")), "0")
    return f"its processes have capabilities ({effective})" if int(effective, 16) else ""


def _root() -> str:
    written = [str(folder) for folder in SYSTEM_FOLDERS if can_be_written(folder)]
    return f"files can be written in {', '.join(written)}" if written else ""


def _network() -> str:
    """Other interfaces than the loopback; a queue's jobs have the network of their machine, and are told of it."""
    if QUEUED in os.environ:
        return ""
    others = interfaces()
    return f"it has a network ({', '.join(others)})" if others else ""


def _networks() -> str:
    others = interfaces()
    return f"the network of its machine ({', '.join(others)})" if others else "no network"


def interfaces() -> list[str]:
    """Those that are up, but for the loopback. Where tunnels are loaded, Linux gives every new network some that are
    down."""
    return sorted(name for name, state in psutil.net_if_stats().items() if state.isup and name != LOOPBACK)


def _temporary() -> str:
    return "" if runs_programs(TEMPORARY) else f"programs in {TEMPORARY} cannot be run, and libraries compile there"


def _shared(resources: Resources) -> str:
    """Ranks and workers of a library hand over data there."""
    if shared_gib() >= SHARED_SHARE * resources.shm_gib:
        return ""
    return f"{SHARED} has {shared_gib():.3g} GiB, and shm_gib in [resources] is {resources.shm_gib:.3g}"


def shared_gib() -> float:
    """Size of the shared memory; 0 without any."""
    return shutil.disk_usage(SHARED).total / GIB if SHARED.is_dir() else 0.0


def can_be_written(folder: Path) -> bool:
    """Tried with a file that goes again."""
    return _tried(folder, lambda file: file.write_bytes(b""))


def runs_programs(folder: Path) -> bool:
    """Tried with a program that does nothing."""

    def run(file: Path) -> None:
        file.write_text("#!/bin/sh\n", encoding="ascii")
        file.chmod(0o700)
        subprocess.run([str(file)], check=True)

    return _tried(folder, run)


def _tried(folder: Path, work: Callable[[Path], object]) -> bool:
    file = folder / f".proof-{uuid.uuid4().hex}"
    try:
        work(file)
    except (OSError, subprocess.CalledProcessError):
        return False
    finally:
        with contextlib.suppress(OSError):
            file.unlink()
    return True
