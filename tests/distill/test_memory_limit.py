"""The memory that a CPU training may take: of the machine, or what a control group or an engine leaves of it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch

from essence import memory_limit
from essence.distill.devices import memory_bytes
from essence.memory_limit import VARIABLE, memory_limit_bytes
from support.container_launch import RESOURCES, surroundings_of

CPU = torch.device("cpu")
MIB = 1 << 20
UNLIMITED = "9223372036854771712\n"
"""In the file of the first version."""
ASK = "import torch; from essence.distill.devices import memory_bytes; print(memory_bytes(torch.device('cpu')))"


def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, limits: dict[str, str]) -> None:
    """Control groups: the process's own, as /proc says, and the files of limits below /sys/fs/cgroup."""
    monkeypatch.delenv(VARIABLE, raising=False)
    (tmp_path / "cgroup").write_text(own, encoding="utf-8")
    for name, text in limits.items():
        file = tmp_path / "fs" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    monkeypatch.setattr(memory_limit, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory_limit, "ROOT", tmp_path / "fs")


@pytest.mark.parametrize(
    ("own", "limits", "found"),
    [
        pytest.param("0::/\n", {"memory.max": "1048576\n"}, MIB, id="a container, version 2"),
        pytest.param("0::/\n", {"memory.max": "max\n"}, None, id="none, version 2"),
        pytest.param(
            "0::/job/step\n",
            {"job/step/memory.max": "max\n", "job/memory.max": f"{2 * MIB}\n"},
            2 * MIB,
            id="a job of Slurm, whose limit is that of a group above",
        ),
        pytest.param(
            "9:name=systemd:/docker/0\n4:memory:/docker/0\n0::/docker/0\n",
            {"memory/memory.limit_in_bytes": f"{3 * MIB}\n"},
            3 * MIB,
            id="a container, version 1",
        ),
        pytest.param(
            "5:cpu,cpuacct:/\n4:memory:/slurm/job\n",
            {"memory/slurm/job/memory.limit_in_bytes": f"{MIB}\n", "memory/memory.limit_in_bytes": UNLIMITED},
            MIB,
            id="a job of Slurm, version 1",
        ),
        pytest.param("4:memory:/apptainer/7\n0::/apptainer/7\n", {}, None, id="Apptainer, which shows no groups"),
    ],
)
def test_the_limit_of_a_group_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, limits: dict[str, str], found: int | None
) -> None:
    groups(tmp_path, monkeypatch, own, limits)
    assert memory_limit_bytes() == found
    assert memory_bytes(CPU) == (found or psutil.virtual_memory().total)


def test_without_a_limit_it_is_the_memory_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups(tmp_path, monkeypatch, "4:memory:/\n", {"memory/memory.limit_in_bytes": UNLIMITED})
    assert memory_bytes(CPU) == psutil.virtual_memory().total
    monkeypatch.setattr(memory_limit, "GROUPS", tmp_path / "absent")
    assert memory_limit_bytes() is None


def test_the_limit_that_an_engine_has_set_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the container shows none, or one above it that is larger."""
    groups(tmp_path, monkeypatch, "0::/\n", {"memory.max": f"{4 * MIB}\n"})
    around = surroundings_of(tmp_path, resources=RESOURCES.model_copy(update={"memory_gib": 0.001}))
    told = around.contained_variables()[VARIABLE]
    monkeypatch.setenv(VARIABLE, told)
    assert memory_bytes(CPU) == int(told) == int(0.001 * 1024 * MIB)
    monkeypatch.setenv(VARIABLE, str(8 * MIB))
    assert memory_bytes(CPU) == 4 * MIB
    assert VARIABLE not in surroundings_of(tmp_path).contained_variables()


@contextmanager
def limited(limit: int) -> Iterator[Path]:
    """A group of this machine with a limit; its file of processes."""
    first, second = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    root, name = (first, "memory.limit_in_bytes") if first.is_dir() else (second, "memory.max")
    group = root / f"essence-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"this user makes no control groups: {error}")
    try:
        (group / name).write_text(str(limit), encoding="ascii")
        yield group / "cgroup.procs"
    except OSError as error:
        pytest.skip(f"this user limits no memory: {error}")
    finally:
        group.rmdir()


def test_a_process_sees_the_limit_of_its_real_group() -> None:
    limit = 1 << 30
    with limited(limit) as processes:
        line = f'echo $$ > {processes} && exec {sys.executable} -c "{ASK}"'
        done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == limit
