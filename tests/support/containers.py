"""Fixtures: a Docker engine, Apptainer, and a Slurm of one node, for a test session.

What already runs is used and left as found; the rest is set up below a temporary folder. Where that cannot be, the
tests are skipped with the reason, or fail when ESSENCE_REQUIRE names the engine.
"""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock
from rich.console import Console

import docker
from essence.commands.images import build
from essence.commands.sif import build as build_sifs
from essence.engines.image_builds import ENVIRONMENTS, OVERLAY_VARIABLE
from essence.engines.recipes import bases, recipe
from essence.settings import EnvironmentName
from support import debian_tools
from support.debian_tools import run
from support.project import PROJECT, required
from support.scratch_disk import scratch_disk
from support.session_folders import bridge_of, marked, session_folder

START_TIMEOUT_S = 300.0
BASE_IMAGE = "essence-test-base:latest"
CAP_NET_ADMIN, CAP_SYS_ADMIN = 12, 21


def need(engine: str, obstacle: str | None) -> None:
    """Skip, or fail where the engine is required, when there is an obstacle."""
    if obstacle:
        (pytest.fail if required(engine) else pytest.skip)(f"{engine} cannot run here: {obstacle}")


def capabilities() -> int:
    return int(re.search(r"CapEff:\s*(\w+)", Path("/proc/self/status").read_text())[1], 16)  # type: ignore[index]


def all_capabilities() -> bool:
    """True when this process has every capability that the kernel knows."""
    return capabilities() == (1 << (int(Path("/proc/sys/kernel/cap_last_cap").read_text()) + 1)) - 1


def lacking(*programs: str) -> str | None:
    absent = [name for name in programs if not shutil.which(name)]
    return f"{', '.join(absent)} missing (apt-get install)" if absent else None


def unpacking_obstacle() -> str | None:
    if os.geteuid() != 0 or not shutil.which("apt-get") or not debian_tools.KEYRING.is_file():
        return "nothing is installed, and only root on Debian can unpack it here"
    return None


@dataclass(frozen=True)
class DockerHost:
    """A Docker engine; its variables are set for the session."""

    client: docker.DockerClient
    variables: dict[str, str]
    started_here: bool


@pytest.fixture(scope="session")
def docker_host() -> Iterator[DockerHost]:
    """The running Docker engine, or one of the session's own."""
    found = running_engine()
    if found:
        yield DockerHost(found, {}, started_here=False)
        return
    need("docker", starting_obstacle())
    with started_engine(nvidia=True) as host, set_variables(host.variables):
        yield host


def running_engine() -> docker.DockerClient | None:
    try:
        client = docker.from_env()
        client.ping()
    except docker.errors.DockerException:
        return None
    return client


def starting_obstacle() -> str | None:
    if "overlay" not in Path("/proc/filesystems").read_text():
        return "the kernel has no overlay file system"
    if not all(capabilities() >> bit & 1 for bit in (CAP_NET_ADMIN, CAP_SYS_ADMIN)):
        return "no capability to make networks and mounts"
    return unpacking_obstacle() or lacking("runc", "iptables", "ip", "tini", "mmdebstrap")


@contextmanager
def started_engine(nvidia: bool, containerd_store: bool = False) -> Iterator[DockerHost]:
    """A Docker engine with its own bridge, data and socket; with `nvidia`, GPU requests meet a stand-in hook.

    Images are built twice as fast into Docker's own store as into containerd's, which alone can export archives.
    """
    programs = debian_tools.docker_engine()
    with session_folder() as folder, own_bridge(bridge_of(folder)), scratch_disk(folder / "data"):
        paths = [programs / "usr" / "bin", programs / "usr" / "sbin", Path("/usr/sbin"), Path("/sbin")]
        if nvidia:
            hook = folder / "bin" / "nvidia-container-runtime-hook"
            hook.parent.mkdir()
            hook.write_text("#!/bin/sh\ncat >/dev/null\n", encoding="utf-8")
            hook.chmod(0o755)
            paths.insert(0, hook.parent)
        path = os.pathsep.join([*map(str, paths), os.environ["PATH"]])
        (folder / "config").mkdir()
        (folder / "config" / "cli-plugins").symlink_to(programs / "cli-plugins")
        (folder / "daemon.json").write_text(
            json.dumps({"features": {"containerd-snapshotter": containerd_store}}), encoding="utf-8"
        )
        url = f"unix://{folder}/docker.sock"
        command = [
            *("dockerd", "--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec", "--host", url),
            *("--pidfile", f"{folder}/pid", "--config-file", f"{folder}/daemon.json", "--bridge", bridge_of(folder)),
        ]
        with (folder / "log").open("wb") as log:
            daemon = subprocess.Popen(command, stdout=log, stderr=log, env={**marked(folder), "PATH": path})
        try:
            variables = {
                "DOCKER_HOST": url,
                "DOCKER_CONFIG": f"{folder}/config",
                "BUILDX_BAKE_ENTITLEMENTS_FS": "0",
                "PATH": os.pathsep.join([os.environ["PATH"], str(programs / "usr" / "bin")]),
            }
            yield DockerHost(wait_for_engine(url, daemon, folder / "log"), variables, started_here=True)
        finally:
            daemon.terminate()
            daemon.wait(START_TIMEOUT_S)


def wait_for_engine(url: str, daemon: "subprocess.Popen[bytes]", log: Path) -> docker.DockerClient:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            client = docker.DockerClient(base_url=url, timeout=300)
            client.ping()
            return client
        except docker.errors.DockerException:
            assert daemon.poll() is None and time.monotonic() < deadline, log.read_text()[-4000:]
            time.sleep(0.1)


@contextmanager
def own_bridge(name: str) -> Iterator[None]:
    """A bridge on a network that no route of this machine uses: another engine's bridge is left alone."""
    run("ip", "link", "add", name, "type", "bridge")
    try:
        # Another test run may look for one at the same moment.
        with FileLock(Path(tempfile.gettempdir()) / "ess-bridge.lock"):
            routes = run("ip", "route")
            free = next(number for number in range(200, 255) if f"172.31.{number}." not in routes)
            run("ip", "addr", "add", f"172.31.{free}.1/24", "dev", name)
            run("ip", "link", "set", name, "up")
        yield
    finally:
        run("ip", "link", "delete", name)


@contextmanager
def set_variables(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(scope="session")
def base_image(docker_host: DockerHost) -> Iterator[str]:
    """Name of an image that takes the place of the pinned bases: a Debian with Python."""
    need("docker", unpacking_obstacle() or lacking("mmdebstrap"))
    before = names_of_images(docker_host)
    load_base(docker_host.client)
    yield BASE_IMAGE
    if not docker_host.started_here and BASE_IMAGE not in before:
        docker_host.client.images.remove(BASE_IMAGE, force=True)


def names_of_images(host: DockerHost) -> set[str]:
    return {tag for image in host.client.images.list() for tag in image.tags}


def load_base(client: docker.DockerClient) -> None:
    archive = io.BytesIO()
    write_image(debian_tools.base_rootfs(), BASE_IMAGE, archive)
    client.images.load(archive.getvalue())


def overlay(base: str) -> str:
    """A bake file that lets one image take the place of every pinned base; the Dockerfiles stay as they are."""
    files = sorted((PROJECT / "docker").glob("*.Dockerfile"))
    lines = "".join(
        f'    "{pinned}" = "docker-image://{base}"\n'
        for pinned in sorted({image for file in files for image in bases(file).values()})
    )
    targets = [f'target "{file.stem}" {{\n  contexts = {{\n{lines}  }}\n}}\n' for file in files]
    return "".join(targets)


@pytest.fixture(scope="session")
def images(docker_host: DockerHost, base_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The three images of the flavour without CUDA, built from the Dockerfiles that ship."""
    file = tmp_path_factory.mktemp("bake") / "overlay.hcl"
    file.write_text(overlay(base_image), encoding="utf-8")
    before = names_of_images(docker_host)
    names = [recipe(environment, "cpu").name for environment in ENVIRONMENTS]
    with set_variables({OVERLAY_VARIABLE: str(file)}):
        assert build("cpu", None, Console(stderr=True)) == 0
        yield names
    for name in names:
        if not docker_host.started_here and name not in before:
            docker_host.client.images.remove(name, force=True)


def write_image(rootfs: Path, name: str, archive: io.BytesIO) -> None:
    """A root file system as an image of one layer, the same bytes each time."""
    with rootfs.open("rb") as file:
        layer = hashlib.file_digest(file, "sha256").hexdigest()
    then = "1970-01-01T00:00:00Z"
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "created": then,
            "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer}"]},
            "history": [{"created": then, "created_by": "substitute base of the tests"}],
        }
    ).encode()
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    index = [{"Config": config_name, "RepoTags": [name], "Layers": [f"{layer}.tar"]}]
    with tarfile.open(fileobj=archive, mode="w") as tar, rootfs.open("rb") as file:
        for member, content in ((config_name, config), ("manifest.json", json.dumps(index).encode())):
            entry = tarfile.TarInfo(member)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        entry = tarfile.TarInfo(f"{layer}.tar")
        entry.size = rootfs.stat().st_size
        tar.addfile(entry, file)


@dataclass(frozen=True)
class Apptainer:
    """Apptainer; its variables are set for the session."""

    program: Path
    variables: dict[str, str]
    needs_namespace: bool
    """Building with %post or %test, root without all capabilities must enter a user namespace first."""


@pytest.fixture(scope="session")
def apptainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apptainer]:
    """The installed Apptainer, or one unpacked from Debian's package."""
    found = shutil.which("apptainer")
    if not found:
        need("apptainer", unpacking_obstacle() or lacking("patchelf", "mksquashfs"))
    program = Path(found) if found else debian_tools.apptainer() / "bin" / "apptainer"
    folder = tmp_path_factory.mktemp("apptainer")
    restricted = os.geteuid() == 0 and not all_capabilities()
    variables = {
        "PATH": os.pathsep.join([str(program.parent), os.environ["PATH"]]),
        "APPTAINER_CACHEDIR": str(folder),
        "APPTAINER_TMPDIR": "/dev/shm" if Path("/dev/shm").is_dir() else str(folder),
        "APPTAINER_MKSQUASHFS_ARGS": "-comp zstd -Xcompression-level 1",
        **({"APPTAINER_NO_PRIVS": "1"} if restricted else {}),
    }
    with set_variables(variables):
        yield Apptainer(program, variables, restricted)


@dataclass(frozen=True)
class Sifs:
    """The three SIFs of the flavour without CUDA, in a folder that ESSENCE_SIF_FOLDER names for the session."""

    folder: Path
    apptainer: Apptainer

    def file(self, environment: EnvironmentName) -> Path:
        return self.folder / f"{environment}-cpu.sif"


@pytest.fixture(scope="session")
def sifs(apptainer: Apptainer, images: list[str]) -> Iterator[Sifs]:
    """Made from the images of the session by the command that ships; a folder that ESSENCE_SIF_FOLDER names is kept."""
    del images
    given = os.environ.get("ESSENCE_SIF_FOLDER")
    with nullcontext(Path(given)) if given else session_folder("sif-") as folder:
        # Other users may read them.
        folder.chmod(0o755)
        with set_variables({"ESSENCE_SIF_FOLDER": str(folder)}):
            assert build_sifs("cpu", None, None, Console(stderr=True)) == 0
            yield Sifs(folder, apptainer)
