"""The SIFs: what their definitions say, what `invoke sif` makes of them, and that no wrong one is taken."""

import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from essence.engines.image_builds import ENVIRONMENTS, UNPACKED
from essence.engines.recipes import BASE_LABEL, DIGEST_LABEL, LOCK_LABEL, SOURCE_LABEL, config_digest, recipe
from essence.engines.sif_builds import build_command, definition_text
from essence.engines.sif_files import NO_DIGEST, checked_sif, found_sif
from essence.engines.sif_sources import ImageSource, of_archive, of_base
from essence.errors import MachineError
from essence.files import GIB, sha256_file
from support.containers import DockerHost, Sifs
from support.project import PROJECT, invoke


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_environment_has_a_definition_with_help_labels_test_and_runscript(environment: str) -> None:
    text = (PROJECT / "apptainer" / f"{environment}.def").read_text(encoding="utf-8")
    for section in ("%arguments", "%files", "%post", "%environment", "%labels", "%help", "%test", "%runscript"):
        assert f"\n{section}\n" in text
    flavour = "cpu" if environment == "download" else "cuda"
    assert f"FROM={recipe(environment, flavour).name}\n" in text  # type: ignore[arg-type]
    assert f"{DIGEST_LABEL} {{{{ CONFIG_DIGEST }}}}\n" in text


@pytest.mark.docker
@pytest.mark.apptainer
def test_a_sif_is_known_by_the_digest_of_its_image_and_its_own_hash(docker_host: DockerHost, sifs: Sifs) -> None:
    for environment in ENVIRONMENTS:
        image = recipe(environment, "cpu")
        record = found_sif(image, "")
        docker_image = docker_host.client.images.get(image.name)
        assert record.config_digest == config_digest(docker_host.client, docker_image)
        assert {label: record.labels[label] for label in docker_image.labels} == docker_image.labels
        assert record.labels[LOCK_LABEL] == image.lock_sha256 and record.labels[BASE_LABEL] == image.base
        assert record.sha256 == sha256_file(sifs.file(environment))
        help_text = subprocess.run(
            ["apptainer", "run-help", str(sifs.file(environment))], capture_output=True, text=True, check=True
        ).stdout
        assert "python -m essence.stages" in help_text
    assert not [path.name for path in sifs.folder.iterdir() if path.name.startswith(".")]


@pytest.mark.docker
@pytest.mark.apptainer
def test_what_is_there_is_not_made_again(sifs: Sifs) -> None:
    before = {path: path.stat().st_mtime_ns for path in sifs.folder.glob("*.sif*")}
    done = invoke("sif", "--flavour", "cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is there, of essence-") == 3
    assert {path: path.stat().st_mtime_ns for path in sifs.folder.glob("*.sif*")} == before


def stand_in(folder: Path, labels: dict[str, str]) -> Path:
    """An `apptainer inspect` that returns these labels for any file."""
    program = folder / "bin" / "apptainer"
    program.parent.mkdir()
    told = json.dumps({"data": {"attributes": {"labels": labels}}})
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{told}\nEND\n", encoding="utf-8")
    program.chmod(0o755)
    file = folder / "train-cpu.sif"
    file.write_bytes(b"no matter")
    return file


def labels_of(digest: str) -> dict[str, str]:
    image = recipe("train", "cpu")
    known = {LOCK_LABEL: image.lock_sha256, BASE_LABEL: image.base, SOURCE_LABEL: image.source_sha256}
    return {**known, DIGEST_LABEL: digest}


def test_a_sif_straight_from_its_base_is_known_without_a_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = stand_in(tmp_path, labels_of(NO_DIGEST))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    record = checked_sif(file, recipe("train", "cpu"), "")
    assert record.config_digest is None and record.sha256 == sha256_file(file)


@pytest.mark.parametrize("typed", [f"sha256:{'0' * 64}", "sha256:1", "unknown", ""])
def test_a_digest_that_is_only_typed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    file = stand_in(tmp_path, labels_of(typed))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(MachineError, match="which nothing here has computed"):
        checked_sif(file, recipe("train", "cpu"), "make sif")
    # Nor does a second look take what the first one wrote down.
    with pytest.raises(MachineError, match=r"take train-cpu\.sif\.json along from where it was made, or make sif"):
        checked_sif(file, recipe("train", "cpu"), "make sif")


def test_of_a_base_the_environment_is_installed_and_of_an_image_it_is_there(tmp_path: Path) -> None:
    image, definition = recipe("train", "cpu"), PROJECT / "apptainer" / "train.def"
    direct = of_base(image)
    assert direct.address.startswith("python@sha256:") and direct.config_digest is None
    stand_in(tmp_path, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
        whole = build_command(tmp_path / "a.sif", definition, image, direct)
        of_image = build_command(tmp_path / "a.sif", definition, image, ImageSource("docker-daemon", "it", "sha256:1"))
    assert f"LOCK_SHA256={image.lock_sha256}" in whole and f"CONFIG_DIGEST={NO_DIGEST}" in whole
    assert "CONFIG_DIGEST=sha256:1" in of_image
    text = definition.read_text(encoding="utf-8")
    assert definition_text(text, direct) == text
    cut = definition_text(text, ImageSource("docker-daemon", "it", "sha256:1"))
    assert [line for line in cut.splitlines() if line.startswith("%")] == [
        *("%arguments", "%environment", "%labels", "%help", "%test", "%runscript")
    ]


def test_the_digest_of_an_archive_is_computed_and_its_name_alone_is_refused(tmp_path: Path) -> None:
    image, archive = recipe("train", "cpu"), tmp_path / "train-cpu.tar"
    configuration = json.dumps({"config": {"Labels": image.wanted_labels()}}).encode()
    digest = hashlib.sha256(configuration).hexdigest()
    write_archive(archive, f"{digest}.json", configuration)
    assert of_archive(image, archive).config_digest == f"sha256:{digest}"
    gib = archive.stat().st_size / GIB
    assert of_archive(image, archive).unpacked_gib == gib
    write_archive(archive, f"{digest}.json", configuration, gzip.compress(b"layer"))
    # The store of containerd keeps layers compressed.
    assert of_archive(image, archive).unpacked_gib == archive.stat().st_size / GIB * UNPACKED
    write_archive(archive, f"blobs/sha256/{digest}", configuration)
    assert of_archive(image, archive).config_digest == f"sha256:{digest}"
    write_archive(archive, f"{'0' * 64}.json", configuration)
    with pytest.raises(MachineError, match=f"names its configuration 0{{64}}, whose bytes have {digest}"):
        of_archive(image, archive)


def write_archive(file: Path, name: str, configuration: bytes, layer: bytes = b"layer") -> None:
    """As `docker save` writes them."""
    index = json.dumps([{"Config": name, "Layers": ["layer.tar"]}]).encode()
    parts = {"manifest.json": index, name: configuration, "layer.tar": layer}
    with tarfile.open(file, "w") as tar:
        for path, content in parts.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
