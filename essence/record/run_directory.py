"""The only place that knows where things are in a run directory, who holds them, and how they become finished.

A stage's folder is finished when `manifest.json` is there: output is made under `partial/`, renamed to `output/`, and
the manifest is written last. Everything else can be lost at any moment.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from essence.errors import HeldError, MachineError
from essence.files import canonical_json, flush_to_disk, sha256_text, write_json
from essence.record.live_records import Holder, ProgressRecord, look_at

State = Literal["done", "running", "queued", "failed", "interrupted", "left"]
"""`queued`: a scheduler has it and has not started it; no look at the files tells that."""
KEY_DIGITS = 16
HOLDER_SILENT_S = 120.0
LOCK_POLL_S = 0.1
PROOFS = "prove"
"""Folder of what `invoke prove` has measured: a run directory of its own, of which no experiment knows."""
COMPILED = "compiled"
RESERVED = {
    "stages",
    "code",
    "experiments",
    "locks",
    "report",
    "cards",
    "lock",
    "holder.json",
    "export.json",
    PROOFS,
    COMPILED,
} | {
    "sha256sums",
    "ro-crate-metadata.json",
}
"""Names, in lower case, of what is in a run directory, in an archive of one, or in an experiment's folder."""
EVALUATION = "evaluate-"
"""How the names of what `invoke evaluate` runs begin."""


def is_reserved(name: str) -> bool:
    """True when no experiment may have this name. Case does not tell names apart: on some disks it does not."""
    return name.casefold() in RESERVED or name.casefold().startswith(EVALUATION)


@dataclass(frozen=True)
class StageFolder:
    """One stage's folder."""

    path: Path

    @property
    def spec(self) -> Path:
        return self.path / "spec.json"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def progress(self) -> Path:
        return self.path / "progress.json"

    @property
    def attempts(self) -> Path:
        return self.path / "attempts.jsonl"

    @property
    def failure(self) -> Path:
        return self.path / "failure.json"

    @property
    def jobs(self) -> Path:
        """Ids of its jobs under a scheduler, and how each ended."""
        return self.path / "jobs.jsonl"

    @property
    def given_gpus(self) -> Path:
        """Which GPUs of this machine the last attempt was given, where it asked for any."""
        return self.path / "gpus.json"

    @property
    def partial(self) -> Path:
        return self.path / "partial"

    @property
    def scratch(self) -> Path:
        return self.path / "scratch"

    @property
    def output(self) -> Path:
        return self.path / "output"

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"

    @property
    def done(self) -> bool:
        return self.manifest.is_file()

    def open_partial(self) -> None:
        """Make `partial/` ready; an output that was renamed but never recorded goes back to it."""
        if self.output.exists() and not self.done:
            shutil.rmtree(self.partial, ignore_errors=True)
            self.output.rename(self.partial)
        self.partial.mkdir(parents=True, exist_ok=True)

    def commit(self) -> None:
        """Make what is in `partial/` durable and give it its final name."""
        for file in self.partial.rglob("*"):
            if file.is_file():
                flush_to_disk(file)
        self.partial.rename(self.output)
        flush_to_disk(self.path)

    def state(self) -> State:
        """What a look at the files tells; never takes a lock."""
        if self.done:
            return "done"
        if holder_alive(self.path):
            return "running"
        if self.failure.is_file():
            return "failed"
        return "interrupted" if self.attempts.is_file() else "left"

    def progress_record(self) -> ProgressRecord | None:
        """How far the stage is; None while it has not said so."""
        return look_at(self.progress, ProgressRecord)


@dataclass(frozen=True)
class RunDirectory:
    """A run directory: stages shared by experiments, and a folder for each experiment."""

    root: Path

    @property
    def stages(self) -> Path:
        return self.root / "stages"

    @property
    def code(self) -> Path:
        """Diffs of uncommitted code that a stage was started with, by sha256."""
        return self.root / "code"

    @property
    def queueing(self) -> Path:
        """Held while jobs are queued, or while stages are removed."""
        return self.root / ".queueing"

    @property
    def proofs(self) -> "RunDirectory":
        """What `invoke prove` has measured of machines."""
        return RunDirectory(self.root / PROOFS)

    @property
    def all_compiled(self) -> Path:
        """What decoders have compiled, a folder for each environment."""
        return self.root / COMPILED

    def compiled(self, environment: Mapping[str, str]) -> Path:
        """What a decoder of this environment has compiled: kept from one start to the next, no part of any result."""
        return self.all_compiled / sha256_text(canonical_json(dict(environment)))[:KEY_DIGITS]

    def stage(self, stage_id: str) -> StageFolder:
        return StageFolder(self.stages / stage_id)

    def experiment(self, name: str) -> Path:
        return self.root / name

    def plan(self, name: str) -> Path:
        return self.experiment(name) / "plan.json"

    def resolved(self, name: str) -> Path:
        return self.experiment(name) / "experiment.json"

    def report(self, name: str) -> Path:
        return self.experiment(name) / "report"

    def experiments(self) -> list[str]:
        """Names of the experiments that have a plan here."""
        return [name for name in self.planned() if name.casefold() not in RESERVED]

    @property
    def last_run(self) -> Path:
        """Names the experiment that was run last."""
        return self.root / "last.json"

    def planned(self) -> list[str]:
        """Names of all folders that have a plan, those of earlier versions too, which took any name."""
        return sorted(p.parent.name for p in self.root.glob("*/plan.json") if not p.parent.name.startswith("."))


def stage_id(stage: str, key: str) -> str:
    """Folder name of a stage: `train-3fa9c1d2e4b5a697`."""
    return f"{stage}-{key[:KEY_DIGITS]}"


@contextlib.contextmanager
def hold(
    folder: Path, what: str, command: str, wait_s: float = 0.0, look: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Hold a folder while working in it; HeldError says who has it. The kernel lets go when the holder dies.

    `look` is called again and again while waiting, and may raise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock", what, wait_s, look):
        try:
            holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time(), "command": command}
            # In a container numbers of processes mean others than outside.
            holder["pid_namespace"] = _pid_namespace()
            write_json(folder / "holder.json", holder)
            yield
        finally:
            with contextlib.suppress(OSError):  # whoever reads it finds that its process is gone
                (folder / "holder.json").unlink()


@contextlib.contextmanager
def locked(file: Path, what: str, wait_s: float, look: Callable[[], None]) -> Iterator[None]:
    """Have the kernel's lock on a file; MachineError where its file system has none."""
    deadline = time.monotonic() + wait_s
    while (descriptor := _try_lock(file, what)) is None:
        look()
        if time.monotonic() >= deadline:
            raise HeldError(f"{what} is held by {describe_holder(file.parent)}", "wait for it, or stop it")
        time.sleep(LOCK_POLL_S)
    try:
        yield
    finally:
        os.close(descriptor)


def _try_lock(file: Path, what: str) -> int | None:
    """The open file, locked; None where another process has it, or has just removed it."""
    # Whom the umask lets write may lock, too.
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if file.exists() and os.path.samestat(file.stat(), os.fstat(descriptor)):
            return descriptor
    except BlockingIOError:
        pass
    except OSError as error:
        os.close(descriptor)
        name = errno.errorcode.get(error.errno or 0, "unknown error")
        raise MachineError(
            f"{what}: {file} cannot be locked ({name}: {error.strerror}), and without locks two runs could write the "
            "same files",
            "name a run directory on another file system with --runs, or mount this one with locks (Lustre: -o flock)",
        ) from None
    os.close(descriptor)
    return None


def describe_holder(folder: Path) -> str:
    """Who holds a folder, for a message."""
    holder = look_at(folder / "holder.json", Holder)
    if holder is None:
        return "another process"
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.since))
    return f"process {holder.pid} on {holder.host} since {since} ({holder.command})"


def held_from_here(folder: Path) -> bool:
    """Whether the process that last held a folder is one of this machine."""
    holder = look_at(folder / "holder.json", Holder)
    return holder is not None and holder.host == socket.gethostname()


def holder_alive(folder: Path) -> bool:
    """Whether the process that last held a folder still lives; elsewhere, whether it was heard of lately."""
    holder = look_at(folder / "holder.json", Holder)
    if holder is None:
        return False
    if holder.host != socket.gethostname() or holder.pid_namespace not in (None, _pid_namespace()):
        progress = look_at(folder / "progress.json", ProgressRecord)
        # It may still be that of an earlier holder.
        heard = max(holder.since, progress.updated) if progress else holder.since
        return time.time() - heard < HOLDER_SILENT_S
    try:
        # A process with this number that started after the folder was taken is another one.
        return bool(psutil.Process(holder.pid).create_time() <= holder.since)
    except (psutil.Error, OverflowError, ValueError):
        return False


def _pid_namespace() -> str | None:
    """Where numbers of processes mean the same; None where there is only one such place (not Linux)."""
    with contextlib.suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return None
