"""The images: what their files say, and what they are when built."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import get_args

import pytest

from essence.commands.lock import ARGUMENTS
from essence.engines import FLAVOURS
from essence.engines.image_builds import ENVIRONMENTS, bake_command, bake_variables
from essence.engines.recipes import BASE_LABEL, LOCK_LABEL, SOURCE_LABEL, bases, recipe
from essence.errors import MachineError
from essence.files import sha256_file
from essence.settings import STAGES_IN, StageName
from support.containers import (
    BASE_IMAGE,
    DockerHost,
    load_base,
    need,
    overlay,
    set_variables,
    started_engine,
    starting_obstacle,
)
from support.project import PROJECT

DOCKERFILES = sorted((PROJECT / "docker").glob("*.Dockerfile"))
ALL = [(environment, flavour) for environment in ENVIRONMENTS for flavour in FLAVOURS]


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.stem)
def test_every_image_from_outside_is_named_by_digest(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert "# syntax" not in text
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", text, re.MULTILINE))
    for source in re.findall(r"^FROM (\S+)", text, re.MULTILINE):
        known = source in stages | {"scratch"} or source == "base-${FLAVOUR}"
        assert known or re.fullmatch(r"\S+:\S+@sha256:[0-9a-f]{64}", source), source
    assert re.search(r"^USER \d+:\d+$", text, re.MULTILINE)
    assert text.index("install-environment.sh") < text.index("install-source.sh")


@pytest.mark.parametrize(("environment", "flavour"), ALL)
def test_every_image_has_a_base_and_a_lock_that_is_made_by_the_one_command(environment: str, flavour: str) -> None:
    image = recipe(environment, flavour)  # type: ignore[arg-type]
    assert image.base in bases(image.dockerfile).values() and image.lock.is_file()
    assert image.lock.stem in ARGUMENTS


def test_every_stage_counts_in_the_source_of_an_image() -> None:
    assert {stage for stages in STAGES_IN.values() for stage in stages} == set(get_args(StageName))


def test_the_same_base_has_the_same_digest_in_every_file() -> None:
    digests: dict[str, set[str]] = {}
    for file in DOCKERFILES:
        for image in bases(file).values():
            name, digest = image.split("@")
            digests.setdefault(name, set()).add(digest)
    assert len(digests) == 3 and all(len(found) == 1 for found in digests.values())


def test_an_image_of_another_lock_base_or_source_is_refused_with_the_cure() -> None:
    image = recipe("train", "cpu")
    good = {LOCK_LABEL: image.lock_sha256, BASE_LABEL: image.base, SOURCE_LABEL: image.source_sha256}
    image.check_labels(good, image.name, "make images")
    for label in good:
        with pytest.raises(MachineError, match=f"essence-train:cpu was built from another state.*{label}.*make images"):
            image.check_labels({**good, label: "x"}, image.name, "make images")
    # What a repository holds does not depend on who fetches it.
    fetching = recipe("download", "cpu")
    fetching.check_labels({LOCK_LABEL: fetching.lock_sha256, BASE_LABEL: fetching.base}, "it", "make images")


def test_the_build_is_told_locks_and_bases_of_its_flavour() -> None:
    variables = bake_variables("cuda")
    assert variables["TRAIN_LOCK"] == recipe("train", "cuda").lock_sha256 != recipe("train", "cpu").lock_sha256
    assert variables["EVAL_BASE"].startswith("nvidia/cuda:13.0") and variables["DOWNLOAD_BASE"].startswith("python:3")
    assert int(variables["SOURCE_DATE_EPOCH"]) >= 0


def inside(host: DockerHost, image: str, *command: str) -> str:
    said: bytes = host.client.containers.run(image, list(command), remove=True, network_mode="none")
    return said.decode()


@pytest.mark.docker
def test_the_built_images_hold_what_their_labels_say(docker_host: DockerHost, images: list[str]) -> None:
    for environment, name in zip(ENVIRONMENTS, images, strict=True):
        image = docker_host.client.images.get(name)
        recipe(environment, "cpu").check_labels(image.labels, name, "")
        assert image.attrs["Config"]["User"] == "65532:65532"
        lock = inside(docker_host, name, "sha256sum", "/opt/essence/essence-lock.txt").split()[0]
        assert lock == recipe(environment, "cpu").lock_sha256
        history = json.dumps(image.history())
        assert "PIP_CERT" not in history and "/wheels/" not in inside(docker_host, name, "env")


@pytest.mark.docker
def test_what_the_stages_of_an_image_import_can_be_imported(docker_host: DockerHost, images: list[str]) -> None:
    found = {name: inside(docker_host, name) for name in images}
    assert all("FAILED" not in text for text in found.values())
    assert "torch: torch 2.13.0+cpu\n" in found["essence-train:cpu"] and "torch" not in found["essence-download:cpu"]
    assert "vllm: not part of this environment\n" in found["essence-eval:cpu"]


@pytest.mark.docker
def test_the_image_of_downloads_can_build_and_install_nothing(docker_host: DockerHost, images: list[str]) -> None:
    del images
    looked = "import importlib.util, shutil; print([p for p in ('gcc', 'cc', 'make', 'pip', 'uv') if shutil.which(p)])"
    assert inside(docker_host, "essence-download:cpu", "python", "-c", looked) == "[]\n"


@pytest.mark.docker
def test_the_self_test_fails_where_a_compiled_package_is_broken(docker_host: DockerHost, images: list[str]) -> None:
    del images
    ruin = "import sys; sys.modules['psutil._psutil_linux'] = None; from essence.stages.self_test import main; "
    ruin += "sys.exit(main(['download']))"
    command = ["docker", "run", "--rm", "--network=none", "essence-download:cpu", "python", "-c", ruin]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "FAILED psutil" in done.stdout


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.docker
@pytest.mark.own_engine
def test_building_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    need("docker", starting_obstacle())
    # Only containerd's store can write archives with all times set.
    with started_engine(nvidia=False, containerd_store=True) as host, set_variables(host.variables):
        load_base(host.client)
        file = tmp_path / "overlay.hcl"
        file.write_text(overlay(BASE_IMAGE), encoding="utf-8")
        digests = [archive_digest(tmp_path / f"{turn}.tar", file) for turn in ("first", "second")]
    assert digests[0] == digests[1]


def archive_digest(archive: Path, file: Path) -> str:
    """Build the image of downloads from nothing into an archive; the archive's hash."""
    # Packing would take longer than building, and the hash is of the same files either way.
    output = f"download.output=type=oci,dest={archive},rewrite-timestamp=true,compression=uncompressed"
    command = [*bake_command(["download"], file), "--no-cache", "--set", output]
    done = subprocess.run(
        command, cwd=PROJECT, env={**os.environ, **bake_variables("cpu")}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return sha256_file(archive)
