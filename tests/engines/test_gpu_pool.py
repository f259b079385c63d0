"""No GPU is ever given twice: not to two stages, not to two runs, and not after a host was killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pytest

from essence.engines.engine import surroundings
from essence.engines.gpu_pool import HELD, GpuPool
from essence.engines.local import variables
from essence.errors import MachineError
from essence.record.facts import query_gpus
from essence.record.run_directory import RunDirectory
from support.gpu_host import matrix, run
from support.gpu_machine import install_gpus
from support.project import PROJECT

EIGHT = {str(number): f"a test of {os.getpid()}: {number}" for number in range(8)}
HOLDING = """
import os, subprocess, sys
from pathlib import Path
from essence.engines.gpu_pool import GpuPool
taken = GpuPool(dict([("0", sys.argv[1]), ("1", sys.argv[1] + "b")])).take(2, Path("/a"))
child = subprocess.Popen(["sleep", "600"], pass_fds=taken.descriptors)
print(child.pid, flush=True)
child.wait()
"""


@dataclass(frozen=True)
class Use:
    """Of one process: its GPUs, from when to when."""

    stage: str
    begin_s: float
    end_s: float
    gpus: frozenset[str]


def uses(log: Path) -> list[Use]:
    """What the stages wrote down; each that began has ended."""
    begun: dict[str, tuple[str, float, frozenset[str]]] = {}
    found = []
    for line in log.read_text().splitlines():
        word, name, process, at, *gpus = line.split()
        if word == "begin":
            begun[process] = (name, float(at), frozenset(",".join(gpus).split(",")) - {""})
        else:
            _, began, had = begun.pop(process)
            found.append(Use(name, began, float(at), had))
    assert not begun
    return found


def overlapping(found: list[Use]) -> list[tuple[Use, Use]]:
    return [(a, b) for a, b in combinations(found, 2) if a.begin_s < b.end_s and b.begin_s < a.end_s]


def test_two_stages_have_disjoint_gpus_and_grading_goes_on_beside_them(tmp_path: Path) -> None:
    stages = matrix(4, 4)
    assert run(tmp_path, stages, 8, meets=True).complete
    found = uses(tmp_path / "log")
    assert sorted(use.stage for use in found) == sorted(stage.id for stage in stages)
    beside = overlapping(found)
    assert not any(a.gpus & b.gpus for a, b in beside)
    assert any(len(a.gpus) == len(b.gpus) == 4 for a, b in beside)
    assert any({len(a.gpus), len(b.gpus)} == {0, 4} for a, b in beside)
    for use in (use for use in found if use.gpus):
        told = json.loads((tmp_path / "stages" / use.stage / "gpus.json").read_text())
        assert set(told["names"]) == use.gpus


def test_gpus_that_do_not_suffice_for_two_run_one_stage_at_a_time(tmp_path: Path) -> None:
    assert run(tmp_path, matrix(3, 4), 7).complete
    assert not any(a.gpus and b.gpus for a, b in overlapping(uses(tmp_path / "log")))


@pytest.mark.parametrize(("each_gib", "at_once"), [(40.0, True), (60.0, False)])
def test_stages_at_once_share_the_main_memory(tmp_path: Path, each_gib: float, at_once: bool) -> None:
    stages = matrix(3, 4)
    expected = {stage.id: each_gib for stage in stages if stage.resources.gpus}
    assert run(tmp_path, stages, 8, 100.0, expected, meets=at_once).complete
    assert any(a.gpus and b.gpus for a, b in overlapping(uses(tmp_path / "log"))) == at_once


@pytest.mark.parametrize(("cores", "at_once"), [(2.0, True), (1.5, False)])
def test_stages_at_once_share_the_cores(tmp_path: Path, cores: float, at_once: bool) -> None:
    """Each of these takes one; a stage without GPUs waits for none."""
    assert run(tmp_path, matrix(3, 4), 8, meets=at_once, cores=cores).complete
    beside = overlapping(uses(tmp_path / "log"))
    assert any(a.gpus and b.gpus for a, b in beside) == at_once


@pytest.mark.parametrize("turn", range(3))
def test_a_host_killed_at_a_random_moment_leaves_no_gpu_taken_twice(tmp_path: Path, turn: int) -> None:
    """Its stages outlive it here, and the next host waits for their GPUs."""
    command = [sys.executable, "-m", "support.gpu_host", str(tmp_path)]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT), str(PROJECT / "tests")])}
    for wait_s in random.Random(turn).sample([0.1, 0.3, 0.5, 0.7, 0.9], 2):
        with subprocess.Popen(command, env=variables) as host:
            while not (tmp_path / "log").exists() and host.poll() is None:
                time.sleep(0.02)
            time.sleep(wait_s)
            host.send_signal(signal.SIGKILL)
    assert subprocess.run(command, env=variables, timeout=120).returncode == 0
    found = uses(tmp_path / "log")
    assert not any(a.gpus & b.gpus for a, b in overlapping(found))
    assert {use.stage for use in found} == {stage.id for stage in matrix(6, 4)}


def test_what_a_killed_host_has_started_goes_on_to_hold_its_gpus() -> None:
    name = f"a test of {os.getpid()}"
    command = [sys.executable, "-c", HOLDING, name]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(PROJECT)}
    ) as host:
        child = int(host.stdout.readline())  # type: ignore[union-attr]
        pool = GpuPool({"0": name, "1": f"{name}b", "2": f"{name}c"})
        try:
            assert pool.take(2, Path("/b")) is None
            host.kill()
            host.wait()
            assert pool.take(2, Path("/b")) is None
        finally:
            os.kill(child, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while (taken := pool.take(3, Path("/b"))) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    taken.leave()


WITHOUT_FILES = """
import os, subprocess, sys
from pathlib import Path
from essence.engines.gpu_pool import GpuPool
taken = GpuPool(dict([("0", sys.argv[1]), ("1", sys.argv[1] + "b")])).take(1, Path("/a"))
child = subprocess.Popen(["sleep", "600"], env={**os.environ, **taken.variables()}, start_new_session=True)
print(child.pid, flush=True)
child.wait()
"""


def test_what_a_stage_has_started_holds_its_gpus_without_an_open_file() -> None:
    """A rank, a worker of a library, or a container whose host is gone: all have the stage's environment."""
    name = f"a test of {os.getpid()}: child"
    command = [sys.executable, "-c", WITHOUT_FILES, name]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as host:
        child = int(host.stdout.readline())  # type: ignore[union-attr]
        host.kill()
        host.wait()
    pool = GpuPool({"0": name, "1": f"{name}b"})
    try:
        assert pool.take(2, Path("/b")) is None and pool.take(1, Path("/a")).names == ("1",)  # type: ignore[union-attr]
        own = GpuPool({"0": name}, lambda: {name: Path("/a")}).take(1, Path("/a"))
        assert own and own.names == ("0",), "the stage whose container it is takes it over"
        own.leave()
    finally:
        os.kill(child, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while (taken := pool.take(1, Path("/b"))) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert taken.names == ("0",)


def test_a_stage_knows_itself_by_its_gpus_under_every_engine(tmp_path: Path) -> None:
    planned = matrix(1, 2)[0]
    taken = GpuPool(EIGHT).take(2, tmp_path)
    assert taken
    around = surroundings(planned, RunDirectory(tmp_path), taken)
    for told in (around.contained_variables(), variables(around)):
        assert told[HELD].split(",") == list(taken.locks) and len(taken.locks) == 2
    assert HELD not in surroundings(planned, RunDirectory(tmp_path)).contained_variables()
    taken.leave()


def test_a_container_that_outlived_its_host_keeps_its_gpus_for_its_own_stage() -> None:
    in_use = {EIGHT[name]: Path("/stages") / stage for name, stage in (("2", "a"), ("3", "a"), ("5", "b"))}
    pool = GpuPool(EIGHT, lambda: in_use)
    taken = pool.take(2, Path("/stages/a"))
    assert taken and taken.names == ("2", "3")
    other = pool.take(5, Path("/stages/c"))
    assert other and other.names == ("0", "1", "4", "6", "7") and pool.take(1, Path("/stages/d")) is None
    taken.leave()
    other.leave()


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """UUIDs of two GPUs, as a program of the name nvidia-smi tells of them."""
    programs, uuids = tmp_path / "bin", [f"GPU-{os.getpid()}-{number}" for number in range(2)]
    install_gpus(programs, uuids)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    query_gpus.cache_clear()
    yield uuids
    query_gpus.cache_clear()


def test_a_container_counts_by_whatever_name_its_host_gave_its_gpu(
    two_gpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(two_gpus))
    pool = GpuPool.of_this_machine(lambda: {"0": Path("/stages/a")})
    assert pool.take(2, Path("/stages/b")) is None
    taken = pool.take(1, Path("/stages/b"))
    assert taken and taken.names == (two_gpus[1],)
    taken.leave()


def test_a_container_that_comes_while_gpus_are_taken_and_a_silent_engine() -> None:
    looks = iter([{}, {EIGHT["0"]: Path("/stages/a")}])
    assert GpuPool(EIGHT, lambda: next(looks)).take(1, Path("/stages/b")) is None
    assert GpuPool(EIGHT, lambda: None).take(1, Path("/stages/b")) is None


def test_what_never_comes_is_no_wait() -> None:
    with pytest.raises(MachineError, match="asks for 9 GPUs, and this run may use 8"):
        GpuPool(EIGHT).take(9, Path("/a"))


def test_a_gpu_is_one_gpu_by_its_index_and_by_its_uuid(two_gpus: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pools = []
    for visible in ("", "0,1", ",".join(two_gpus)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        pools.append(GpuPool.of_this_machine())
    assert [list(pool.identities.values()) for pool in pools] == [two_gpus] * 3
    taken = pools[0].take(2, Path("/a"))
    assert taken and all(pool.take(1, Path("/b")) is None for pool in pools)
    taken.leave()
