"""The choice of an engine when none was given: stand-ins for programs, a real server for Docker's answer."""

import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from essence.engines import ENGINES, environments
from essence.engines.choice import choose, queueing, site_of
from essence.engines.recipes import recipe
from essence.errors import ExperimentError
from essence.settings import EnvironmentName
from support.project import invoke

SMI = '#!/bin/sh\nfor i in 0 1 2 3; do echo "$i, NVIDIA H100 80GB HBM3, GPU-$i, 81559, 580.95.05"; done\n'


class Version(http.server.BaseHTTPRequestHandler):
    """Answers as a Docker engine does when it is asked for its version."""

    def do_GET(self) -> None:
        text = json.dumps({"Version": "28.5.2", "ApiVersion": "1.51", "MinAPIVersion": "1.24"}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with neither Docker, Apptainer, Slurm nor environments; the folder of its programs."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("git", "sh"):
        (programs / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no-docker.sock")
    monkeypatch.setenv(environments.FOLDER_VARIABLE, str(tmp_path / "none"))
    for name in ("ESSENCE_ENGINE", "ESSENCE_SITE"):
        monkeypatch.delenv(name, raising=False)
    return programs


@pytest.fixture
def docker_answers(nothing: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Version)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{server.server_port}")
    yield nothing
    server.shutdown()
    thread.join()
    server.server_close()


def put(programs: Path, name: str, text: str = "#!/bin/sh\n") -> None:
    (programs / name).write_text(text, encoding="utf-8")
    (programs / name).chmod(0o755)


def test_docker_is_taken_where_an_engine_answers(docker_answers: Path) -> None:
    put(docker_answers, "apptainer")
    chosen = choose(None, True, ENGINES)
    assert chosen.name == "docker" and chosen.reason == "Docker 28.5.2 answers here"


@pytest.mark.parametrize("program", ["apptainer", "singularity"])
def test_apptainer_is_taken_where_no_docker_engine_answers(nothing: Path, program: str) -> None:
    put(nothing, "docker")  # the client alone
    put(nothing, program)
    chosen = choose(None, True, ENGINES)
    assert chosen.name == "apptainer" and program in chosen.reason


def test_environments_for_gpus_are_taken_where_there_are_no_containers(
    nothing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del nothing
    monkeypatch.setenv(environments.FOLDER_VARIABLE, str(tmp_path))
    for name in get_args(EnvironmentName):
        folder = tmp_path / f".venv-{name}"
        (folder / "bin").mkdir(parents=True)
        (folder / "bin" / "python").touch()
        shutil.copy(recipe(name, "cuda").lock, folder / environments.LOCK)
    chosen = choose(None, True, ENGINES)
    assert chosen.name == "local" and "the environments for GPUs are" in chosen.reason
    (tmp_path / ".venv-eval" / environments.LOCK).unlink()  # its making was cut off
    assert "environments" not in choose(None, True, ENGINES).reason


def test_with_neither_a_login_node_says_how_to_queue(nothing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(None, True, ENGINES).reason == "neither Docker nor Apptainer is here" and not queueing("invoke run")
    put(nothing, "sbatch")
    reason = choose(None, True, ENGINES).reason
    assert reason.endswith("this is a login node: --engine slurm --site FILE.toml queues jobs")
    assert queueing("invoke run --lsp 0.5").endswith("invoke run --lsp 0.5 --engine slurm --site FILE.toml")
    monkeypatch.setenv("ESSENCE_SITE", "ours.toml")
    assert queueing("invoke run --lsp 0.5").endswith("--site ours.toml")


def test_what_was_typed_and_the_default_of_a_machine_come_first(
    docker_answers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del docker_answers
    assert choose("local", True, ENGINES).name == "local"
    assert choose(None, False, ENGINES).name == "local"
    monkeypatch.setenv("ESSENCE_ENGINE", "apptainer")
    assert choose(None, False, ENGINES).name == choose(None, True, ENGINES).name == "apptainer"
    assert choose("docker", True, ENGINES).name == "docker"
    monkeypatch.setenv("ESSENCE_ENGINE", "dokcer")
    with pytest.raises(ExperimentError, match="ESSENCE_ENGINE=dokcer: unknown engine; did you mean 'docker'"):
        choose(None, True, ENGINES)
    monkeypatch.setenv("ESSENCE_SITE", "ours.toml")
    assert site_of(None, "slurm") == "ours.toml" and site_of("mine.toml", "slurm") == "mine.toml"
    assert site_of(None, "local") is None


def test_with_neither_a_gpu_host_is_told_in_one_sentence_what_to_install(nothing: Path, tmp_path: Path) -> None:
    put(nothing, "nvidia-smi", SMI)
    runs = tmp_path / "runs"
    looked = json.loads(invoke("doctor", "--lsp", "0.5", "--json", "--runs", str(runs)).stdout)
    assert looked["engine"] == "local" and looked["engine_reason"] == "neither Docker nor Apptainer is here"
    sentence = next(check for check in looked["checks"] if "CPU build of PyTorch" in check["found"])
    assert all(word in sentence["cure"] for word in ("Docker", "Apptainer", "make setup-gpu"))
    dry = invoke("run", "--lsp", "0.5", "--dry-run", "--runs", str(runs))
    assert "# engine local: neither Docker nor Apptainer is here" in dry.stdout
