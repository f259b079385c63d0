"""A Slurm of one node, or of two on one machine: no munge, no systemd, nothing in /etc; stand-in GPUs."""

import os
import re
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from support.containers import START_TIMEOUT_S, lacking, need, set_variables
from support.session_folders import marked, session_folder

STAND_INS = ("/dev/null", "/dev/zero")
"""Character devices that Slurm hands out as GPUs."""

CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={controller_port}
# Sessions at the same time share one tree of control groups, in which a job has its number.
FirstJobId={first_job}
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType={track}
TaskPlugin={task}
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
MpiDefault=none
EnforcePartLimits=ALL
ReturnToService=2
KillWait=5
MinJobAge=3600
JobRequeue=1
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,sched_min_interval=0,batch_sched_delay=0
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobs.txt
GresTypes=gpu
# More cores than there are: jobs that only wait keep nothing from those that work.
SlurmdParameters=config_overrides
PartitionName=tests Nodes=ALL Default=YES MaxTime=INFINITE DefMemPerCPU=512 State=UP
PartitionName=closed Nodes=ALL AllowAccounts=others State=UP
"""
NODE = (
    "NodeName={name} NodeAddr=127.0.0.1 NodeHostname={host} Port={port} "
    "CPUs={cpus} RealMemory={memory_mib} {gpus}State=UNKNOWN\n"
)
STEP = re.compile(r"^slurmstepd: \[(\d+)\.")
TWO_NODES = ("127.0.0.1", "127.0.0.2")
"""Names that lead to this machine, as the ranks of a training on several nodes ask for the first by its name."""
CGROUPS = """\
CgroupPlugin=cgroup/v1
CgroupAutomount=no
ConstrainRAMSpace=yes
ConstrainSwapSpace=no
ConstrainCores=no
ConstrainDevices=no
"""


@dataclass(frozen=True)
class SlurmNode:
    """A running Slurm; its variables are set for the session."""

    folder: Path
    variables: dict[str, str]


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmNode]:
    """One node with two stand-in GPUs."""
    need("slurm", lacking("slurmctld", "slurmd", "sbatch"))
    with started_node() as node, set_variables(node.variables):
        yield node


@contextmanager
def started_node(names: tuple[str, ...] = ()) -> Iterator[SlurmNode]:
    """Controller and nodes as children of this process: one that has the machine's name, or those of these names."""
    with session_folder("slurm-") as folder:
        folder.chmod(0o755)
        (folder / "state").mkdir()
        write_configuration(folder, names)
        variables = {"SLURM_CONF": str(folder / "slurm.conf")}
        nodes = names or (host_name(),)
        commands = [
            ["slurmctld", "-D", "-c", "-f", f"{folder}/slurm.conf"],
            *(["slurmd", "-D", "-c", "-N", name] for name in nodes),
        ]
        daemons = []
        try:
            for command in commands:
                with (folder / f"{command[0]}-{command[-1].rpartition('/')[2]}.log").open("wb") as log:
                    process = subprocess.Popen(command, stdout=log, stderr=log, env={**marked(folder), **variables})
                    daemons.append(process)
            wait_until_idle(variables, folder, len(nodes))
            try:
                yield SlurmNode(folder, variables)
            finally:
                end_jobs(variables)
        finally:
            for process in reversed(daemons):
                process.terminate()
                process.wait(START_TIMEOUT_S)


def end_jobs(variables: dict[str, str]) -> None:
    """Cancel every job and wait for its steps: they are no children of the daemons, and outlive them."""
    environment = {**os.environ, **variables}

    def jobs(states: str) -> set[str]:
        command = ["squeue", "--noheader", f"--states={states}", "--format=%A"]
        return set(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split())

    known = jobs("all")
    subprocess.run(["scancel", f"--user={psutil.Process().username()}"], env=environment, check=True)
    deadline = time.monotonic() + START_TIMEOUT_S
    while (left := jobs("pending,running,suspended,completing")) or steps_of(known):
        assert time.monotonic() < deadline, f"jobs {left} are still in the queue, or steps are left: {steps_of(known)}"
        time.sleep(0.1)


def steps_of(jobs: set[str]) -> list[psutil.Process]:
    """The processes by which Slurm runs steps of these jobs, as `slurmstepd: [4448802.batch]`."""
    steps = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            told = STEP.search(" ".join(process.cmdline()))
            steps += [process] if told and told[1] in jobs else []
    return steps


def write_configuration(folder: Path, names: tuple[str, ...]) -> None:
    # With the first version of cgroups and root, memory limits are real; two nodes would share them.
    cgroups = not names and os.access("/sys/fs/cgroup/memory", os.W_OK) and os.access("/sys/fs/cgroup/freezer", os.W_OK)
    text = CONFIGURATION.format(
        host=host_name(),
        user=psutil.Process().username(),
        controller_port=free_port(),
        first_job=secrets.randbelow(600_000) * 100 + 1,
        folder=folder,
        track="proctrack/cgroup" if cgroups else "proctrack/linuxproc",
        task="task/cgroup" if cgroups else "task/none",
    )
    memory_mib = int(psutil.virtual_memory().total / 2**20 * 0.9)
    for name in names or (host_name(),):
        gpus = "" if names else f"Gres=gpu:h100:{len(STAND_INS)} "
        cpus = max(8, os.cpu_count() or 1)
        text += NODE.format(
            name=name, host=host_name(), port=free_port(), cpus=cpus, memory_mib=memory_mib // 2, gpus=gpus
        )
    (folder / "slurm.conf").write_text(text, encoding="utf-8")
    (folder / "cgroup.conf").write_text(CGROUPS, encoding="utf-8")
    if not names:
        gpus = [f"NodeName={host_name()} Name=gpu Type=h100 File={file} Flags=nvidia_gpu_env\n" for file in STAND_INS]
        (folder / "gres.conf").write_text("".join(gpus), encoding="utf-8")


def let_go(job: str) -> None:
    """Let a job that was queued again start after three seconds, where Slurm holds it back for two minutes.

    It must not be at once: the node may not be done with what went before, whose end would be taken for the new one's.
    """
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now+3seconds"], check=True)


def host_name() -> str:
    return re.split(r"\.", socket.gethostname())[0]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_idle(variables: dict[str, str], folder: Path, nodes: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        command = ["sinfo", "--noheader", "--Node", "--partition=tests", "--format=%T"]
        state = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True).stdout
        if state.split() == ["idle"] * nodes:
            return
        logs = "".join(log.read_text(errors="replace")[-2000:] for log in folder.glob("*.log"))
        assert time.monotonic() < deadline, f"Slurm did not come up: {logs}"
        time.sleep(0.1)
