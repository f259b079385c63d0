"""`invoke prove` on a machine with three faults, in real containers.

The disk writes slowly, the loss is wrong by a percent, and the engine limits memory to less than the pair takes.
"""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.containers import DockerHost, Sifs, need
from support.faulty_kit import FaultyKit
from support.plain_cgroups import use_plain_cgroups
from support.slow_disk import slow_disk, slow_disk_obstacle

pytestmark = [pytest.mark.slow, pytest.mark.docker, pytest.mark.apptainer]

MEMORY_GIB = 2.0
USABLE = "of the 1.6 GiB"
DISK_BYTES_PER_S = 4 << 20
DEEP = f"""
extends = "tiny"
title = "A pair that takes 3 GiB on paper, and as little as the miniature where its layers are cut"
[resources]
memory_gib = {MEMORY_GIB}
[models.tiny-student.architecture]
hidden = 64
layers = 2000
heads = 4
kv_heads = 2
head_dim = 16
intermediate = 192
vocabulary = 384
tied = true
"""


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> FaultyKit:
    return FaultyKit(tmp_path_factory.mktemp("faulty"))


@pytest.fixture
def faulty_images(faulty: FaultyKit, docker_host: DockerHost, images: list[str]) -> Iterator[None]:
    """The images that the other tests use are still theirs afterwards."""
    client = docker_host.client
    before = [client.images.get(name).id for name in images]
    with faulty.images(docker_host):
        yield
    assert [client.images.get(name).id for name in images] == before


@pytest.fixture
def faulty_sifs(faulty: FaultyKit, sifs: Sifs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    use_plain_cgroups(sifs, tmp_path, monkeypatch)
    faulty.make_sifs(sifs, tmp_path / "sifs")
    monkeypatch.setenv("ESSENCE_SIF_FOLDER", str(tmp_path / "sifs"))
    yield
    # More than a GiB, which no later look at a failed test needs.
    shutil.rmtree(tmp_path / "sifs")


@pytest.mark.parametrize("engine", [pytest.param("docker", marks=pytest.mark.nightly), "apptainer"])
def test_each_fault_of_a_machine_is_a_sentence(
    engine: str, faulty: FaultyKit, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    need(engine, slow_disk_obstacle())
    request.getfixturevalue({"docker": "faulty_images", "apptainer": "faulty_sifs"}[engine])
    deep, runs = tmp_path / "deep.toml", tmp_path / "disk" / "runs"
    deep.write_text(DEEP, encoding="utf-8")
    with slow_disk(runs.parent, DISK_BYTES_PER_S):
        words = ("--experiment", str(deep), "--engine", engine, "--runs", str(runs), "--json")
        done = faulty.python("-m", "invoke", "prove", *words)
        planned = faulty.invoke("plan", "--experiment", "tiny", "--runs", str(runs))
        manifest = json.loads(next(runs.glob("prove/stages/prove_training-*/manifest.json")).read_text())
    assert done.returncode == 1, done.stdout + done.stderr
    found = json.loads(done.stdout)
    memory, disk, loss = found["failed"]
    assert not found["proved"] and manifest["image"]["engine"] == engine
    assert "memory" in memory and USABLE in memory
    speed = re.search(r"at (\S+) GB/s", disk)
    assert speed and float(speed[1]) * 1e9 < 2 * DISK_BYTES_PER_S and "faster disk" in disk
    assert "differ from float64 by 9." in loss or "differ from float64 by 1.0e-02" in loss
    assert f"and wrong: {memory} (and 2 more)" in planned
