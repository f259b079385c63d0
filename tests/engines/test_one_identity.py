"""One image under two engines: the same stage under Docker and under Apptainer, and one run by hand in a SIF."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from essence.engines.recipes import config_digest, recipe
from essence.engines.sif_files import version
from essence.files import sha256_file
from support.containers import DockerHost, Sifs
from support.micro_results import by_title, pins
from support.project import MICRO, invoke

pytestmark = [pytest.mark.slow, pytest.mark.docker, pytest.mark.apptainer]


def run_only(engine: str, stage: str, micro: Path, runs: Path) -> None:
    words = ("--experiment", str(MICRO), "--pins", str(pins(micro)), "--lsp", "0.5", "--only", stage)
    done = invoke("run", *words, "--engine", engine, "--runs", str(runs))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def under_apptainer(micro: Path, sifs: Sifs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    del sifs
    runs = tmp_path_factory.mktemp("apptainer") / "runs"
    run_only("apptainer", "tokenize", micro, runs)
    return runs


@pytest.fixture(scope="module")
def under_docker(micro: Path, images: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    del images
    runs = tmp_path_factory.mktemp("docker")
    run_only("docker", "tokenize", micro, runs)
    return runs


def manifest_of(runs: Path, stage: str) -> dict[str, Any]:
    file = next(runs.glob(f"stages/{stage}-*/manifest.json"))
    return json.loads(file.read_text(encoding="utf-8"))


def test_a_stage_has_one_identity_under_both_engines(
    under_docker: Path, under_apptainer: Path, docker_host: DockerHost, sifs: Sifs
) -> None:
    ours, theirs = manifest_of(under_apptainer, "tokenize"), manifest_of(under_docker, "tokenize")
    assert ours["identity"]["key"] == theirs["identity"]["key"]
    image = recipe("train", "cpu")
    digest = config_digest(docker_host.client, docker_host.client.images.get(image.name))
    assert ours["image"] == {
        "engine": "apptainer",
        "engine_version": version(),
        "digest": digest,
        "base_digest": image.base.split("@")[1],
        "sif_sha256": sha256_file(sifs.file("train")),
    }
    assert theirs["image"]["digest"] == digest and theirs["image"]["sif_sha256"] is None
    for name in ("software", "settings", "inputs"):
        assert {**ours[name], "stages": None} == {**theirs[name], "stages": None}, name
    title = ours["identity"]["title"]
    assert by_title(under_apptainer)[title] == by_title(under_docker)[title]


def test_a_stage_can_be_run_by_hand(under_apptainer: Path, sifs: Sifs) -> None:
    folder = next(under_apptainer.glob("stages/tokenize-*"))
    before = by_title(under_apptainer)
    (folder / "manifest.json").unlink()
    shutil.rmtree(folder / "output")
    rights = "--no-privs " if os.geteuid() == 0 else ""
    typed = (
        f"apptainer exec --containall --no-home {rights}--bind $PWD/runs --pwd $PWD {sifs.file('train')} "
        f"env HOME=/tmp python -m essence.stages tokenize --spec runs/stages/{folder.name}/spec.json"
    )
    done = subprocess.run(["bash", "-c", typed], cwd=under_apptainer.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert by_title(under_apptainer) == before
    assert invoke("verify", str(under_apptainer)).returncode == 0


@pytest.mark.parametrize("engine", ["docker", "apptainer"])
def test_a_machine_is_proved_in_its_images(engine: str, images: list[str], sifs: Sifs, tmp_path: Path) -> None:
    del images, sifs
    done = invoke("prove", "--engine", engine, "--runs", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "✗" not in done.stdout and "✓ loss" in done.stdout and "✓ seeds" in done.stdout
    for file in (tmp_path / "prove").glob("stages/*/manifest.json"):
        manifest = json.loads(file.read_text(encoding="utf-8"))
        assert manifest["image"]["engine"] == engine and manifest["hardware"]["host"] == os.uname().nodename
    assert "proved on 20" in invoke("plan", "--experiment", "tiny", "--runs", str(tmp_path)).stdout
