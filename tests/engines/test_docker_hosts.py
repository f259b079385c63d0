"""Docker as people meet it: engines that restart, streams that break off, hosts of other kinds; with a stand-in engine
behind the real client."""

import json
import os
import random
import shutil
import string
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from essence.commands.options import select
from essence.engines import docker_log, docker_stage
from essence.engines.build_cache import build_cache
from essence.engines.docker import DockerEngine
from essence.engines.docker_container import argv
from essence.engines.docker_hosts import DockerHost
from essence.engines.docker_stage import DockerStage, remove
from essence.engines.engine import Exit, Launch, memory_kills
from essence.engines.readiness import checks
from essence.engines.recipes import BASE_LABEL, LOCK_LABEL, SOURCE_LABEL, recipe
from essence.engines.selected_run import Options
from essence.errors import MachineError
from support.container_launch import surroundings_of
from support.docker_stand_in import CUT, ERROR, GONE, HANG, Serving, StandIn
from support.processes import wait_for
from support.project import MICRO

ME = (os.getuid(), os.getgid())
WHICH_ENGINE = ("DOCKER_HOST", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "DOCKER_CONFIG", "DOCKER_CONTEXT")


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serving]:
    found = Serving()
    monkeypatch.setenv("DOCKER_HOST", found.address)
    for name in WHICH_ENGINE[1:]:
        monkeypatch.delenv(name, raising=False)
    for module, name, seconds in (
        (docker_log, "RECONNECT_S", 0.02),
        (docker_log, "LAST_COPY_S", 10.0),
        (docker_stage, "RECONNECT_S", 0.02),
        (docker_stage, "WAIT_S", 0.5),
        (docker_stage, "REMOVAL_POLL_S", 0.01),
    ):
        monkeypatch.setattr(module, name, seconds)
    yield found
    found.close()


@pytest.fixture
def engine(serving: Serving) -> StandIn:
    for name in ("download", "train", "eval"):
        serving.engine.images[f"localhost/{recipe(name, 'cpu').name}"] = f"sha256:{name}"  # type: ignore[arg-type]
        serving.engine.images[recipe(name, "cpu").name] = f"sha256:{name}"  # type: ignore[arg-type]
    return serving.engine


def started(tmp_path: Path) -> DockerStage:
    return DockerEngine("cpu").start(surroundings_of(tmp_path))


def ending(stage: DockerStage) -> Exit | None:
    wait_for(lambda: stage.poll() is not None, 30)
    return stage.poll()


def log_of(tmp_path: Path) -> bytes:
    return (tmp_path / "own" / "log.txt").read_bytes()


@pytest.mark.parametrize(
    ("kind", "faults"),
    [
        ("wait", [CUT, CUT, ERROR]),
        ("wait", [HANG]),
        ("json", [CUT, ERROR, CUT]),
        ("logs", [CUT, CUT]),
        ("logs", [ERROR, ERROR]),
        ("logs", [HANG, HANG]),
    ],
)
def test_a_lost_connection_is_no_end_of_a_stage(
    engine: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, faults: list[str]
) -> None:
    if kind == "logs" and HANG in faults:
        monkeypatch.setattr(docker_log, "LAST_COPY_S", 1.0)  # waited for to its end
    if kind == "logs":
        engine.faults[kind] = list(faults)
    stage = started(tmp_path)
    if kind != "logs":
        engine.faults[kind] = list(faults)  # from here on: the engine is restarted
    engine.output.append(b"first\n")
    wait_for(lambda: not engine.faults[kind] or kind == "json" or HANG in faults, 30)
    assert stage.poll() is None and not engine.removed
    engine.output += [b"second\n", b"third\n"]
    engine.end(3)
    assert ending(stage) == Exit(3)
    assert log_of(tmp_path) == b"first\nsecond\nthird\n" and engine.removed


def test_memory_that_ran_out_is_heard_of_after_the_end(engine: StandIn, tmp_path: Path) -> None:
    stage = started(tmp_path)
    engine.heard_of_memory_after = 1  # of the looks at a container that has ended
    engine.end(137)
    told = ending(stage)
    assert told and told.code == 137 and told.cause and told.cause.startswith("killed because memory ran out: ")


def test_what_was_killed_with_memory_to_spare_is_said_to_be_killed(engine: StandIn, tmp_path: Path) -> None:
    before = memory_kills()
    stage = started(tmp_path)
    engine.end(137)
    told = ending(stage)
    if memory_kills() != before:
        pytest.skip("a test beside this one ran out of memory meanwhile, and the kernel counts for all")
    assert told == Exit(-9, "killed by SIGKILL")


def test_an_engine_that_gives_no_log_is_named_in_the_log(engine: StandIn, tmp_path: Path) -> None:
    engine.faults["logs"] = [ERROR] * 1000
    stage = started(tmp_path)
    engine.end(0)
    assert ending(stage) == Exit(0)
    assert b"gives no output of this container" in log_of(tmp_path) and b"does not support reading" in log_of(tmp_path)


def test_an_engine_that_stays_away_leaves_its_container(
    engine: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_stage, "SILENT_S", 0.3)
    stage = started(tmp_path)
    engine.faults |= {kind: [CUT] * 1000 for kind in ("wait", "json", "logs")}
    engine.ended.set()
    found = ending(stage)
    assert found and found.code and "issue the command again, which takes it over" in str(found.cause)
    assert "delete" not in engine.calls


def test_a_container_that_somebody_removed_is_told(engine: StandIn, tmp_path: Path) -> None:
    stage = started(tmp_path)
    engine.removed = True
    engine.ended.set()
    found = ending(stage)
    assert found and found.cause == "its container was removed while it ran"


def test_a_container_that_is_being_removed_is_waited_for(engine: StandIn) -> None:
    engine.faults["delete"] = ["409", "409", GONE]
    remove(DockerEngine("cpu").client.containers.get("c1"))
    assert engine.calls.count("delete") == 3


@pytest.mark.parametrize(
    ("options", "host"),
    [
        (["name=seccomp,profile=builtin", "name=cgroupns"], DockerHost()),
        (["name=rootless", "name=seccomp,profile=builtin"], DockerHost(rootless=True)),
        (["name=userns"], DockerHost(remapped=True)),
        (["name=selinux", "name=rootless"], DockerHost(rootless=True, selinux=True)),
        (None, DockerHost()),
    ],
)
def test_the_kind_of_a_host_is_what_the_engine_says(
    engine: StandIn, tmp_path: Path, options: list[str] | None, host: DockerHost
) -> None:
    engine.security = options  # type: ignore[assignment]
    found = DockerEngine("cpu")
    assert found.host == host
    stage = found.start(surroundings_of(tmp_path, user=ME))
    made, how = engine.created[0], engine.created[0]["HostConfig"]
    assert made["User"] == ("0:0" if host.rootless else f"{ME[0]}:{ME[1]}")
    assert how["LogConfig"]["Type"] == "json-file"
    assert ("label=disable" in how["SecurityOpt"]) == host.selinux and "no-new-privileges:true" in how["SecurityOpt"]
    assert how.get("UsernsMode") == ("host" if host.remapped else None)
    engine.end(0)
    assert ending(stage) == Exit(0)


def test_further_groups_of_the_caller_come_along(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "getgroups", lambda: [ME[1], 4242, 77])
    assert DockerHost().groups(ME) == ["77", "4242"]
    assert DockerHost(rootless=True).groups(ME) == [] == DockerHost().groups((ME[0] + 1, ME[1]))
    line = argv(surroundings_of(tmp_path, user=ME), "image")
    assert "--group-add=4242" in line and "--log-driver=json-file" in line


def test_an_image_is_there_under_the_name_that_the_engine_knows(serving: Serving) -> None:
    """Podman answers for `essence-train:cpu` and lists it as `localhost/essence-train:cpu`."""
    engine, image = DockerEngine("cpu"), recipe("train", "cpu")
    assert engine.lacking(stages()) and engine._look(image) is None
    serving.engine.images[image.name] = "sha256:train"
    assert engine._look(image).id == "sha256:train"


def stages() -> list:  # type: ignore[type-arg]
    return [one for one in select(Options(experiment=str(MICRO)), baselines=False).wanted if one.runs_in == "train"][:1]


def test_offline_an_image_that_is_lacking_is_missing(serving: Serving, tmp_path: Path) -> None:
    """With a network a run would build it; the doctor says how it gets here instead."""
    words = Options(experiment=str(MICRO), engine="docker", only="download", runs=str(tmp_path / "runs"))
    found = {one.name: one for one in checks(select(words, baselines=False), thorough=False, offline=True)}
    lacking = found["images offline"]
    assert not lacking.met and "essence-train:cpu: to be made first, about 0.6 GiB" in lacking.found
    assert "on a machine with network: make images sif FLAVOUR=cpu, and bring them here" in lacking.cure
    for name in ("download", "train", "eval"):
        image = recipe(name, "cpu")  # type: ignore[arg-type]
        serving.engine.images[image.name] = f"sha256:{name}"
        labels = {LOCK_LABEL: image.lock_sha256, BASE_LABEL: image.base, SOURCE_LABEL: image.source_sha256}
        serving.engine.labels[f"sha256:{name}"] = labels
    serving.engine.end(0)
    again = {one.name for one in checks(select(words, baselines=False), thorough=False, offline=True)}
    assert "images offline" not in again


def test_the_disk_of_this_machine_is_not_that_of_an_engine_behind_an_address(
    serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real client, and a folder of the name that the engine tells; `test_registry.py` has one that is here."""
    monkeypatch.setattr("essence.engines.docker.check_buildx", lambda: None)
    serving.engine.root = str(tmp_path)
    used = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: used._replace(free=0))
    DockerEngine("cpu").check_making([], [recipe("train", "cuda")])


def test_an_image_that_another_user_removed_is_one_sentence(engine: StandIn, tmp_path: Path) -> None:
    found = DockerEngine("cpu")
    found._chosen("download")
    engine.faults["create"] = [GONE]
    with pytest.raises(MachineError, match=r"download:cpu that this run began with is no longer here; build it"):
        found.start(surroundings_of(tmp_path))


def test_the_doctor_finds_out_whether_a_container_writes_for_the_caller(engine: StandIn, tmp_path: Path) -> None:
    """The stand-in writes nothing: as an engine in a virtual machine that does not share the folder."""
    engine.end(0)
    planned = replace(stages()[0], runs_in="download")
    with pytest.raises(MachineError, match=r"what a container writes to .* is not there on this machine; name a run"):
        DockerEngine("cpu").try_writing(planned, tmp_path)
    engine.removed = False
    engine.output.append(b"PermissionError: [Errno 13] Permission denied: 'written'\n")
    engine.end(1)
    with pytest.raises(MachineError, match=r"no container can write to .*Permission denied"):
        DockerEngine("cpu").try_writing(planned, tmp_path)
    assert list(tmp_path.iterdir()) == []


def drawn(seed: int) -> dict[str, str]:
    rng = random.Random(seed)
    names = ["".join(rng.choices(string.ascii_uppercase, k=rng.randint(3, 10))) for _ in range(30)]
    found = {f"DOCKER_{name}": rng.choice(("1", "linux/arm64", "/etc", "a=b")) for name in names}
    also = ("DOCKER_DEFAULT_PLATFORM", "DOCKER_API_VERSION", "DOCKER_CONTENT_TRUST", "DOCKER_HIDE_LEGACY_COMMANDS")
    return {name: value for name, value in {**found, **dict.fromkeys(also, "1")}.items() if name not in WHICH_ENGINE}


def created(engine: StandIn, around: Launch) -> str:
    engine.created.clear()
    engine.removed = False
    stage = DockerEngine("cpu").start(around)
    engine.end(0)
    ending(stage)
    made = engine.created[0]
    del made["Labels"]
    return json.dumps(made, sort_keys=True)


@pytest.mark.parametrize("seed", range(3))
def test_no_variable_of_the_caller_changes_a_container(
    engine: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Nor does what the client's own configuration says of proxies, but for a download."""
    plain = created(engine, surroundings_of(tmp_path))
    for name, value in drawn(seed).items():
        monkeypatch.setenv(name, value)
    config = tmp_path / "config"
    config.mkdir()
    proxies = {"proxies": {"default": {"httpProxy": "http://user:planted@proxy"}}}
    (config / "config.json").write_text(json.dumps(proxies))
    monkeypatch.setenv("DOCKER_CONFIG", str(config))
    assert created(engine, surroundings_of(tmp_path)) == plain
    assert "planted" in created(engine, surroundings_of(tmp_path, network=True))
    shutil.rmtree(config)


RECORDS = [{"ID": "a", "Type": "regular", "Description": "mount / from exec", "Size": 7}]


@pytest.mark.parametrize(
    "told",
    [
        {"LayersSize": 1, "BuildCache": RECORDS},
        {"BuildCache": RECORDS, "BuildCacheUsage": {"TotalSize": 7, "Items": RECORDS}},
        {"BuildCacheUsage": {"TotalSize": 7, "Items": RECORDS}},
    ],
    ids=["API 1.51", "API 1.52", "API 1.53"],
)
def test_what_builds_have_kept_is_read_of_engines_old_and_new(engine: StandIn, told: object) -> None:
    engine.disk_usage = told
    (found,) = build_cache(DockerEngine("cpu").client)
    assert (found.description, found.size_bytes) == ("mount / from exec", 7)
    assert engine.queries == ["type=build-cache&verbose=1"]


@pytest.mark.parametrize(
    "told",
    [
        *({}, {"BuildCache": None}, {"BuildCacheUsage": {"TotalSize": 7}}, {"BuildCacheUsage": None}),
        *(None, [], "odd", {"BuildCache": [{"Size": "odd"}]}, {"BuildCache": [{"Description": None}]}),
    ],
)
def test_an_engine_whose_builds_have_kept_nothing_that_can_be_read_has_kept_nothing(
    engine: StandIn, told: object
) -> None:
    engine.disk_usage = told
    assert build_cache(DockerEngine("cpu").client) == []


@pytest.mark.parametrize("fault", [CUT, ERROR, "403", "409"])
def test_an_engine_that_does_not_say_what_builds_have_kept_ends_no_command(engine: StandIn, fault: str) -> None:
    """As where it counts already, where something is pruned meanwhile, or where a proxy lets no such question by."""
    engine.disk_usage, engine.faults["df"] = {"BuildCache": RECORDS}, [fault]
    client = DockerEngine("cpu").client
    assert build_cache(client) == [] and len(build_cache(client)) == 1
