"""Images pushed to a registry and pulled from it, by Docker and by Apptainer: the same bytes, the same identity."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from essence.engines import registry_image
from essence.engines.docker import DockerEngine
from essence.engines.image_transfers import push
from essence.engines.published_images import published
from essence.engines.recipes import DIGEST_LABEL, LOCK_LABEL, config_digest, recipe
from essence.engines.registry_image import resolve
from essence.engines.sif_files import found_sif, sif_file
from essence.errors import MachineError
from essence.files import sha256_file
from support.containers import Apptainer, DockerHost, need, set_variables, started_engine, starting_obstacle
from support.image_registry import (
    LocalRegistry,
    pushed_sif,
    right_labels,
    started_gate,
    tiny_rootfs,
)
from support.project import MICRO, PROJECT, command_line, invoke

pytestmark = [
    *(pytest.mark.docker, pytest.mark.apptainer, pytest.mark.registry),
    pytest.mark.usefixtures("images_file", "known_registries"),
]
DOWNLOAD, TRAIN = recipe("download", "cpu"), recipe("train", "cpu")
HELD_BACK = 100_000
"""Bytes: a layer of a tiny image has more, a manifest and a configuration fewer."""


@pytest.fixture(scope="module")
def tiny(image_registry: LocalRegistry) -> str:
    """Address of a tiny image with the labels of the image of downloads."""
    name = "tiny/essence-download"
    return f"{image_registry.host}/{name}@{image_registry.push_bytes(name, right_labels('download'), tiny_rootfs())}"


@pytest.fixture
def set_aside(docker_host: DockerHost) -> Iterator[None]:
    """None of the kit's images here for a test; those that the session has built have their names again afterwards."""
    names = (DOWNLOAD.name, TRAIN.name)
    kept = {name: image for name in names for image in docker_host.client.images.list(name)}
    for name, image in kept.items():
        image.tag("essence-set-aside", image.id[7:19])
        docker_host.client.images.remove(name)
    yield
    forget(docker_host, "tiny/essence-")
    for name, image in kept.items():
        image.tag(*name.split(":"))
        docker_host.client.images.remove(f"essence-set-aside:{image.id[7:19]}")


def forget(host: DockerHost, repository: str) -> None:
    """Remove what a test pulled: by its names, so that other names of the same bytes stay."""
    for image in host.client.images.list():
        if any(repository in name for name in [*image.tags, *(image.attrs.get("RepoDigests") or [])]):
            host.client.images.remove(image.id, force=True)


@pytest.fixture
def sif_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "sif"
    monkeypatch.setenv("ESSENCE_SIF_FOLDER", str(folder))
    return folder


def publish_tiny(images_file: Path, address: str) -> None:
    images_file.write_text(f'[cpu]\ndownload = "{address}"\n', encoding="utf-8")


def test_what_is_published_is_pulled_instead_of_built(
    docker_host: DockerHost, tiny: str, images_file: Path, set_aside: None
) -> None:
    publish_tiny(images_file, tiny)
    engine, said = DockerEngine("cpu"), []
    assert engine._not_published([DOWNLOAD]) == []
    engine.make([DOWNLOAD], said.append)
    assert any(re.search(rf"{DOWNLOAD.name}: .* compressed to be pulled from {re.escape(tiny)}", line) for line in said)
    found = resolve(published(DOWNLOAD))  # type: ignore[arg-type]
    assert engine.built("download").labels == right_labels("download")
    assert config_digest(docker_host.client, engine.built("download")) == found.config_digest
    assert engine.image("download")["digest"] == found.config_digest
    # Issued again, nothing is fetched, and no room is wanted.
    assert found.missing_gib(set(found.configuration.rootfs.diff_ids)) == 0.0 and engine.is_current(DOWNLOAD)


def test_a_run_pulls_what_is_published_before_its_first_stage(
    docker_host: DockerHost, image_registry: LocalRegistry, images_file: Path, set_aside: None, tmp_path: Path
) -> None:
    name, labels = "tiny/essence-train", right_labels("train")
    wrong = image_registry.push_bytes(name, {**labels, LOCK_LABEL: "another"}, tiny_rootfs())
    right = image_registry.push_bytes(name, labels, tiny_rootfs())
    words = (
        "run",
        "--experiment",
        str(MICRO),
        "--only",
        "download",
        "--engine",
        "docker",
        "--runs",
        str(tmp_path / "r"),
    )
    images_file.write_text(f'[cpu]\ntrain = "{image_registry.host}/{name}@{wrong}"\n', encoding="utf-8")
    done = invoke(*words)
    assert done.returncode == 2 and f"its label {LOCK_LABEL} is another, wanted {TRAIN.lock_sha256}" in done.stderr
    assert "remove its line from" in done.stderr and not docker_host.client.images.list(TRAIN.name)
    images_file.write_text(f'[cpu]\ntrain = "{image_registry.host}/{name}@{right}"\n', encoding="utf-8")
    assert "# essence-train:cpu: to be pulled, as" in invoke(*words, "--dry-run").stdout
    assert not docker_host.client.images.list(TRAIN.name)
    done = invoke(*words)
    assert f"to be pulled from {image_registry.host}/{name}@{right}" in done.stdout, done.stdout + done.stderr
    # What stands for Python in a tiny image makes nothing: that no container writes is found out before a stage starts.
    assert done.returncode == 2 and "what a container writes to" in done.stderr, done.stdout + done.stderr
    assert DockerEngine("cpu").built("train").labels == labels


def test_what_was_pulled_by_hand_is_taken(
    docker_host: DockerHost, image_registry: LocalRegistry, tiny: str, set_aside: None
) -> None:
    assert not DockerEngine("cpu").is_current(DOWNLOAD)
    subprocess.run(["docker", "pull", "--quiet", tiny], check=True, capture_output=True)
    engine = DockerEngine("cpu")
    assert engine.is_current(DOWNLOAD) and engine.built("download").attrs["RepoDigests"] == [tiny]
    # Also where the name belongs to one of another state.
    name = "tiny/essence-download"
    old = f"{image_registry.host}/{name}@{image_registry.push_bytes(name, {LOCK_LABEL: 'old'}, tiny_rootfs())}"
    subprocess.run(["docker", "pull", "--quiet", old], check=True, capture_output=True)
    docker_host.client.images.get(old).tag(*DOWNLOAD.name.split(":"))
    assert engine.image("download")["digest"] == resolve(registry_image.typed_address("", tiny)).config_digest
    subprocess.run(["docker", "rmi", tiny], check=True, capture_output=True)
    with pytest.raises(MachineError, match=r"its label essence\.lock-sha256 is old"):
        DockerEngine("cpu").built("download")


def test_what_is_pushed_is_known_by_the_digest_that_the_registry_answers(
    docker_host: DockerHost, image_registry: LocalRegistry, tiny: str, images_file: Path, set_aside: None
) -> None:
    publish_tiny(images_file, tiny)
    DockerEngine("cpu").make([DOWNLOAD], print)
    images_file.write_text("[cpu]\n\n[cuda]\n", encoding="utf-8")
    done = invoke("images", "--flavour", "cpu", "--only", "download", "--push", f"{image_registry.host}/pushed")
    assert done.returncode == 0, done.stdout + done.stderr
    address = published(DOWNLOAD)
    assert address and f'cpu.download = "{address}"' in done.stdout
    assert address.repository == f"{image_registry.host}/pushed/essence-download"
    words = ["skopeo", "inspect", "--tls-verify=false", "--format", "{{.Digest}}"]
    tagged = f"docker://{address.repository}:cpu"
    told = subprocess.run([*words, tagged], capture_output=True, text=True, check=True).stdout.strip()
    assert told == address.digest
    ours = config_digest(docker_host.client, docker_host.client.images.get(DOWNLOAD.name))
    assert resolve(address).config_digest == ours == resolve(registry_image.typed_address("", tiny)).config_digest
    forget(docker_host, "pushed/essence-download")


def test_the_identity_is_the_same_with_the_store_of_containerd(
    image_registry: LocalRegistry, tiny: str, images_file: Path
) -> None:
    need("docker", starting_obstacle())
    publish_tiny(images_file, tiny)
    with started_engine(nvidia=False, containerd_store=True) as host, set_variables(host.variables):
        engine = DockerEngine("cpu")
        engine.make([DOWNLOAD], print)
        built = engine.built("download")
        digest = resolve(registry_image.typed_address("", tiny)).config_digest
        # Its id is that of the manifest.
        assert built.id == tiny.partition("@")[2] != digest == engine.image("download")["digest"]
        address = push(engine.client, DOWNLOAD, built, f"{image_registry.host}/stored", print)
        assert address.name == "stored/essence-download" and resolve(address).config_digest == digest


def test_a_registry_that_takes_nothing_is_told(images_file: Path, tiny: str, set_aside: None) -> None:
    publish_tiny(images_file, tiny)
    DockerEngine("cpu").make([DOWNLOAD], print)
    assert invoke("sif", "--from", "docker://127.0.0.1:9/me/essence-train@sha256:" + "0" * 64).returncode == 2
    done = invoke("images", "--flavour", "cpu", "--only", "download", "--push", "127.0.0.1:9/me")
    assert done.returncode == 2 and "the registry 127.0.0.1:9 does not answer" in done.stderr
    assert images_file.read_text(encoding="utf-8").count("=") == 1


def test_a_sif_of_an_image_in_a_registry_has_its_identity(apptainer: Apptainer, tiny: str, sif_folder: Path) -> None:
    del apptainer
    done = invoke("sif", "--from", f"docker://{tiny}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "compressed to be pulled from" in done.stdout and "self-test of a tiny image" in done.stderr
    record = found_sif(DOWNLOAD, "")
    digest = resolve(registry_image.typed_address("", tiny)).config_digest
    assert record.config_digest == digest == record.labels[DIGEST_LABEL]
    assert {label: record.labels[label] for label in right_labels("download")} == right_labels("download")
    again = invoke("sif", "--from", f"docker://{tiny}")
    assert again.returncode == 0 and f"is there, of {DOWNLOAD.name} {digest}" in again.stdout
    assert sorted(path.name for path in sif_folder.iterdir() if path.name.startswith(".")) == []


def test_a_ready_sif_is_known_by_its_own_hash_and_its_image(
    apptainer: Apptainer, tiny: str, sif_folder: Path, tmp_path: Path
) -> None:
    assert invoke("sif", "--from", f"docker://{tiny}").returncode == 0
    file, repository = sif_file(DOWNLOAD), tiny.partition("@")[0]
    right = pushed_sif(apptainer, file, f"{repository}:sif")
    sha256 = sha256_file(file)
    shutil.rmtree(sif_folder)
    done = invoke("sif", "--from", f"oras://{right}")
    assert done.returncode == 0, done.stdout + done.stderr
    record = found_sif(DOWNLOAD, "")
    assert record.sha256 == sha256 == sha256_file(file)
    assert record.config_digest == resolve(registry_image.typed_address("", tiny)).config_digest
    assert f"is there, sha256 {sha256}" in invoke("sif", "--from", f"oras://{right}").stdout
    # A repository without its image cannot confirm what its label says.
    alone = pushed_sif(apptainer, file, f"{repository.partition('/')[0]}/alone/essence-download:sif")
    shutil.rmtree(sif_folder)
    done = invoke("sif", "--from", f"oras://{alone}")
    assert done.returncode == 2 and "cannot confirm" in done.stderr and not list(sif_folder.glob("*.sif"))
    assert "is a SIF" in invoke("sif", "--from", f"docker://{right}").stderr


@pytest.mark.parametrize("scheme", ["docker", "oras"])
def test_a_typed_digest_in_a_sif_is_refused(
    apptainer: Apptainer, image_registry: LocalRegistry, sif_folder: Path, tmp_path: Path, scheme: str
) -> None:
    zeros = f"sha256:{'0' * 64}"
    if scheme == "docker":
        labels = {**right_labels("download"), DIGEST_LABEL: zeros}
        name = "typed/essence-download"
        address = f"{image_registry.host}/{name}@{image_registry.push_bytes(name, labels, tiny_rootfs())}"
    else:
        address = pushed_sif(apptainer, empty_sif(apptainer, tmp_path, zeros), f"{image_registry.host}/typed:sif")
    done = invoke("sif", "--from", f"{scheme}://{address}")
    assert done.returncode == 2 and f"its label {DIGEST_LABEL} is {zeros}" in done.stderr, done.stderr
    assert not list(sif_folder.glob("*.sif"))


def empty_sif(apptainer: Apptainer, folder: Path, digest: str) -> Path:
    """A SIF that holds nothing but labels."""
    lines = "".join(
        f"    {name} {value}\n" for name, value in {**right_labels("download"), DIGEST_LABEL: digest}.items()
    )
    (folder / "empty.def").write_text(f"Bootstrap: scratch\n\n%labels\n{lines}", encoding="utf-8")
    command = [str(apptainer.program), "build", str(folder / "empty.sif"), str(folder / "empty.def")]
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    return folder / "empty.sif"


def test_a_pull_that_is_killed_is_issued_again_and_two_at_once_do_not_meet(
    apptainer: Apptainer, image_registry: LocalRegistry, tiny: str, sif_folder: Path
) -> None:
    del apptainer
    with started_gate(image_registry, HELD_BACK) as gate:
        command = command_line("sif", "--from", f"docker://{gate.host}/{tiny.partition('/')[2]}")
        first = started(command)
        assert gate.reached.wait(600)
        second = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=600)
        assert second.returncode == 2 and f"{sif_folder} is held by process {first.pid}" in second.stderr
        kill(first)
        assert not list(sif_folder.glob("*.sif"))
        gate.open.set()
        third = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=600)
    assert third.returncode == 0, third.stderr
    assert found_sif(DOWNLOAD, "").config_digest
    assert [path.name for path in sif_folder.iterdir() if path.name.startswith(".")] == []


def test_a_pull_of_docker_that_is_killed_leaves_no_half_image(
    docker_host: DockerHost, image_registry: LocalRegistry, tiny: str, images_file: Path, set_aside: None
) -> None:
    code = "from essence.engines.docker import DockerEngine; from essence.engines.recipes import recipe; "
    code += "DockerEngine('cpu').make([recipe('download', 'cpu')], print)"
    with started_gate(image_registry, HELD_BACK) as gate:
        publish_tiny(images_file, f"{gate.host}/{tiny.partition('/')[2]}")
        first = started([sys.executable, "-c", code])
        assert gate.reached.wait(600)
        kill(first)
        assert not DockerEngine("cpu").is_current(DOWNLOAD)
        gate.open.set()
        failures: list[Exception] = []
        both = [threading.Thread(target=make, args=(failures,)) for _ in range(2)]
        for one in both:
            one.start()
        for one in both:
            one.join()
    assert failures == [] and DockerEngine("cpu").is_current(DOWNLOAD)


def make(failures: list[Exception]) -> None:
    """What a run does before its first stage; two runs may do it at once."""
    try:
        DockerEngine("cpu").make([DOWNLOAD], print)
    except MachineError as error:
        failures.append(error)


def started(command: list[str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def kill(process: "subprocess.Popen[Any]") -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(60)
