"""Out of a registry an image, a SIF of it and a ready SIF: the results of the undisturbed local run."""

import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from essence.engines.recipes import ENVIRONMENT_LABEL, recipe
from essence.engines.sif_files import found_sif
from essence.files import sha256_file
from support.containers import Apptainer, DockerHost, Sifs, set_variables
from support.image_registry import LocalRegistry, pushed_sif
from support.micro_results import by_title, pins
from support.project import MICRO, invoke

pytestmark = [
    *(pytest.mark.slow, pytest.mark.nightly, pytest.mark.docker, pytest.mark.apptainer, pytest.mark.registry),
    pytest.mark.usefixtures("known_registries"),
]
TRAIN = recipe("train", "cpu")


@pytest.fixture(scope="module")
def published(
    docker_host: DockerHost, images: list[str], image_registry: LocalRegistry, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """Address of the image of this session in a registry, with the same configuration; its layers as they are."""
    del images
    archive = tmp_path_factory.mktemp("saved") / "train-cpu.tar"
    with archive.open("wb") as file:
        for chunk in docker_host.client.images.get(TRAIN.name).save():
            file.write(chunk)
    with tarfile.open(archive) as tar:
        digest = image_registry.push_archive("whole/essence-train", tar)
    archive.unlink()
    return f"{image_registry.host}/whole/essence-train@{digest}"


@pytest.fixture
def set_aside(docker_host: DockerHost) -> Iterator[None]:
    """No image of the kit for trainings here during a test, but its layers."""
    image = docker_host.client.images.get(TRAIN.name)
    image.tag("set-aside", "train")
    docker_host.client.images.remove(TRAIN.name)
    yield
    for found in docker_host.client.images.list(filters={"label": f"{ENVIRONMENT_LABEL}=train"}):
        for name in [*found.tags, *found.attrs["RepoDigests"]]:
            if "essence-train" in name:
                docker_host.client.images.remove(name)
    image.tag(*TRAIN.name.split(":"))
    docker_host.client.images.remove("set-aside:train")


def image_of_equal(last: str, engine: str, micro: Path, runs: Path) -> dict[str, str]:
    """Run a cell up to this stage, compare it with the local run; group `image` of that stage's manifest."""
    words = ("--experiment", str(MICRO), "--pins", str(pins(micro)), "--lsp", "0.5", "--only", last)
    done = invoke("run", *words, "--engine", engine, "--runs", str(runs))
    assert done.returncode == 0, done.stdout + done.stderr
    here, there = by_title(micro), by_title(runs)
    titles = [title for title in there if title.startswith(("tokenize", "train"))]
    assert any(title.startswith(last) for title in titles), titles
    for title in titles:
        assert there[title] == here[title], title
    file = next(runs.glob(f"stages/{last}-*/manifest.json"))
    return dict(json.loads(file.read_text(encoding="utf-8"))["image"])


def test_an_image_that_was_pulled_gives_the_same_results(
    docker_host: DockerHost, micro: Path, published: str, images_file: Path, set_aside: None, tmp_path: Path
) -> None:
    digest = docker_host.client.images.get("set-aside:train").id
    images_file.write_text(f'[cpu]\ntrain = "{published}"\n', encoding="utf-8")
    image = image_of_equal("train", "docker", micro, tmp_path / "runs")
    assert image["engine"] == "docker" and image["digest"] == digest
    assert published in docker_host.client.images.get(TRAIN.name).attrs["RepoDigests"]


def test_a_sif_of_a_pulled_image_and_one_that_was_pulled_give_the_same_results(
    apptainer: Apptainer, sifs: Sifs, micro: Path, published: str, images_file: Path, tmp_path: Path
) -> None:
    del images_file
    repository, built = published.partition("@")[0], sifs.file("train")
    digest = found_sif(TRAIN, "").config_digest
    # The pulled SIF has the bytes of the one in which `test_engines_agree.py` trains.
    for last, address in (
        ("train", f"docker://{published}"),
        ("tokenize", f"oras://{pushed_sif(apptainer, built, f'{repository}:sif')}"),
    ):
        folder = tmp_path / address.partition(":")[0]
        with set_variables({"ESSENCE_SIF_FOLDER": str(folder)}):
            done = invoke("sif", "--from", address)
            assert done.returncode == 0, done.stdout + done.stderr
            for part in ("download-cpu.sif", "download-cpu.sif.json"):
                (folder / part).symlink_to(sifs.folder / part)
            image = image_of_equal(last, "apptainer", micro, folder / "runs")
        assert image["engine"] == "apptainer" and image["digest"] == digest
        pulled = sha256_file(folder / "train-cpu.sif")
        assert image["sif_sha256"] == pulled and (last == "train" or pulled == sha256_file(built))
        shutil.rmtree(folder)
