"""The real commands on a machine that seems to have eight GPUs: a small matrix whose stages ask for four of them.

`support/gpu_machine.py` says what is planted. Models are trained and sampled on the CPU. Under Docker the engine of the
tests accepts requests for GPUs and tells each container which it has, as NVIDIA's runtime does; an engine that already
runs here and has no such runtime refuses them.

The host is killed at moments drawn from a seed, and the same command is issued again until it is done.
"""

import json
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from docker.errors import APIError

from essence.engines.docker import DockerEngine
from essence.engines.docker_container import gpu_request
from essence.engines.gpu_pool import GpuPool
from essence.files import read_json
from essence.record.stage_records import read_manifest
from support.containers import DockerHost
from support.gpu_machine import GPUS, on_eight_gpus, uuids_of
from support.micro_results import by_title, pins
from support.processes import wait_for
from support.project import MICRO, PROJECT, invoke
from support.shared import Shared

pytestmark = pytest.mark.slow

CELL = """extends = "{micro}"
title = "one cell"
[[matrix]]
dataset = ["tiny"]
pair = ["tiny-teacher_tiny-student"]
lsp = [0.5]
[evaluation]
baselines = ["student"]
[resources]
{resources}
"""
ON_GPUS, ALONE = "gpus = 4\ngpu_memory_gib = 80.0", "parallel_stages = 1"
FROM_MICRO = ("download", "tokenize")
KILLS = 2
KILLED_WITHIN_S = 3.0
END_S = 900.0
COMPARED = ("label", "accuracy", "retention", "samples", "capped_share", "mean_tokens", "endings", "state")
"""Of a row of the table: all but what was timed, and links."""


@dataclass
class OnGpus:
    """What was seen of a run on stand-in GPUs."""

    engine: str
    runs: Path
    seen: list[dict[str, Any]] = field(default_factory=list)
    """Lines of the log of `gpu_stage.py`."""
    outlived: "Outlived | None" = None
    killed: int = 0

    def of(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.seen if line["event"] == event]


@dataclass(frozen=True)
class Outlived:
    """Containers of a killed host, and what others could get meanwhile."""

    before: dict[str, str]
    """GPU -> stage whose container has it."""
    others_get: bool
    """True when another run could take one of them."""
    after: dict[str, str]
    """GPU -> stage that the same command has given it to when it was issued again."""


def experiment(folder: Path, resources: str) -> Path:
    file = folder / "cell.toml"
    file.write_text(CELL.format(micro=MICRO, resources=resources), encoding="utf-8")
    return file


def begin_from(micro: Path, runs: Path) -> None:
    """What the session's run of the small matrix has fetched and tokenised; the keys of both are equal."""
    if (micro / "code").is_dir():  # of a checkout with changes, which the records name
        shutil.copytree(micro / "code", runs / "code")
    for stage in (micro / "stages").iterdir():
        if stage.name.startswith(FROM_MICRO):
            shutil.copytree(stage, runs / "stages" / stage.name)


@pytest.fixture(scope="module")
def alone(micro: Path, shared: Shared) -> Path:
    """The same cell where one stage runs at a time, without GPUs."""

    def reproduce(folder: Path) -> str:
        runs = folder / "runs"
        begin_from(micro, runs)
        done = invoke("reproduce", str(experiment(folder, ALONE)), "--runs", str(runs))
        assert done.returncode == 0, done.stdout + done.stderr
        return str(runs)

    return Path(shared.once("one-at-a-time", reproduce))


@pytest.fixture(
    scope="module", params=["local", pytest.param("docker", marks=[pytest.mark.docker, pytest.mark.nightly])]
)
def on_gpus(request: pytest.FixtureRequest, micro: Path, tmp_path_factory: pytest.TempPathFactory) -> OnGpus:
    """A finished run whose host was killed several times."""
    folder = tmp_path_factory.mktemp(request.param)
    run, words, seen = OnGpus(request.param, folder / "runs"), ["--engine", "local"], folder / "seen"
    if request.param == "docker":
        words = ["--engine", "docker", "--flavour", "cpu", "--pins", str(pins(micro))]
        require_gpus_in_containers(request.getfixturevalue("docker_host"), request.getfixturevalue("images"))
    else:
        begin_from(micro, run.runs)
    line = ["reproduce", str(experiment(folder, ON_GPUS)), "--runs", str(run.runs), *words]
    command = Command(*on_eight_gpus(seen, *line), folder / "said")
    if request.param == "docker":
        run.outlived = outlive(run, seen, command)
    kill_at_random(run, seen, command)
    with command.started() as host:
        assert host.wait(END_S) == 0, command.said.read_text(encoding="utf-8")
    run.seen = log_of(seen)
    return run


def require_gpus_in_containers(host: DockerHost, images: list[str]) -> None:
    gpus = gpu_request(1, ["0"])
    container = host.client.containers.create(images[0], ["true"], device_requests=[gpus])
    try:
        container.start()
    except APIError:
        assert not host.started_here
        pytest.skip("the engine that runs here has neither GPUs nor a stand-in for them")
    finally:
        container.remove(force=True)


def log_of(seen: Path) -> list[dict[str, Any]]:
    log = seen / "log"
    return list(map(json.loads, log.read_text(encoding="utf-8").splitlines())) if log.is_file() else []


@dataclass(frozen=True)
class Command:
    """A command on the machine with GPUs; what its hosts say is kept, for whoever looks at a failed test."""

    line: list[str]
    environment: dict[str, str]
    said: Path

    @contextmanager
    def started(self) -> "Iterator[subprocess.Popen[bytes]]":
        """A host that is killed in the end."""
        with self.said.open("ab") as said:
            host = subprocess.Popen(self.line, cwd=PROJECT, env=self.environment, stdout=said, stderr=said)
        try:
            yield host
        finally:
            host.kill()
            host.wait()

    def wait_for(self, host: "subprocess.Popen[bytes]", condition: Callable[[], bool]) -> bool:
        """True when it holds while the host runs; False where it has done all that it could before."""
        wait_for(lambda: condition() or host.poll() is not None, END_S)
        assert not host.returncode, self.said.read_text(encoding="utf-8")
        return host.returncode is None


def kill_at_random(run: OnGpus, seen: Path, command: Command) -> None:
    """Kill hosts, each some time after one of the next things that happen to its stages."""
    chance = random.Random(run.engine)
    for _ in range(KILLS):
        enough = len(log_of(seen)) + chance.randint(1, 3)
        with command.started() as host:
            if command.wait_for(host, lambda enough=enough: len(log_of(seen)) >= enough):
                time.sleep(chance.uniform(0.0, KILLED_WITHIN_S))
                run.killed += host.poll() is None


def outlive(run: OnGpus, seen: Path, command: Command) -> Outlived:
    """Kill a host whose two stages with GPUs are kept at work, and issue its command again beside their containers."""
    hold, engine = seen / "hold", DockerEngine("cpu")
    hold.touch()
    uuids = {str(number): uuid for number, uuid in enumerate(uuids_of(seen))}

    def having() -> dict[str, str]:
        return {name: stage.name for name, stage in (engine.gpus_in_use() or {}).items()}

    def given() -> list[Path]:
        return sorted(run.runs.glob("stages/*/gpus.json"))

    def times() -> list[float]:
        return [file.stat().st_mtime for file in given()]

    def on_gpus() -> list[str]:
        return [told["one"]["title"] for told in log_of(seen) if told["event"] == "begin" and told["one"]["gpus"]]

    with command.started() as host:
        assert command.wait_for(host, lambda: len(on_gpus()) == 2)
    before, told = having(), times()
    pool = GpuPool(uuids, lambda: {uuids[name]: Path(stage) for name, stage in having().items()})
    others = pool.take(1, Path("/of/another/run"))
    with command.started() as host:
        assert command.wait_for(host, lambda: all(new > old for new, old in zip(times(), told, strict=True)))
        after = {name: file.parent.name for file in given() for name in read_json(file)["names"]}
        hold.unlink()
    return Outlived(before, others is not None, after)


def test_two_stages_have_disjoint_gpus_and_grading_goes_on_beside_them(on_gpus: OnGpus) -> None:
    pairs, beside = on_gpus.of("pair"), on_gpus.of("graded beside")
    assert pairs and beside
    for pair in pairs:
        had = [set(pair[who]["gpus"]) for who in ("one", "other")]
        assert [len(gpus) for gpus in had] == [4, 4] and len(had[0] | had[1]) == GPUS
    assert {beside[0][who]["stage"] for who in ("one", "other")} == {"generate", "grade"}


def test_no_gpu_is_given_twice_however_its_host_ends(on_gpus: OnGpus) -> None:
    begun = [line["one"] for line in on_gpus.of("begin")]
    assert all(len(set(one["gpus"])) == one["asked"] for one in begun)
    assert {one["stage"] for one in begun if one["gpus"]} == {"train", "generate"}
    assert on_gpus.killed > 0 and on_gpus.of("twice") == []


def test_a_container_that_outlived_its_host_keeps_its_gpus(on_gpus: OnGpus) -> None:
    """Another run gets none of them; the same command takes the containers over, each with its own."""
    if on_gpus.outlived is None:
        pytest.skip("a process of the local engine ends with its host")
    assert len(on_gpus.outlived.before) == GPUS and len(set(on_gpus.outlived.before.values())) == 2
    assert not on_gpus.outlived.others_get and on_gpus.outlived.after == on_gpus.outlived.before


def test_the_table_is_that_of_one_stage_at_a_time(on_gpus: OnGpus, alone: Path) -> None:
    made = [file for file in alone.glob("stages/*/manifest.json") if not file.parent.name.startswith(FROM_MICRO)]
    ran = sorted((manifest.identity.started, manifest.identity.finished) for manifest in map(read_manifest, made))
    assert len(ran) == 5 and all(before[1] <= after[0] for before, after in pairwise(ran))
    here, there = by_title(alone), by_title(on_gpus.runs)
    compared = [title for title in there if not title.startswith("download")]
    assert len(compared) == 1 + 5 and all(there[title] == here[title] for title in compared)
    assert rows(on_gpus.runs) == rows(alone) and len(rows(alone)) == 2
    assert invoke("verify", str(on_gpus.runs)).returncode == 0


def rows(runs: Path) -> list[dict[str, Any]]:
    """The table of a report, as data."""
    report = json.loads((runs / "cell" / "report" / "report.json").read_text(encoding="utf-8"))
    (evaluation,) = report["groups"][0]["evaluations"]
    return [{name: row[name] for name in COMPARED} | {"flops": row["cost"].get("flops")} for row in evaluation["rows"]]
