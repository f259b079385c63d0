"""The place of a run and its surroundings: file systems without locks, all kinds of paths, the caller's variables."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from essence.engines.engine import surroundings
from essence.engines.inherited_variables import inherited
from essence.engines.local import variables
from essence.errors import DISK, ExperimentError, disk_error
from essence.files import write_atomically
from essence.paths import check_outside
from support.project import MICRO, PROJECT, invoke

FLOCK = r"""
#include <errno.h>
#include <stdlib.h>
int flock(int descriptor, int operation) { errno = atoi(getenv("FLOCK_ERRNO")); return -1; }
"""
HOLD = """
import sys
from pathlib import Path
from essence.errors import KitError
from essence.record.run_directory import hold
try:
    with hold(Path(sys.argv[1]), "the folder", "a test", wait_s=0.2):
        print("held")
except KitError as error:
    print(type(error).__name__, error)
"""
NO_LOCKS = "ENOLCK ENOTSUP ENOSYS EINVAL EACCES EBADF EIO EPERM ESTALE ENOTTY".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def no_flock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library whose `flock` gives the error of $FLOCK_ERRNO, as file systems without locks do."""
    folder = tmp_path_factory.mktemp("flock")
    (folder / "flock.c").write_text(FLOCK, encoding="utf-8")
    built = subprocess.run(["gcc", "-shared", "-fPIC", "-o", "flock.so", "flock.c"], cwd=folder, capture_output=True)
    assert built.returncode == 0, built.stderr
    return folder / "flock.so"


def with_flock(library: Path, name: str) -> dict[str, str]:
    return {**os.environ, "LD_PRELOAD": str(library), "FLOCK_ERRNO": str(getattr(errno, name))}


@pytest.mark.parametrize("name", NO_LOCKS)
def test_a_file_system_without_locks_is_one_sentence(no_flock: Path, tmp_path: Path, name: str) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "held")]
    done = subprocess.run(command, env=with_flock(no_flock, name), cwd=PROJECT, capture_output=True, text=True)
    assert done.stderr == "" and len(done.stdout.splitlines()) == 1
    assert done.stdout.startswith(f"MachineError the folder: {tmp_path}/held/lock cannot be locked (")
    assert "--runs" in done.stdout and not (tmp_path / "held" / "holder.json").exists()


def test_a_lock_of_somebody_else_is_no_missing_lock(no_flock: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "held")]
    done = subprocess.run(command, env=with_flock(no_flock, "EAGAIN"), cwd=PROJECT, capture_output=True, text=True)
    assert done.stdout.startswith("HeldError the folder is held by another process"), done.stderr


def test_a_run_without_locks_writes_nothing(no_flock: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "invoke", "run", "--experiment", str(MICRO), "--only", "download"]
    environment = with_flock(no_flock, "ENOLCK")
    done = subprocess.run(
        [*line, "--runs", str(tmp_path)], env=environment, cwd=PROJECT, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "ENOLCK" in done.stderr and not (tmp_path / "stages").exists()


def a_file(folder: Path) -> str:
    (folder / "file").touch()
    return str(folder / "file")


def in_a_file(folder: Path) -> str:
    return a_file(folder) + "/runs"


def stages_a_file(folder: Path) -> str:
    (folder / "stages").touch()
    return str(folder)


def experiment_a_file(folder: Path) -> str:
    (folder / "micro").touch()
    return str(folder)


def long_name(folder: Path) -> str:
    return str(folder / ("a" * 400))


def circle(folder: Path) -> str:
    (folder / "link").symlink_to(folder / "link")
    return str(folder / "link" / "runs")


def nobody(_: Path) -> str:
    return "~nobody-of-that-name/runs"


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (a_file, "is a file, where a folder is wanted"),
        (in_a_file, "is a file, where a folder is wanted"),
        (stages_a_file, "where a folder is wanted"),
        (experiment_a_file, "where a folder is wanted"),
        (long_name, "the path is too long"),
        (circle, "Symlink loop"),
        (nobody, "no user of this machine has the home folder ~nobody-of-that-name"),
    ],
)
def test_what_cannot_be_a_run_directory_is_one_sentence(tmp_path: Path, place, said: str) -> None:
    root = place(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    done = invoke("run", "--experiment", str(MICRO), "--only", "download", "--runs", root)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and done.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["a b", "réé 数", "100%s %d", "a\nb", "-x", "'\"$HOME", "[red]", "deep/" * 70 + "end"])
def test_names_of_every_kind_are_run_directories(tmp_path: Path, name: str) -> None:
    root = tmp_path / name
    root.mkdir(parents=True)
    done = invoke("run", "--experiment", str(MICRO), "--dry-run", "--json", "--runs", str(root))
    assert done.returncode == 0 and len(json.loads(done.stdout)) == 11, done.stderr  # without baselines


def test_a_run_directory_inside_its_data_is_refused(tmp_path: Path) -> None:
    data, other = tmp_path / "data", tmp_path / "other"
    (data / "runs").mkdir(parents=True)
    other.mkdir()
    check_outside(other, [data, tmp_path / "absent"])
    (data / "linked").symlink_to(other)
    for root in (data, data / "runs", other / "runs"):
        with pytest.raises(ExperimentError, match=r"is inside .*; name one outside with --runs"):
            check_outside(root, [data])
    pins = tmp_path / "pins.toml"
    pins.write_text(f'[datasets.tiny]\npath = "{data}"\n', encoding="utf-8")
    (data / "rows.jsonl").write_text('{"messages": []}\n', encoding="utf-8")
    options = ("--experiment", str(MICRO), "--pins", str(pins), "--runs", str(data / "runs"))
    done = invoke("run", *options)
    assert done.returncode == 2 and "is inside" in done.stderr and list((data / "runs").iterdir()) == []


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Variables that launchers leave behind, and that change numbers or how Python works."""
    names = (
        "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE GROUP_RANK ROLE_RANK NODE_RANK MASTER_ADDR MASTER_PORT "
        "TORCHELASTIC_RUN_ID SLURM_PROCID SLURM_NTASKS SLURM_NODEID SLURM_LOCALID PMI_RANK PMI_SIZE PMIX_RANK "
        "OMPI_COMM_WORLD_RANK OMPI_COMM_WORLD_SIZE MV2_COMM_WORLD_SIZE ACCELERATE_MIXED_PRECISION DS_ACCELERATOR "
        "FSDP_VERSION OMP_SCHEDULE OMP_DYNAMIC KMP_AFFINITY MKL_CBWR ATEN_CPU_CAPABILITY ONEDNN_MAX_CPU_ISA "
        "NVIDIA_TF32_OVERRIDE RAYON_NUM_THREADS VLLM_ATTENTION_BACKEND PYTHONSTARTUP PYTHONHASHSEED PYTHONOPTIMIZE "
        "PYTHONIOENCODING PYTHONWARNINGS ESSENCE_LIFELINE ESSENCE_HOST HF_TOKEN"
    )
    given = dict.fromkeys(names.split(), "7")
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("OMP_NUM_THREADS", "garbage")
    monkeypatch.setenv("MKL_NUM_THREADS", "garbage")
    yield given


def test_what_the_caller_left_behind_reaches_no_stage(hostile: dict[str, str]) -> None:
    assert not inherited().keys() & hostile.keys()
    kept = {name: os.environ[name] for name in ("PATH", "SLURM_JOB_ID")}
    assert inherited().items() >= kept.items()


def test_the_kits_own_variables_are_what_a_stage_has(hostile: dict[str, str], tmp_path: Path) -> None:
    from essence.commands.options import select
    from essence.engines.selected_run import Options

    selection = select(Options(experiment=str(MICRO), runs=str(tmp_path)), baselines=False)
    told = variables(surroundings(selection.wanted[0], selection.run_directory))
    assert told["PYTHONPATH"] == str(PROJECT) and told["ESSENCE_PARENT"] == str(os.getpid())
    assert told["OMP_NUM_THREADS"].isdigit() and told["MKL_NUM_THREADS"].isdigit()
    assert not told.keys() & hostile.keys()


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK"])
def test_a_rank_that_is_no_number_is_one_sentence(tmp_path: Path, name: str) -> None:
    from essence.distill.ranks import Ranks
    from essence.errors import MachineError

    with pytest.raises(MachineError, match=f"{name} = 'x' in the environment"):
        Ranks.of({"RANK": "0", name: "x"})


@pytest.mark.parametrize("number", DISK)
def test_every_refusal_of_a_path_names_it_and_a_cure(number: int) -> None:
    said = str(disk_error(OSError(number, os.strerror(number), "/some/place"), "elsewhere"))
    assert said.startswith("/some/place: ") and "; " in said and "\n" not in said


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "a.json", "half \udcff")
    assert list(tmp_path.iterdir()) == []
