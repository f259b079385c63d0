"""What is fetched where there is a network is all that is needed where there is none; a token leaves no trace."""

import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from docker.errors import NotFound

from essence.engines.docker import FOLDER
from support.containers import DockerHost
from support.local_hub import COMMIT, REPOSITORY, LocalHub, local_hub
from support.micro_results import pins
from support.processes import stage_processes
from support.project import MICRO, PROJECT, command_line, invoke

pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")

TOKEN = f"hf_planted_{secrets.token_hex(8)}"
"""Another one in each test process: they look for what holds their own."""
OFFLINE_TIMEOUT_S = 1500


def matrix(micro: Path, tmp_path: Path) -> tuple[str, ...]:
    """Options of one cell whose rows are downloaded and whose models are on disk."""
    file = tmp_path / "pins.toml"
    origin = f'[datasets.tiny]\nrepository = "{REPOSITORY}"\ncommit = "{COMMIT}"\n'
    file.write_text(pins(micro).read_text(encoding="utf-8") + origin, encoding="utf-8")
    return ("--experiment", str(MICRO), "--lsp", "0.5", "--pins", str(file), "--runs", str(tmp_path / "runs"))


def rows_of(micro: Path, folder: Path) -> Path:
    """The rows that the local run has made, as a hub has them."""
    plan = json.loads((micro / "micro" / "plan.json").read_text(encoding="utf-8"))
    made = next(i for i, stage in plan["stages"].items() if stage["title"] == "download dataset tiny")
    shutil.copytree(micro / "stages" / made / "output" / "rows", folder / "rows")
    return folder


@pytest.fixture
def hub(micro: Path, tmp_path: Path) -> Iterator[LocalHub]:
    with local_hub(rows_of(micro, tmp_path / "hub")) as server:
        yield server


def without_network(*arguments: str) -> subprocess.CompletedProcess[str]:
    """An invoke command in a network namespace of its own: not even a loopback answers."""
    space = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]
    if subprocess.run([*space, "true"], capture_output=True).returncode:
        pytest.skip("this user may not make a network namespace")
    line = [*space, *command_line(*arguments)]
    return subprocess.run(line, cwd=PROJECT, capture_output=True, text=True, timeout=OFFLINE_TIMEOUT_S)


@pytest.mark.slow
def test_after_invoke_download_everything_runs_without_a_network(
    hub: LocalHub, micro: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = matrix(micro, tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    refused = without_network("run", *words)
    assert refused.returncode == 2 and "needs all downloads (here: 1 still to come: dataset tiny" in refused.stderr
    assert "into this run directory: invoke download" in refused.stderr and not (tmp_path / "runs").exists()
    assert invoke("doctor", *words, "--offline").returncode == 2
    done = invoke("download", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert hub.sent > 0
    ready = without_network("doctor", *words, "--offline")
    assert ready.returncode == 0 and "every hash verified" in ready.stdout, ready.stdout
    done = without_network("run", *words)
    assert done.returncode == 0, done.stdout + done.stderr


def seen_of_processes(runs: Path, mine: set[int]) -> str:
    """Command lines of all processes, and the environments of those that work on stages."""
    lines = []
    for process in psutil.process_iter(["cmdline", "pid"]):
        if process.info["pid"] not in mine:
            lines += process.info["cmdline"] or []
    for process in stage_processes(runs):
        try:
            lines.append(str(process.environ()))
        except psutil.Error:
            continue
    return "\n".join(lines)


def leaks(folder: Path) -> list[Path]:
    """Files below a folder that hold the token; other processes may remove theirs meanwhile."""
    return [file for file in folder.rglob("*") if file.is_file() and TOKEN.encode() in content(file)]


def content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""


@pytest.fixture
def fetching(
    request: pytest.FixtureRequest, micro: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, LocalHub]]:
    """An engine, and a hub that its downloads can reach."""
    engine, address = request.param, "127.0.0.1"
    if engine == "apptainer":
        request.getfixturevalue("sifs")
    if engine == "docker":
        host: DockerHost = request.getfixturevalue("docker_host")
        request.getfixturevalue("images")
        address = host.client.networks.get("bridge").attrs["IPAM"]["Config"][0]["Gateway"]
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, address)
    with local_hub(rows_of(micro, tmp_path / "hub"), address) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield engine, hub


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fetching", "kept"),
    [
        pytest.param("local", "variable", marks=pytest.mark.nightly),
        ("local", "file"),
        *(pytest.param(name, "variable", marks=getattr(pytest.mark, name)) for name in ("docker", "apptainer")),
    ],
    indirect=["fetching"],
)
def test_a_token_reaches_the_hub_and_nothing_else(
    fetching: tuple[str, LocalHub],
    kept: str,
    micro: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    engine, hub = fetching
    if kept == "variable":
        monkeypatch.setenv("HF_TOKEN", TOKEN)
    else:
        monkeypatch.delenv("HF_TOKEN", raising=False)
        (tmp_path / "login").write_text(TOKEN)
        monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "login"))
    runs = tmp_path / "runs"
    words = matrix(micro, tmp_path)
    line = command_line("run", *words, "--engine", engine, "--only", "tokenize")
    host = subprocess.Popen(line, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seen: list[str] = []
    while host.poll() is None:
        seen.append(seen_of_processes(runs, {os.getpid()}))
        if engine == "docker":
            seen += inspected(request.getfixturevalue("docker_host"), runs)
        time.sleep(0.1)
    said, _ = host.communicate()
    assert host.returncode == 0, said
    # The look whether the hub answers goes without.
    assert hub.authorizations == {"", f"Bearer {TOKEN}"}
    assert any("essence.stages" in text for text in seen)
    assert [text for text in [*seen, said] if TOKEN in text] == []
    assert leaks(runs) == []
    assert kept_in_memory() == []
    jobs = invoke("run", *words, "--engine", "slurm", "--dry-run")
    assert TOKEN not in jobs.stdout + jobs.stderr
    if engine == "docker":
        assert TOKEN not in of_images(request.getfixturevalue("docker_host"), request.getfixturevalue("images"))


def kept_in_memory() -> list[Path]:
    """Folders that hold the token for a download; those of other test processes hold another one."""
    return [folder for folder in Path("/dev/shm").glob(f"essence-{os.getuid()}-*") if leaks(folder)]


def inspected(host: DockerHost, runs: Path) -> list[str]:
    """Everything that the engine reports of the containers of a run directory."""
    found = []
    for short in host.client.api.containers(all=True, filters={"label": FOLDER}):
        if short["Labels"][FOLDER].startswith(f"{runs}/"):
            try:
                found.append(json.dumps(host.client.api.inspect_container(short["Id"])))
            except NotFound:
                continue
    return found


def of_images(host: DockerHost, images: list[str]) -> str:
    """Configuration and history of the images."""
    found = [host.client.images.get(name) for name in images]
    return json.dumps([[image.attrs, image.history()] for image in found])


def test_fetching_leaves_the_plan_of_another_engine(
    hub: LocalHub, micro: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster's jobs have other keys than this machine's stages; no plan would name what they have trained."""
    words = matrix(micro, tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    folder, before = tmp_path / "runs" / "micro", {}
    assert invoke("download", *words).returncode == 0
    for name in ("plan.json", "experiment.json"):
        before[name] = (folder / name).read_text(encoding="utf-8").replace("train-", "train-of-a-job-")
        (folder / name).write_text(before[name], encoding="utf-8")
    done = invoke("download", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {name: (folder / name).read_text(encoding="utf-8") for name in before} == before
    other = (micro / "micro" / "plan.json").read_text(encoding="utf-8")  # of models that the kit makes
    (folder / "plan.json").write_text(other, encoding="utf-8")
    assert invoke("download", *words).returncode == 0
    assert (folder / "plan.json").read_text(encoding="utf-8") != other
