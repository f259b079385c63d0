"""Apptainer: its command line, what is said where something is missing, and a stage whose host is gone."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from essence.engines.apptainer import (
    ApptainerEngine,
    argv,
    held_work_folder,
    network_variables,
    open_work_folder,
    work_folder,
)
from essence.engines.apptainer_stage import ApptainerStage, host_variables
from essence.engines.engine import Exit, Launch, Mount
from essence.engines.image_builds import to_be_made
from essence.engines.recipes import LOCK_LABEL, recipe
from essence.engines.sif_builds import check_sources
from essence.engines.sif_files import sif_file
from essence.engines.sif_sources import of_base
from essence.errors import ExperimentError, MachineError
from essence.files import GIB, sha256_file
from essence.record.run_directory import StageFolder
from support.container_launch import RESOURCES
from support.containers import Apptainer, Sifs
from support.project import MICRO, PROJECT, invoke
from support.slurm_cluster import stand_in_sif

GOLDEN = PROJECT / "tests" / "golden" / "apptainer.txt"
RENEW = "ESSENCE_RENEW_GOLDEN=1 .venv/bin/pytest tests/engines/test_engine_apptainer.py -k golden"


def some_stage(**changes: object) -> Launch:
    """A training as it is asked for on a GPU host, with folders that are not looked at."""
    folder, read = Path("/runs/stages/train-0123"), Path("/runs/stages/tokenize-4567")
    asked = {"gpus": 2, "memory_gib": 64.0, "ulimits": {"memlock": -1, "nofile": 65536}}
    plain = Launch(
        stage="train",
        stage_id="train-0123",
        title="train a cell",
        environment="train",
        folder=StageFolder(folder),
        mounts=(Mount(read, read, True), Mount(folder, folder, False)),
        network=False,
        resources=RESOURCES.model_copy(update=asked),
        variables={"OMP_NUM_THREADS": "8"},
        user=(1000, 1000),
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


@pytest.fixture
def plain_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine that the tests run on."""
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,7")
    for name in list(os.environ):
        if name.startswith("SLURM_") or name.lower().endswith("_proxy") or name in ("HF_ENDPOINT", "SSL_CERT_FILE"):
            monkeypatch.delenv(name)


def test_the_command_line_is_the_golden_one(plain_machine: None) -> None:
    del plain_machine
    download = some_stage(stage="download", environment="download", network=True, resources=RESOURCES)
    lines = [argv(around, Path(f"/sif/{around.environment}.sif")) for around in (some_stage(), download)]
    text = "\n".join("\n  ".join(line) for line in lines) + "\n"
    text = text.replace(f"ESSENCE_HOST={socket.gethostname()}\n", "ESSENCE_HOST=host\n")
    if os.environ.get("ESSENCE_RENEW_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8"), f"{GOLDEN} differs; if it is meant: {RENEW}"


def test_it_can_be_printed_where_there_is_neither_apptainer_nor_a_sif(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("ESSENCE_SIF_FOLDER", str(tmp_path / "none"))
    done = invoke("reproduce", str(MICRO), "--engine", "apptainer", "--dry-run", "--runs", str(tmp_path / "runs"))
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "apptainer exec" in line]
    assert len(lines) == 15 and all(f"{tmp_path}/none/" in line for line in lines)
    assert not (tmp_path / "runs").exists()


def test_a_password_of_a_proxy_is_no_part_of_the_command_line(
    plain_machine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    del plain_machine
    monkeypatch.setenv("https_proxy", "http://me:planted@proxy:3128")
    around = some_stage(stage="download", environment="download", network=True)
    assert "planted" not in " ".join(argv(around, Path("download.sif"), lifeline=True))
    assert network_variables(around) == {"APPTAINERENV_https_proxy": "http://me:planted@proxy:3128"}
    assert network_variables(some_stage()) == {}


def test_the_same_stages_have_the_same_keys_as_under_docker(tmp_path: Path) -> None:
    runs = ("--runs", str(tmp_path))
    plans = [
        json.loads(invoke("reproduce", str(MICRO), "--engine", name, "--dry-run", "--json", *runs).stdout)
        for name in ("docker", "apptainer")
    ]
    assert [stage["id"] for stage in plans[0]] == [stage["id"] for stage in plans[1]]


def test_a_folder_whose_name_cannot_be_told_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "a:b"
    with pytest.raises(ExperimentError, match="holds ':', which Apptainer cannot be told"):
        argv(some_stage(mounts=(Mount(folder, folder, False),)), Path("x.sif"))


def test_the_folder_for_temporary_files_is_this_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    around = some_stage(user=(os.getuid(), os.getgid()))
    assert open_work_folder(around).stat().st_mode & 0o777 == 0o700
    work_folder(around).rmdir()
    work_folder(around).symlink_to(tmp_path)
    with pytest.raises(
        MachineError, match="belongs to somebody else; name another folder for temporary files with TMPDIR"
    ):
        open_work_folder(around)


def test_the_folder_stays_while_another_process_of_the_stage_uses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a second experiment has waited for a running stage and was refused because it is held."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = StageFolder(tmp_path / "stage")
    folder.path.mkdir()
    around = some_stage(folder=folder, user=(os.getuid(), os.getgid()))
    works = ApptainerStage(["sleep", "60"], around, *held_work_folder(around))
    waited = ApptainerStage(["false"], around, *held_work_folder(around))
    waited.process.wait()
    assert waited.poll() == Exit(1) and work_folder(around).is_dir()
    works.kill()
    assert not work_folder(around).exists()


def test_a_sif_that_is_replaced_while_a_run_goes_on_is_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESSENCE_SIF_FOLDER", str(tmp_path))
    monkeypatch.setattr("essence.engines.apptainer.version", lambda: "1")
    file = sif_file(recipe("train", "cpu"))
    stand_in_sif(file, recipe("train", "cpu"))
    engine = ApptainerEngine("cpu")
    assert engine.image("train")["sif_sha256"] == sha256_file(file)
    stand_in_sif(file.with_suffix(".new"), recipe("train", "cpu"))
    file.with_suffix(".new").rename(file)
    with pytest.raises(MachineError, match=r"train-cpu.sif: is not the file that this run began with"):
        engine.start(some_stage())


def test_what_apptainer_sees_of_the_caller_brings_nothing_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("APPTAINERENV_PYTHONPATH", "SINGULARITY_BIND", "APPTAINER_NV", "HF_TOKEN", "APPTAINER_TMPDIR"):
        monkeypatch.setenv(name, "planted")
    assert {name for name, value in host_variables().items() if value == "planted"} == {"APPTAINER_TMPDIR"}


def one_sentence(done: "subprocess.CompletedProcess[str]") -> str:
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    return done.stderr


def test_without_apptainer_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    if shutil.which("apptainer"):
        pytest.skip("Apptainer is installed where every system's programs lie")
    run = invoke("reproduce", str(MICRO), "--engine", "apptainer", "--runs", str(tmp_path / "runs"))
    for said in (one_sentence(run), one_sentence(invoke("sif", "--flavour", "cpu"))):
        assert "the apptainer command is not installed here; install Apptainer" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.apptainer
def test_without_a_sif_or_with_a_wrong_one_there_is_one_sentence(
    apptainer: Apptainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "sif"
    folder.mkdir()
    monkeypatch.setenv("ESSENCE_SIF_FOLDER", str(folder))
    run = ("reproduce", str(MICRO), "--engine", "apptainer", "--runs", str(tmp_path / "runs"))
    for name in ("eval-cpu.sif", "train-cpu.sif"):
        (folder / name).write_bytes(b"no SIF")
    assert f"{folder}/eval-cpu.sif: no SIF that Apptainer can read" in one_sentence(invoke(*run))
    empty_sif(apptainer, folder / "eval-cpu.sif", {})
    said = one_sentence(invoke(*run))
    assert (
        f"{folder}/eval-cpu.sif was built from another state of the project: its label {LOCK_LABEL} is absent" in said
    )
    empty_sif(apptainer, folder / "eval-cpu.sif", {"essence.config-digest": "sha256:0"})
    assert "its label essence.config-digest is sha256:0, which nothing here has computed" in one_sentence(invoke(*run))
    empty_sif(apptainer, folder / "eval-cpu.sif", {LOCK_LABEL: "another"})
    said = one_sentence(invoke(*run))
    assert (
        f"{folder}/eval-cpu.sif was built from another state of the project: its label {LOCK_LABEL} is another" in said
    )
    assert recipe("eval", "cpu").lock_sha256 in said and "make sif FLAVOUR=cpu" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.nightly
@pytest.mark.apptainer
def test_a_run_makes_the_sifs_that_it_lacks(sifs: Sifs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the images of this session; with too small a disk, and without any image, it ends with a sentence."""
    del sifs
    folder = tmp_path / "sif"
    monkeypatch.setenv("ESSENCE_SIF_FOLDER", str(folder))
    cells = ("run", "--experiment", str(MICRO), "--only", "download", "--engine", "apptainer")
    where = ("--runs", str(tmp_path / "runs"))
    told = to_be_made([recipe("train", "cpu")])
    assert f"# {told}" in invoke(*cells, *where, "--dry-run").stdout
    done = invoke(*cells, *where)
    assert done.returncode == 0, done.stderr
    assert f"{folder}/train-cpu.sif: of essence-train:cpu sha256:" in done.stdout
    assert [file.name for file in sorted(folder.glob("*.sif"))] == ["train-cpu.sif"]
    found = (folder / "train-cpu.sif").stat().st_mtime_ns
    assert invoke(*cells, *where).returncode == 0 and (folder / "train-cpu.sif").stat().st_mtime_ns == found


def test_too_small_a_disk_is_told_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESSENCE_SIF_FOLDER", str(tmp_path / "sif"))
    large = recipe("train", "cuda")
    free = shutil.disk_usage(tmp_path).free / GIB
    small = recipe("download", "cpu")
    check_sources([(small, of_base(small))])
    with pytest.raises(MachineError, match=r"sif: .* GiB are free, and making essence-train:cuda, .* takes about"):
        check_sources([(large, of_base(large))] * (int(free / large.size.compressed_gib) + 1))


def empty_sif(apptainer: Apptainer, file: Path, labels: dict[str, str]) -> None:
    """A SIF that holds nothing but labels."""
    definition = file.with_suffix(".def")
    lines = "".join(f"    {name} {value}\n" for name, value in labels.items())
    setup = '%setup\n    mkdir -p "$APPTAINER_ROOTFS/bin"\n'
    definition.write_text(f"Bootstrap: scratch\n\n{setup}\n%labels\n{lines}", encoding="utf-8")
    command = [apptainer.program, "build", "--force", "--notest", file, definition]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def lonely() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that is to stop when its standard input closes."""
    code = "import time; from essence.progress import *; s = StopRequest(); s.install(); stop_when_alone()\n"
    code += (
        "print('up', flush=True)\nwhile not s: time.sleep(0.05)\nprint(s.signal_name, flush=True); raise SystemExit(75)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=PROJECT,
        env={**os.environ, "ESSENCE_LIFELINE": "1"},
    )
    yield process
    process.kill()
    process.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells it")
def test_a_stage_is_asked_to_stop_when_its_host_is_gone(lonely: "subprocess.Popen[bytes]") -> None:
    assert lonely.stdout and lonely.stdin and lonely.stdout.readline() == b"up\n"
    lonely.stdin.close()
    assert lonely.stdout.read() == b"SIGTERM\n" and lonely.wait(60) == 75


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells it")
def test_a_stage_whose_host_was_gone_before_it_began_ends_at_once() -> None:
    code = "from essence.progress import *; stop_when_alone(); print('on')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=b"",
        capture_output=True,
        cwd=PROJECT,
        env={**os.environ, "ESSENCE_LIFELINE": "1"},
    )
    assert done.returncode == 75 and done.stdout == b""
