"""Start the ranks of a training and handle their ends.

The stage's own process holds the folder, starts one process a rank (`essence/stages/rank.py`) and waits. It passes on
the signals that ask for a stop, ends all ranks when one has died, and says why that one died. On several machines one
process a machine is started by the batch system: each starts the ranks of its machine, and the first of them is the
stage; `MASTER_ADDR`, `MASTER_PORT` and `SLURM_NODEID` (or `NODE_RANK`) say where it is and who they are.

The ranks meet at a store that the first machine's process keeps, on a free port where it is the only machine.
torchrun's agent is not used: it gives a rank 30 seconds to write a checkpoint, and does not report why one has ended.
"""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from essence.distill.rank_variables import rank_variable
from essence.errors import ExitCode, KitError, MachineError, StageError, disk_error
from essence.files import write_json
from essence.progress import PARENT, StageContext, Stopped, StopRequest
from essence.record.outcomes import TrainOutcome
from essence.record.record_files import Written, read_record
from essence.settings import Resources, Spec, TrainSettings

POLL_S = 0.05
RANK = "essence.stages.rank"
LOCALHOST = "127.0.0.1"
REPORTS = "ranks"
"""Folder under `scratch/` where ranks leave their outcome or why they failed."""
OUTCOME = "outcome.json"
HUNG_CURE = "run the command again: it continues from the newest checkpoint; the log names the operation"


class RankFailure(Written):
    """failure-<rank>.json among the reports: what ended a rank."""

    rank: int
    kind: str
    """Name of the exception."""
    message: str
    cure: str | None
    """Of a failure that the user can cure; None of a bug."""
    time: float
    """Unix time."""


@dataclass(frozen=True)
class Node:
    """This machine among those that train together."""

    index: int
    count: int
    address: str
    port: int
    """0 = any free one."""

    @classmethod
    def of(cls, count: int, environment: Mapping[str, str]) -> "Node":
        """Alone, or as the batch system says; MachineError where it does not."""
        if count == 1:
            return cls(0, 1, LOCALHOST, 0)
        index = "SLURM_NODEID" if "SLURM_NODEID" in environment else "NODE_RANK"
        given = {"SLURM_NODEID or NODE_RANK": environment.get(index)} | {
            name: environment.get(name) for name in ("MASTER_ADDR", "MASTER_PORT")
        }
        lacking = [name for name, value in given.items() if not value]
        if lacking:
            raise MachineError(
                f"resources.nodes = {count}, but the environment does not say {', '.join(lacking)}: start one task a "
                "machine through the batch system, or set nodes = 1"
            )
        port = rank_variable(environment, "MASTER_PORT")
        return cls(rank_variable(environment, index), count, environment["MASTER_ADDR"], port)


def helps(spec: Spec, environment: Mapping[str, str]) -> bool:
    """True when this process only helps a stage that another process of the same training is."""
    if spec.stage != "train":
        return False
    if "RANK" in environment:
        return rank_variable(environment, "RANK") > 0
    return spec.resources.nodes > 1 and Node.of(spec.resources.nodes, environment).index > 0


def help_out(spec: Spec, spec_file: Path, stop: StopRequest) -> int:
    """Be a rank, or start those of this machine; returns the exit code."""
    if "RANK" in os.environ:
        from essence.stages.rank import run_rank  # imports torch

        return run_rank(spec_file, stop)
    settings = TrainSettings.model_validate(spec.settings)
    codes = run_here(settings.processes, spec.resources.nodes, spec_file, stop)
    return next((code for code in codes.values() if code), 0)


def check_devices(settings: TrainSettings, resources: Resources) -> None:
    """MachineError unless this machine has a GPU for each of its ranks, where GPUs are asked for."""
    if resources.gpus == 0:
        return
    import torch

    needed = -(-settings.processes // resources.nodes)
    if resources.gpus < needed:
        raise MachineError(
            f"processes = {settings.processes} on {resources.nodes} machines need {needed} GPUs each, but "
            f"resources.gpus = {resources.gpus}: raise gpus or nodes, or lower processes"
        )
    if torch.cuda.device_count() < needed:
        raise MachineError(
            f"processes = {settings.processes} need {needed} GPUs on this machine, but PyTorch {torch.__version__} "
            f"sees {torch.cuda.device_count()}: give the stage more GPUs, or lower processes"
        )


def starts_ranks(spec: Spec, environment: Mapping[str, str]) -> bool:
    """True when this process is the stage of a training whose ranks are processes of their own."""
    return spec.stage == "train" and "RANK" not in environment and spec.settings["parallel"] != "single"


def run_ranks(settings: TrainSettings, context: StageContext) -> TrainOutcome:
    """Train with as many processes as the settings say; the outcome is that of the first rank.

    Raises:
        Stopped: asked for; a checkpoint is in `scratch/`.
        KitError: what a rank has raised, or that it was killed.
        RuntimeError: a bug in a rank; its traceback is in the log.
    """
    check_devices(settings, context.resources)
    reports = fresh_reports(context)
    spec_file = context.partial.parent / "spec.json"
    codes = run_here(settings.processes, context.resources.nodes, spec_file, context.stop)
    if stopped(codes, context.stop):
        raise Stopped(context.stop.signal_name or "a signal to a rank")
    if any(codes.values()):
        raise why_ended(codes, settings.processes, reports)
    return read_record(reports / OUTCOME, TrainOutcome, "an outcome")


def fresh_reports(context: StageContext) -> Path:
    """The folder where processes of a stage leave what they found, without what earlier ones left."""
    reports = context.scratch / REPORTS
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir(parents=True)
    return reports


def stopped(codes: Mapping[int, int], stop: StopRequest) -> bool:
    """True when ranks ended because they were asked to: with a checkpoint, or before they could know of signals."""
    asked = (ExitCode.STOPPED, -signal.SIGTERM) if stop else (ExitCode.STOPPED,)
    return any(codes.values()) and all(code in (0, *asked) for code in codes.values())


def run_here(
    processes: int,
    nodes: int,
    spec_file: Path,
    stop: StopRequest,
    program: str = RANK,
    variables: Mapping[str, str] | None = None,
) -> dict[int, int]:
    """Run this machine's ranks to their end: rank -> exit code. When one fails, the others are ended.

    variables: more that is told to each rank.
    """
    from torch.distributed import TCPStore

    if processes % nodes:
        raise MachineError(f"processes = {processes} cannot be shared evenly among resources.nodes = {nodes}")
    machine, here = Node.of(nodes, os.environ), processes // nodes
    first = machine.index == 0
    store = TCPStore(machine.address, machine.port, is_master=True, wait_for_workers=False) if first else None
    port = store.port if store else machine.port
    ranks: dict[int, subprocess.Popen[bytes]] = {}
    try:
        for local in range(here):
            told = {
                "RANK": machine.index * here + local,
                "LOCAL_RANK": local,
                "WORLD_SIZE": processes,
                "LOCAL_WORLD_SIZE": here,
                "MASTER_ADDR": machine.address,
                "MASTER_PORT": port,
                PARENT: os.getpid(),
            }
            ranks[machine.index * here + local] = _start(
                program, spec_file, {**(variables or {}), **{name: str(value) for name, value in told.items()}}
            )
        return _wait(ranks, stop)
    finally:
        for process in ranks.values():
            process.kill()
            process.wait()


def _start(program: str, spec_file: Path, told: dict[str, str]) -> subprocess.Popen[bytes]:
    fixed = {
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is there already, for the first rank too
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # DDP warns of find_unused_parameters, which is meant
    }
    environment = {**os.environ, **fixed, **told}
    return subprocess.Popen(
        [sys.executable, "-m", program, "--spec", str(spec_file)],
        stdin=subprocess.DEVNULL,
        env=environment,
    )


def _wait(ranks: dict[int, subprocess.Popen[bytes]], stop: StopRequest) -> dict[int, int]:
    """Exit codes, as soon as all have ended or one has failed."""
    told = False
    while True:
        if stop and not told:
            told = True
            for process in ranks.values():
                process.send_signal(signal.SIGTERM)
        codes = {rank: code for rank, process in ranks.items() if (code := process.poll()) is not None}
        if len(codes) == len(ranks) or any(code not in (0, ExitCode.STOPPED) for code in codes.values()):
            return codes
        time.sleep(POLL_S)


def report_failure(error: Exception, rank: int, reports: Path) -> None:
    """Leave what ended a process for the one that started it; the traceback of a bug is in the log, too."""
    curable = error if isinstance(error, KitError) else None
    if curable is None:
        traceback.print_exception(error)
    failure = RankFailure(
        rank=rank,
        kind=type(error).__name__,
        message=curable.problem if curable else "".join(traceback.format_exception(error)[-3:]).strip(),
        cure=curable.cure if curable else None,
        time=time.time(),
    )
    try:
        reports.mkdir(parents=True, exist_ok=True)
        write_json(reports / f"failure-{rank:05d}.json", failure.model_dump(mode="json"))
    except OSError:  # a full disk may not even take the reason; whoever reads the log is told, if that can be written
        traceback.print_exception(error)


def why_ended(codes: dict[int, int], processes: int, reports: Path) -> Exception:
    """The failure that came first: a rank that was killed, else the one that could say why, else a bug."""
    killed = {rank: -code for rank, code in codes.items() if code < 0}
    if killed:
        rank, number = next(iter(killed.items()))
        hint = " (out of memory?)" if number == signal.SIGKILL else ""
        cure = ""
        if number == signal.SIGABRT:  # as NCCL's watchdog ends a process, which gives its reason to the log alone
            hint, cure = " (did a GPU of another rank hang?)", HUNG_CURE
        return StageError(f"rank {rank} of {processes} was killed by {signal.Signals(number).name}{hint}", cure)
    failures = [read_record(path, RankFailure, "a failure") for path in reports.glob("failure-*.json")]
    if not failures and ExitCode.CURABLE in codes.values():
        # It had a sentence, and no place to write it to.
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(reports))
        return disk_error(full, reports) or full
    if not failures:
        return RuntimeError(f"ranks ended with {codes} and did not say why; the log may")
    first = min(failures, key=lambda failure: (failure.cure is None, failure.time))
    if first.cure is None:
        return RuntimeError(f"rank {first.rank} of {processes}: {first.message}")
    kinds = {kind.__name__: kind for kind in _all_kinds(KitError)}
    return kinds.get(first.kind, StageError)(first.message, first.cure)


def _all_kinds(kind: type[KitError]) -> list[type[KitError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in _all_kinds(child))]
