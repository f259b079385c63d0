"""Stages in containers: what they may do, how they end, and what becomes of them when the host process is killed."""

import os
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from docker.types import Ulimit

from essence.commands.options import select
from essence.engines.docker import FOLDER, GPUS, DockerEngine
from essence.engines.docker_container import argv, creation
from essence.engines.docker_stage import DockerStage
from essence.engines.engine import Launch, Mount
from essence.engines.image_builds import to_be_made
from essence.engines.recipes import config_digest, recipe
from essence.engines.secrets import token
from essence.engines.selected_run import Options
from essence.errors import MachineError
from essence.plan.stage_plan import PlannedStage
from support.container_launch import CALLER, RESOURCES, surroundings_of
from support.containers import BASE_IMAGE, DockerHost, load_base, need, set_variables, started_engine, starting_obstacle
from support.inside import LOOK, looking
from support.processes import wait_for
from support.project import MICRO, invoke


@pytest.fixture
def engine(docker_host: DockerHost, images: list[str]) -> DockerEngine:
    del docker_host, images
    return DockerEngine("cpu")


def run_inside(engine: DockerEngine, around: Launch, code: str) -> DockerStage:
    """Python code in the container that a stage would have, through the engine's own start."""
    return engine.start(looking(around, code))


def ended(stage: DockerStage, timeout_s: float = 60.0) -> object:
    wait_for(lambda: stage.poll() is not None, timeout_s)
    return stage.poll()


LOOK_HERE = f"""{LOOK}
found["write"] = write(read, "/", "/opt/essence", "/opt/essence-source/essence", "/etc", "/usr/bin", own.parent)
found["tmp"] = fails(lambda: pathlib.Path("/tmp/x").write_text("x"))
found["shm_mib"] = os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize >> 20
print(json.dumps(found))
"""


@pytest.mark.docker
def test_a_stage_sees_its_folders_and_nothing_else(
    engine: DockerEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    monkeypatch.setenv("HF_TOKEN", "planted-secret")
    around = surroundings_of(tmp_path)
    (tmp_path / "neighbour").mkdir()
    ending = ended(run_inside(engine, around, LOOK_HERE))
    said = around.folder.log.read_text()
    assert ending is not None and ending.code == 0, said  # type: ignore[attr-defined]
    found = json.loads(said)
    assert found["uid"] == [CALLER, CALLER] and found["interfaces"] == ["lo"]
    assert found["connect"]
    assert all(found["write"].values()), found["write"]
    assert found["neighbours"] == ["input", "own"] and found["tmp"] is None
    assert set(found["capabilities"]) == {"0" * 16} and found["no_new_privileges"]
    assert found["shm_mib"] == 64
    assert not any("TOKEN" in name or "SECRET" in name for name in found["variables"])
    made = (around.folder.path / "made.txt").stat()
    assert (made.st_uid, made.st_gid) == (CALLER, CALLER)


@pytest.mark.docker
def test_a_download_has_network_and_reads_the_token_from_a_file(
    engine: DockerEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "planted-secret")
    around = surroundings_of(tmp_path, network=True, user=(os.getuid(), os.getgid()))
    code = (
        "import os, pathlib, time; from huggingface_hub import get_token; print(len(os.listdir('/sys/class/net')) > 1, "
        "get_token() == 'planted-' + 'secret', 'planted' in str(dict(os.environ))); time.sleep(1)"
    )
    stage = run_inside(engine, around, code)
    assert "planted-secret" not in str(engine.client.api.inspect_container(stage.container.id))
    processes = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True).stdout
    assert "planted-secret" not in processes
    assert stage.secret and stage.secret.file.stat().st_mode & 0o777 == 0o600
    assert ended(stage).code == 0 and around.folder.log.read_text() == "True True False\n"  # type: ignore[attr-defined]
    assert not stage.secret.file.exists()
    assert "planted-secret" not in " ".join(argv(around, "image"))


def test_without_a_login_there_is_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    assert token(tmp_path) is None
    (tmp_path / "token").write_text("kept")
    found = token(tmp_path)
    assert found and found.file == tmp_path / "token" and not found.temporary


def test_a_token_that_a_killed_host_left_is_removed_without_a_login_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "planted-secret")
    left = token(tmp_path)
    assert left and left.file.is_file()
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    assert token(tmp_path) is None and not left.file.exists()


@pytest.mark.docker
def test_an_image_that_is_built_while_a_run_goes_on_is_not_started(engine: DockerEngine, tmp_path: Path) -> None:
    told = engine.image("download")["digest"]
    name, images = recipe("download", "cpu").name, engine.client.images
    first = images.get(name)
    assert images.get(BASE_IMAGE).tag(*name.split(":"))
    try:
        stage = run_inside(engine, surroundings_of(tmp_path), "import time; time.sleep(99)")
    finally:
        assert first.tag(*name.split(":"))
    began = images.get(stage.container.attrs["Image"])
    stage.kill()
    assert began.id == first.id and config_digest(engine.client, began) == told


@pytest.mark.docker
def test_running_out_of_memory_is_told_apart_from_failing(engine: DockerEngine, tmp_path: Path) -> None:
    around = surroundings_of(tmp_path, resources=RESOURCES.model_copy(update={"memory_gib": 0.0625}))
    ending = ended(run_inside(engine, around, "x = bytearray(10**9)"))
    assert ending.code != 0 and "memory ran out: it may take 0.0625 GiB" in ending.cause  # type: ignore[attr-defined]
    failed = ended(run_inside(engine, around, "import sys; sys.exit(3)"))
    assert (failed.code, failed.cause) == (3, None)  # type: ignore[attr-defined]
    odd = ended(run_inside(engine, around, "import sys; sys.exit(-1)"))  # 255, which is no signal's
    assert (odd.code, odd.cause) == (255, None)  # type: ignore[attr-defined]
    killed = ended(run_inside(engine, around, "import os; os.kill(os.getpid(), 9)"))
    assert killed.code == -9 and "SIGKILL" in killed.cause  # type: ignore[attr-defined]
    assert engine.client.containers.list(all=True, filters={"label": f"{FOLDER}={around.folder.path}"}) == []


@pytest.mark.docker
def test_stop_asks_and_kill_ends(engine: DockerEngine, tmp_path: Path) -> None:
    patient = (
        "import signal, sys, time; signal.signal(15, lambda *a: sys.exit(75)); print('up', flush=True); time.sleep(99)"
    )
    around = surroundings_of(tmp_path)
    stage = run_inside(engine, around, patient)
    wait_for(lambda: around.folder.log.is_file() and "up" in around.folder.log.read_text())
    stage.stop()
    assert ended(stage).code == 75  # type: ignore[attr-defined]
    stage = run_inside(engine, around, "import time; time.sleep(99)")
    before = time.monotonic()
    stage.kill()
    assert stage.poll() is not None and time.monotonic() - before < 45  # the stage sleeps twice as long


@pytest.mark.docker
def test_a_removed_container_and_a_path_that_is_not_there_are_one_sentence(
    engine: DockerEngine, tmp_path: Path
) -> None:
    around = surroundings_of(tmp_path)
    stage = run_inside(engine, around, "import time; time.sleep(99)")
    stage.container.remove(force=True)
    assert ended(stage).cause  # type: ignore[attr-defined]
    absent = tmp_path / "absent"
    with pytest.raises(MachineError, match=r"train a cell: Docker cannot start its container: .*absent"):
        engine.start(replace(around, mounts=(*around.mounts, Mount(absent, absent, True))))
    assert engine.client.containers.list(all=True, filters={"label": f"{FOLDER}={around.folder.path}"}) == []


def asking_stage(gpus: int) -> PlannedStage:
    """A planned stage in the smallest image that asks for GPUs."""
    planned = next(iter(select(Options(experiment=str(MICRO)), baselines=False).plan.stages.values()))
    return replace(planned, runs_in="download", resources=RESOURCES.model_copy(update={"gpus": gpus}))


@pytest.mark.docker
def test_gpus_are_asked_of_the_engine(docker_host: DockerHost, engine: DockerEngine, tmp_path: Path) -> None:
    around = surroundings_of(tmp_path, resources=RESOURCES.model_copy(update={"gpus": 2}))
    try:
        stage = run_inside(engine, around, "import os; print(os.environ['NVIDIA_VISIBLE_DEVICES'])")
    except MachineError:
        assert not docker_host.started_here
        pytest.skip("the engine that runs here has neither GPUs nor a stand-in for them")
    assert ended(stage).code == 0 and around.folder.log.read_text() == "0,1\n"  # type: ignore[attr-defined]
    engine.try_gpus(asking_stage(2))


@pytest.mark.docker
def test_a_container_has_its_gpus_from_before_it_is_started(
    engine: DockerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine goes on with a start whose host is killed meanwhile; one that never comes holds nothing for long."""
    labels = {GPUS: "6,7", FOLDER: "/stages/a"}
    container = engine.client.containers.create("essence-download:cpu", ["sleep", "99"], labels=labels)
    try:
        assert engine.gpus_in_use() == {"6": Path("/stages/a"), "7": Path("/stages/a")}
        monkeypatch.setattr("essence.engines.docker.STARTING_S", -1.0)
        assert engine.gpus_in_use() == {}
        container.start()
        assert set(engine.gpus_in_use() or {}) == {"6", "7"}
        container.kill()
        container.wait()
        assert engine.gpus_in_use() == {}
    finally:
        container.remove(force=True)


@pytest.mark.docker
def test_without_gpus_without_image_without_engine(
    base_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("docker", starting_obstacle())
    around = surroundings_of(tmp_path)
    with started_engine(nvidia=False) as bare:
        monkeypatch.setenv("DOCKER_HOST", bare.variables["DOCKER_HOST"])
        with set_variables({"PATH": "/usr/bin:/bin"}):
            if not shutil.which("docker"):
                done = invoke("reproduce", str(MICRO), "--engine", "docker", "--runs", str(tmp_path / "runs"))
                absent = "no image essence-eval:cpu and no image essence-train:cpu here, and building images needs"
                assert done.returncode == 2 and absent in done.stderr
                assert (
                    "install docker with its plugin buildx, or pull" in done.stderr
                    and len(done.stderr.strip().splitlines()) == 1
                )
        load_base(bare.client)
        bare.client.images.get(base_image).tag("essence-download", "cpu")
        asking = replace(around, resources=RESOURCES.model_copy(update={"gpus": 1}))
        with pytest.raises(MachineError, match="need the NVIDIA Container Toolkit"):
            DockerEngine("cpu").start(asking)
        with pytest.raises(
            MachineError, match=r"Docker gives its containers no GPUs \(.*; GPUs in containers need the"
        ):
            DockerEngine("cpu").try_gpus(asking_stage(1))
        assert bare.client.containers.list(all=True) == []
    done = invoke("reproduce", str(MICRO), "--engine", "docker", "--runs", str(tmp_path / "runs"))
    assert done.returncode == 2 and "no Docker engine answers" in done.stderr and "--engine local" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not (tmp_path / "runs").exists()


@pytest.mark.nightly
@pytest.mark.docker
def test_a_run_makes_the_images_that_it_lacks(docker_host: DockerHost, images: list[str], tmp_path: Path) -> None:
    del images
    cells = ("run", "--experiment", str(MICRO), "--only", "download", "--engine", "docker")
    where = ("--runs", str(tmp_path / "runs"))
    train = recipe("train", "cpu")
    told = to_be_made([train])
    docker_host.client.images.remove(train.name, force=True, noprune=True)
    assert f"# {told}" in invoke(*cells, *where, "--dry-run").stdout
    listed = invoke("doctor", *cells[1:], *where)
    assert listed.returncode == 0 and told in " ".join(listed.stdout.split())
    done = invoke(*cells, *where)
    assert done.returncode == 0, done.stderr
    assert told in done.stdout and f"{train.name}: sha256:" in done.stdout
    docker_host.client.images.get(train.name)
    again = invoke(*cells, *where)
    assert again.returncode == 0 and "to be made first" not in again.stdout


@pytest.mark.docker
def test_the_printed_command_line_makes_the_same_container(engine: DockerEngine, tmp_path: Path) -> None:
    resources = RESOURCES.model_copy(update={"memory_gib": 1.0, "ulimits": {"nofile": 4096}})
    around = surroundings_of(tmp_path, resources=resources)
    printed = argv(around, "essence-download:cpu")
    line = ["docker", "create", *[word for word in printed[2:] if word != "--rm"]]
    identifier = subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()
    typed = engine.client.containers.get(identifier)
    made = engine.client.containers.create("essence-download:cpu", **creation(around, None, engine.host))
    try:
        for key in (
            "Memory",
            "NetworkMode",
            "ReadonlyRootfs",
            "CapDrop",
            "SecurityOpt",
            "ShmSize",
            "Tmpfs",
            "Ulimits",
            "GroupAdd",
        ):
            assert typed.attrs["HostConfig"][key] == made.attrs["HostConfig"][key], key
        for key in ("Cmd", "User", "WorkingDir"):
            assert typed.attrs["Config"][key] == made.attrs["Config"][key], key
        assert sorted(typed.attrs["Config"]["Env"]) == sorted(made.attrs["Config"]["Env"])
        mounts = [sorted((m["Source"], m["Destination"], m["RW"]) for m in c.attrs["Mounts"]) for c in (typed, made)]
        assert mounts[0] == mounts[1]
        assert made.attrs["HostConfig"]["Ulimits"] == [Ulimit(name="nofile", soft=4096, hard=4096)]
    finally:
        typed.remove(force=True)
        made.remove(force=True)
