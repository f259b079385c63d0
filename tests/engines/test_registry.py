"""What is asked of a registry before an image is pulled, and every way in which it cannot be had: one sentence each."""

import json
import platform
import re
import shutil
import socket
import subprocess
import threading
from collections import namedtuple
from pathlib import Path

import pytest
import requests
from rich.console import Console

import docker
from essence.commands.images import build
from essence.engines import docker as docker_engine
from essence.engines import image_transfers, registry_image
from essence.engines.docker import DockerEngine
from essence.engines.image_address import check_place, is_loopback, read_address
from essence.engines.image_builds import to_be_made
from essence.engines.image_transfers import check_room
from essence.engines.published_images import PublishedFile, publish, published, read_published, read_to_publish
from essence.engines.recipes import BASE_LABEL, DIGEST_LABEL, LOCK_LABEL, SOURCE_LABEL, recipe
from essence.engines.registry import Registry
from essence.engines.registry_image import published_image, resolve, typed_address
from essence.engines.sif_builds import check_sources
from essence.engines.sif_sources import typed_source
from essence.errors import ExperimentError, KitError, MachineError
from support.image_registry import INDEX, MANIFEST, ZEROS, LocalRegistry, digest_of, refusal, right_labels
from support.project import PROJECT

pytestmark = pytest.mark.usefixtures("fresh_registries")
TRAIN = recipe("train", "cpu")
Usage = namedtuple("Usage", "total used free")


# Addresses


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("essence-train", "no image in a registry"),
        ("docker://essence-train@" + ZEROS, "no image in a registry"),
        ("docker://me/essence-train@" + ZEROS, "names no registry"),
        ("https://images.example/me/essence-train@" + ZEROS, "begins with https://"),
        ("docker://images.example/me/essence-train@sha256:123", "digest 'sha256:123' is none"),
        ("docker://images.example/me/essence-train@md5:123", "digest 'md5:123' is none"),
        ("docker://images.example/Me/Essence@" + ZEROS, "no image in a registry"),
        ("docker://user:secret@images.example/me/x@" + ZEROS, "no image in a registry"),
        ("docker://images..example/me/essence-train@" + ZEROS, "no image in a registry"),
        (f"docker://{'a' * 64}.io/me/essence-train@{ZEROS}", "no image in a registry"),
        ("", "no image in a registry"),
    ],
)
def test_what_is_no_address_by_digest_is_refused(typed: str, said: str) -> None:
    with pytest.raises(ExperimentError, match=re.escape(said)):
        typed_address("--from", typed)


def test_a_tag_beside_a_digest_says_nothing() -> None:
    found = read_address(f"docker://registry.example.org:5000/a/essence-train:cuda@{ZEROS}", "")
    assert str(found) == f"registry.example.org:5000/a/essence-train@{ZEROS}"


@pytest.mark.parametrize(
    "place",
    [
        "https://images.example/me",
        "images.example/me:latest",
        "images.example/Me",
        "me",
        "",
        "images.example//me",
        "images..example/me",
    ],
)
def test_what_is_no_registry_to_push_to_is_refused(place: str) -> None:
    with pytest.raises(ExperimentError, match="no registry"):
        check_place("--push", place)
    assert check_place("--push", "images.example/me/") == "images.example/me"


def test_only_this_machine_is_asked_without_tls() -> None:
    assert all(map(is_loopback, ("localhost", "localhost:5000", "127.0.0.1:1", "127.9.9.9")))
    assert not any(map(is_loopback, ("localhost.example.org", "127.0.0.1.example.org", "10.0.0.1:5000")))


# The file of published images


def test_the_file_that_ships_is_read_and_names_no_image_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ESSENCE_IMAGES_FILE", raising=False)
    shipped = read_published()
    assert (PROJECT / "locks" / "images.toml").read_text(encoding="utf-8") == shipped.text()
    assert published(TRAIN) is None and "to be made first" in to_be_made([TRAIN])


def test_what_is_published_is_written_and_read(images_file: Path) -> None:
    publish(TRAIN, typed_address("", f"docker://images.example/me/essence-train@{ZEROS}"))
    publish(recipe("download", "cuda"), typed_address("", f"docker://images.example/me/essence-download@{ZEROS}"))
    assert f'train = "images.example/me/essence-train@{ZEROS}"' in images_file.read_text(encoding="utf-8")
    assert str(published(TRAIN)) == f"images.example/me/essence-train@{ZEROS}"
    assert published(recipe("download", "cuda")) and published(recipe("train", "cuda")) is None
    assert "essence-train:cpu: to be pulled, as" in to_be_made([TRAIN, recipe("eval", "cpu")])
    assert to_be_made([TRAIN, recipe("eval", "cpu")]).startswith("essence-eval:cpu: to be made first")


def test_a_file_that_is_not_there_yet_is_begun_and_one_that_cannot_be_written_is_told_first(
    images_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images_file.unlink()
    with pytest.raises(ExperimentError, match=re.escape(str(images_file))):
        published(TRAIN)  # a run would build without a word what a mistyped name was to have it pull
    assert read_to_publish() == PublishedFile() and not images_file.exists()
    publish(TRAIN, typed_address("", f"docker://images.example/me/essence-train@{ZEROS}"))
    assert published(TRAIN)
    images_file.write_text("[cpu]\ntarin = 1\n", encoding="utf-8")
    # Before an engine is asked for: nothing has been pushed.
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent")
    with pytest.raises(ExperimentError, match="tarin"):
        build("cpu", "train", Console(quiet=True), "images.example/me")
    monkeypatch.setenv("ESSENCE_IMAGES_FILE", "/proc/sys/images.toml")
    with pytest.raises(KitError, match=r"/proc/sys/images\.toml"):
        build("cpu", "train", Console(quiet=True), "images.example/me")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('train = "images.example/me/essence-train:cpu"', "wanted an image by its digest"),
        (f'train = "oras://images.example/me/essence-train@{ZEROS}"', "wanted an image by its digest"),
        ('train = "images.example/me/essence-train@sha256:12"', "is none"),
        ('tarin = "x"', "tarin"),
        ("train = 1", "train"),
        ("train", "not valid TOML"),
    ],
)
def test_a_wrong_line_in_the_file_is_named(images_file: Path, line: str, said: str) -> None:
    images_file.write_text(f"[cpu]\n{line}\n", encoding="utf-8")
    with pytest.raises(ExperimentError, match=said) as refused:
        published(TRAIN)
    assert str(images_file) in str(refused.value)


# A real registry


@pytest.mark.registry
def test_a_right_image_is_known_by_what_its_manifest_says(image_registry: LocalRegistry) -> None:
    digest = image_registry.push_bytes("essence-train", right_labels("train"))
    image, source = typed_source(
        typed_address("--from", f"docker://{image_registry.host}/essence-train@{digest}"), None, None
    )
    found = resolve(typed_address("", f"{image_registry.host}/essence-train@{digest}"))
    assert image == TRAIN and source.config_digest == found.config_digest and source.gib
    seen = json.loads(skopeo("--config", f"{image_registry.host}/essence-train@{digest}"))
    assert seen["config"]["Labels"] == found.labels
    raw = skopeo("--raw", f"{image_registry.host}/essence-train@{digest}")
    assert digest_of(raw) == digest and json.loads(raw)["config"]["digest"] == found.config_digest


def skopeo(how: str, address: str) -> bytes:
    """What another client says of the same image."""
    words = ["skopeo", "inspect", "--tls-verify=false", *(["--config", "--raw"] if how == "--config" else [how])]
    return subprocess.run([*words, f"docker://{address}"], capture_output=True, check=True).stdout


@pytest.mark.registry
@pytest.mark.parametrize("label", [LOCK_LABEL, BASE_LABEL, SOURCE_LABEL, DIGEST_LABEL])
def test_an_image_of_another_lock_base_source_or_digest_is_refused(
    image_registry: LocalRegistry, images_file: Path, label: str
) -> None:
    digest = image_registry.push_bytes("essence-train", {**right_labels("train"), label: ZEROS})
    address = f"{image_registry.host}/essence-train@{digest}"
    assert f"its label {label} is {ZEROS}" in refusal(f"docker://{address}").problem
    images_file.write_text(f'[cpu]\ntrain = "{address}"\n', encoding="utf-8")
    with pytest.raises(MachineError, match=f"its label {label} is .*make images FLAVOUR=cpu, or remove its line"):
        published_image(TRAIN)


@pytest.mark.registry
def test_what_is_none_of_the_kits_images_is_refused(image_registry: LocalRegistry) -> None:
    digest = image_registry.push_bytes("busybox", {})
    assert "none of the kit's images" in refusal(f"docker://{image_registry.host}/busybox@{digest}").problem
    digest = image_registry.push_bytes("essence-train", right_labels("train"))
    address = typed_address("", f"docker://{image_registry.host}/essence-train@{digest}")
    for flavour, only in (("cuda", None), (None, "eval")):
        with pytest.raises(ExperimentError, match="is essence-train:cpu, asked for"):
            typed_source(address, flavour, only)
    assert typed_source(address, "cpu", "train")[0] == TRAIN
    assert f"no SIF; of an image a SIF is made: --from docker://{address}" in sif_refusal(str(address))


def sif_refusal(address: str) -> str:
    with pytest.raises(MachineError) as refused:
        registry_image.resolve_sif(typed_address("", f"oras://{address}"))
    return str(refused.value)


@pytest.mark.registry
def test_a_tag_is_refused_with_the_digest_that_it_has_now(image_registry: LocalRegistry) -> None:
    digest = image_registry.push_bytes("essence-train", right_labels("train"), tag="cpu")
    said = str(refusal(f"docker://{image_registry.host}/essence-train:cpu"))
    assert f"docker://{image_registry.host}/essence-train@{digest}" in said
    assert "is not there" in refusal(f"docker://{image_registry.host}/essence-train:nightly").problem


@pytest.mark.registry
def test_a_digest_that_is_not_there_is_named(image_registry: LocalRegistry) -> None:
    assert "is not there" in refusal(f"docker://{image_registry.host}/essence-train@{ZEROS}").problem
    assert "is not there" in refusal(f"docker://{image_registry.host}/nobody/knows@{ZEROS}").problem
    assert "is not there" in sif_refusal(f"{image_registry.host}/essence-train@{ZEROS}")


@pytest.mark.registry
def test_an_image_of_another_platform_is_refused_and_an_index_is_searched(image_registry: LocalRegistry) -> None:
    other = "arm64" if platform.machine() == "x86_64" else "amd64"
    here = registry_image.ARCHITECTURES[platform.machine()]
    name, labels = "essence-train", right_labels("train")
    digests = {arch: image_registry.push_bytes(name, labels, architecture=arch) for arch in (here, other)}
    said = str(refusal(f"docker://{image_registry.host}/{name}@{digests[other]}"))
    assert f"is of linux/{other}, this machine needs linux/{here}" in said

    def index(*architectures: str) -> str:
        members = [
            {
                "mediaType": MANIFEST,
                "size": 1,
                "digest": digests[arch],
                "platform": {"os": "linux", "architecture": arch},
            }
            for arch in architectures
        ]
        note = {"architecture": "unknown", "os": "unknown"}  # as buildx adds one for the origin
        members.append({"mediaType": MANIFEST, "size": 1, "digest": digests[other], "platform": note})
        document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": members}
        return image_registry.put_manifest(name, document)

    found = resolve(typed_address("", f"{image_registry.host}/{name}@{index(here, other)}"))
    assert found.address.digest == digests[here]
    assert f"is of linux/{other}" in refusal(f"docker://{image_registry.host}/{name}@{index(other)}").problem


class FullDisk:
    """An engine without images, whose disk is that of a folder; its address is that of a socket here.

    It does not say in time what its builds have kept.
    """

    class Api:
        base_url = "http+docker://localhost"
        api_version, timeout = "1.51", 120

        def images(self, filters: object) -> list[object]:
            del filters
            return []

        def get(self, url: str, **options: object) -> None:
            raise requests.ReadTimeout(f"{url}: no answer")

    api = Api()

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def info(self) -> dict[str, str]:
        return {"DockerRootDir": str(self.folder)}


def test_the_disk_is_asked_for_what_is_absent_altogether_and_not_for_that_of_another_machine(
    images_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del images_file
    monkeypatch.setattr(docker_engine, "check_buildx", lambda: None)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(1, 1, 0 if place == tmp_path else 1 << 50))
    engine, images = DockerEngine("cpu"), [TRAIN, recipe("eval", "cpu")]
    here: set[str] = set()
    monkeypatch.setattr(engine, "_look", lambda image: object() if image.name in here else None)
    engine.client = FullDisk(tmp_path)  # type: ignore[assignment]
    with pytest.raises(
        MachineError, match=rf"{tmp_path}: 0\.0 GiB are free, and making essence-train:cpu, essence-eval"
    ):
        engine.check_making([], images)
    here.add(TRAIN.name)
    with pytest.raises(MachineError, match=r"and making essence-eval:cpu takes about 4\.\d;"):
        engine.check_making([], images)
    here.add("essence-eval:cpu")
    engine.check_making([], images)
    here.clear()
    for address in ("http+docker://ssh", "http://engine.example.org:2375"):
        monkeypatch.setattr(FullDisk.Api, "base_url", address)
        engine.check_making([], images)


@pytest.mark.registry
def test_too_small_a_disk_is_told_before_the_pull(image_registry: LocalRegistry, tmp_path: Path) -> None:
    config = image_registry.put("essence-train", json.dumps(large_configuration()).encode())
    layer = {"mediaType": "application/octet-stream", "size": 1 << 50, "digest": digest_of(b"x")}
    image_registry.put("essence-train", b"x")
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": "application/json", "size": 1, "digest": config},
        "layers": [layer],
    }
    digest = image_registry.put_manifest("essence-train", document)
    address = typed_address("", f"{image_registry.host}/essence-train@{digest}")
    with pytest.raises(MachineError, match=rf"{tmp_path}: .* GiB are free, and .*{digest} takes about 3145728\.0"):
        check_room(FullDisk(tmp_path), resolve(address))  # type: ignore[arg-type]
    with pytest.raises(MachineError, match="GiB are free, and making essence-train:cpu takes about"):
        check_sources([typed_source(address, None, None)])


def large_configuration() -> dict[str, object]:
    rootfs = {"type": "layers", "diff_ids": [digest_of(b"unpacked")]}
    return {"architecture": "amd64", "os": "linux", "config": {"Labels": right_labels("train")}, "rootfs": rootfs}


def test_an_engine_is_not_asked_for_what_is_not_published(images_file: Path) -> None:
    assert "[cpu]" in images_file.read_text(encoding="utf-8")
    assert DockerEngine("cpu")._not_published([TRAIN]) == [TRAIN]


def test_a_transfer_says_how_far_it_is_and_why_it_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines as an engine writes them."""
    monkeypatch.setattr(image_transfers, "TOLD_EVERY_S", -1.0)
    lines = [
        {"status": "Pulling from me/essence-train", "id": "sha256"},
        {"status": "Downloading", "progressDetail": {"current": 1 << 30, "total": 1 << 31}, "id": "a"},
        {"status": "Downloading", "progressDetail": {"current": 1 << 30, "total": 1 << 31}, "id": "b"},
        {"status": "Extracting", "progressDetail": {"current": 7}, "id": "a"},
        {"errorDetail": {"message": "denied: no"}, "error": "denied:\n no"},
    ]
    said: list[str] = []
    events = image_transfers._events(lambda: iter(lines), "images.example/me/it", "pull")
    with pytest.raises(MachineError, match=r"example/me/it: Docker cannot pull it \(denied: no\); the engine has"):
        image_transfers._follow(events, "it:", said.append)
    assert [line.replace("\N{NO-BREAK SPACE}", " ") for line in said][-1] == "it: 2.0 GiB" and len(said) == 4


BEGUN = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "waits"),
    [
        (b'1f\r\n{"status"', False),
        (b'10\r\n{"status": "Pull\r\n', False),
        (b"6\r\n<html>\r\n0\r\n\r\n", False),
        (b"", True),
    ],
)
def test_a_transfer_that_breaks_off_is_told(answer: bytes, waits: bool) -> None:
    """Docker's own client, and what stands for an engine that dies or is cut off, at once or after a silence."""
    done = threading.Event()

    def serve(server: socket.socket) -> None:
        with server.accept()[0] as one:
            one.recv(1 << 16)
            one.sendall(BEGUN + answer)
            if waits:
                done.wait(0.3)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        client = docker.DockerClient(base_url=address, version="1.41", timeout=10)
        events = image_transfers._events(
            lambda: client.api.pull("a/b", tag="x", stream=True, decode=True), "it", "pull"
        )
        with pytest.raises(MachineError, match=r"it: Docker's answer broke off before the pull had ended \(.+\); look"):
            list(events)
        done.set()
        thread.join()
        client.close()


@pytest.mark.parametrize("host", ["images..example", f"{'a' * 64}.io", "images.example:99999"])
def test_a_host_that_cannot_be_one_is_no_traceback(host: str) -> None:
    """Where it comes from elsewhere than an address, as from a registry that names where a token is to be had."""
    with pytest.raises(MachineError, match=rf"the registry {re.escape(host)} does not answer"):
        Registry(host).check_answer()


def test_a_proxy_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@proxy.invalid:port")
    with pytest.raises(MachineError, match=r"through the proxy proxy\.invalid:port \(") as refused:
        Registry("registry.invalid").check_answer()
    assert "secret" not in str(refused.value)
