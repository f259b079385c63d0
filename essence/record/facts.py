"""Facts about code, software and hardware, as far as a process can tell. Nothing secret: variables by allow-list."""

import contextlib
import functools
import importlib.metadata
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import psutil

from essence import __version__
from essence.files import GIB, sha256_file, sha256_text
from essence.record.manifest import Gpu, Hardware, Software

VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "HF_HUB_OFFLINE",
    "LANG",
    "MKL_NUM_THREADS",
    "NVIDIA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "OPENBLAS_CORETYPE",
    "PYTHONHASHSEED",
    "TOKENIZERS_PARALLELISM",
)
SCHEDULER_VARIABLES = (
    "SLURM_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_JOB_PARTITION",
    "SLURM_CLUSTER_NAME",
    "SLURM_NODELIST",
)
GPU_QUERY = "index,name,uuid,memory.total,driver_version"
QUERY_TIMEOUT_S = 20


CodeFacts = dict[str, str | bool | None]
"""Version, commit, dirty flag and hash of the uncommitted changes, as `Spec.code` has them."""


def lock_file() -> Path:
    """The lock that the running environment was made from, as its installation left it; it may be absent."""
    return Path(sys.prefix) / "essence-lock.txt"


def lock_sha256() -> str:
    """Identity of the running environment: its lock file, or without one the list of its packages."""
    lock = lock_file()
    if lock.is_file():
        return sha256_file(lock)
    return sha256_text("".join(f"{name}=={version}\n" for name, version in sorted(packages().items())))


def layer_lock_sha256(layer: str) -> str | None:
    """Lock of a layer on top of the environment, as locks/install.sh notes it; None = not installed."""
    lock = Path(sys.prefix) / f"essence-{layer}.txt"
    return sha256_file(lock) if lock.is_file() else None


def torch_version() -> str | None:
    """The torch that is installed here, as in 2.13.0+cpu; None without one."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version("torch")
    return None


@functools.cache
def packages() -> dict[str, str]:
    """Installed distributions and their versions."""
    return {d.metadata["Name"]: d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}


def software() -> Software:
    """What runs here."""
    return Software(
        lock_sha256=lock_sha256(),
        python=platform.python_version(),
        platform=platform.platform(),
        packages=dict(sorted(packages().items())),
        variables={name: os.environ[name] for name in VARIABLES if name in os.environ},
    )


def hardware(threads: int) -> Hardware:
    """What it runs on."""
    gpus = query_gpus()
    torch = sys.modules.get("torch")
    cuda = bool(torch and torch.cuda.is_available())
    return Hardware(
        # A container has a name of its own; whoever started it knows the machine's.
        host=os.environ.get("ESSENCE_HOST") or socket.gethostname(),
        cpu=processor_name(),
        cpu_count=os.cpu_count(),
        threads=threads,
        memory_gib=round(psutil.virtual_memory().total / GIB, 2),
        gpus=gpus,
        driver=gpus[0].driver_version if gpus else None,
        cuda=torch.version.cuda if torch and cuda else None,
        nccl=".".join(str(n) for n in torch.cuda.nccl.version()) if torch and cuda else None,
        scheduler={name: os.environ[name] for name in SCHEDULER_VARIABLES if name in os.environ},
    )


@functools.cache
def query_gpus() -> list[Gpu]:
    """One record per GPU, as nvidia-smi reports it; empty where there is none."""
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", f"--query-gpu={GPU_QUERY}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=QUERY_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        # A driver that hangs has no GPU to give.
        return []
    if done.returncode:
        return []
    rows = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
    return [_gpu(row) for row in rows if len(row) == len(GPU_QUERY.split(",")) and row[0].isdigit()]


def _gpu(row: list[str]) -> Gpu:
    """A row; lines that tell of something else, warnings say, are none. `[N/A]`: the driver does not say."""
    found = dict(zip(GPU_QUERY.split(","), row, strict=True))
    facts = {name: value for name, value in found.items() if name != "memory.total"}
    memory = found["memory.total"]
    gib = round(float(memory) / 1024, 2) if re.fullmatch(r"[0-9.]+", memory) else None
    return Gpu.model_validate({**facts, "memory_gib": gib})


def processor_name() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)


def code_facts(project: Path) -> tuple[CodeFacts, str]:
    """(version, commit, dirty flag and diff hash; the diff itself). Nulls where there is no git or no checkout."""
    facts: CodeFacts = {"version": __version__, "commit": None, "dirty": None, "diff_sha256": None}
    commit = _git(project, "rev-parse", "HEAD")
    if commit is None:
        return facts, ""
    diff = _git(project, "diff", "HEAD", "--", ".") or ""
    untracked = _git(project, "ls-files", "--others", "--exclude-standard") or ""
    diff += "".join(f"untracked: {name} {_content(project / name)}\n" for name in untracked.splitlines())
    facts.update(commit=commit.strip(), dirty=bool(diff), diff_sha256=sha256_text(diff) if diff else None)
    return facts, diff


def _content(path: Path) -> str:
    """Hash of a file; of a link where it leads, as git has it; nothing of a folder with a repository of its own."""
    if path.is_symlink():
        return f"-> {path.readlink()}"
    return sha256_file(path) if path.is_file() else "no file"


def _git(project: Path, *arguments: str) -> str | None:
    if not shutil.which("git"):
        return None
    command = ["git", "-C", str(project), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_TIMEOUT_S, check=False)
    return done.stdout if done.returncode == 0 else None
