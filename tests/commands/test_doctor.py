"""What is missing is said before anything is started, by `invoke doctor` in full and by every run in one sentence."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from essence.commands.doctor import doctor as command
from essence.commands.options import select
from essence.commands.plan import print_plan
from essence.engines import FLAVOURS
from essence.engines.local import check_torch
from essence.engines.recipes import cuda_of, least_driver, recipe
from essence.engines.selected_run import Options
from essence.errors import MachineError
from essence.files import GIB
from essence.plan.experiment import load
from essence.plan.fit import Room, fits_of
from essence.record.facts import query_gpus
from support.local_hub import local_hub
from support.project import MICRO, invoke
from support.small_disk import mounted

NOWHERE = "http://127.0.0.1:9"
"""The port of `discard`: nothing listens there."""
GPUS = """\
#!/bin/sh
for index in {indices}; do
  echo "$index, {gpu}, GPU-$index, {mib}, {driver}"
done
"""


Look = Callable[..., tuple[int, dict[str, dict[str, Any]]]]


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Look:
    """`invoke doctor --json`: its exit code, and what was found by its name."""

    def look(offline: bool = False, **words: str) -> tuple[int, dict[str, dict[str, Any]]]:
        query_gpus.cache_clear()
        code = command(Options(**words), offline, as_json=True, console=Console(stderr=True))
        told = json.loads(capsys.readouterr().out)
        assert told["ready"] == (code == 0) == all(check["ok"] for check in told["checks"])
        assert all(check["ok"] or check["cure"] for check in told["checks"])
        return code, {check["name"]: check for check in told["checks"]}

    return look


@pytest.fixture
def stand_in_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Four GPUs, as reported by a stand-in for nvidia-smi."""

    def put(gib: float, driver: str, gpu: str = "NVIDIA H100 80GB HBM3") -> None:
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        program.write_text(
            GPUS.format(indices="0 1 2 3", mib=int(gib * 1024), driver=driver, gpu=gpu), encoding="utf-8"
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")

    yield put
    query_gpus.cache_clear()


@pytest.mark.skipif(len(query_gpus()) >= 4, reason="this machine has the GPUs that bespoke needs")
def test_a_laptop_is_told_all_that_bespoke_needs_and_nothing_is_written(
    doctor: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    runs = tmp_path / "runs"
    code, found = doctor(runs=str(runs))
    assert code == 2
    missing = {name for name, check in found.items() if not check["ok"]}
    assert {"GPUs", "environments", "downloads"} <= missing and found["pins"]["ok"]
    memory = found["memory of the stages"]
    assert memory["ok"] or "(and 9 more) needs about 61.0 GiB of main memory" in memory["found"]
    assert found["GPUs"]["wanted"] == "4 GPUs of 80 GiB" and found["GPUs"]["found"] == "no GPU"
    assert "CPU build of PyTorch" in found["environments"]["found"]
    assert "6 still to come: model qwen3-4b-base" in found["downloads"]["found"]
    assert found["downloads"]["cure"].endswith(f"invoke download --runs {runs}")
    told = invoke("doctor", "--runs", str(runs))
    assert told.returncode == 2 and f"of {len(found)} things are missing" in told.stdout
    assert not runs.exists()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:80a")
    _, found = doctor(runs=str(runs))
    assert "http://127.0.0.1:80a does not answer (nonnumeric port: '80a')" in str(found["downloads"])


def test_nothing_is_missing_for_the_miniature(doctor: Look, tmp_path: Path) -> None:
    code, found = doctor(experiment=str(MICRO), runs=str(tmp_path))
    assert code == 0 and found["environments"]["found"] == "eval, train are there" and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("gib", "driver", "flavour", "check", "problem"),
    [
        (79.6, "530.30.02", "cuda", "driver", "driver 580.65.06 or newer for CUDA 13.0.1 of essence-train:cuda"),
        (79.6, "580.95.05", "cpu", "driver", "an image with CUDA for these GPUs"),
        (39.6, "580.95.05", "cuda", "GPUs", "4 GPUs of 80 GiB"),
        (79.6, "580.95.05", "cuda", "", ""),
    ],
)
def test_driver_and_memory_of_the_gpus_against_image_and_cell(
    doctor: Look, stand_in_gpus: Any, tmp_path: Path, gib: float, driver: str, flavour: str, check: str, problem: str
) -> None:
    stand_in_gpus(gib, driver)
    _, found = doctor(lsp=0.5, engine="docker", flavour=flavour, runs=str(tmp_path))
    for name in ("GPUs", "driver"):
        assert found[name]["ok"] == (name != check)
    if check:
        assert found[check]["wanted"] == problem
    if check == "driver" and flavour != "cpu":
        assert found[check]["found"] == driver


@pytest.mark.parametrize(
    ("gpu", "driver", "tried"),
    [
        ("NVIDIA H100 80GB HBM3", "570.86.15", True),
        ("NVIDIA A100-SXM4-80GB", "535.104.05", True),
        ("NVIDIA L40S", "550.54", True),
        ("NVIDIA H100 80GB HBM3", "530.30.02", False),
        ("NVIDIA GeForce RTX 4090", "570.86.15", False),
        ("NVIDIA RTX A1000", "570.86.15", False),
    ],
)
def test_an_older_driver_is_let_be_tried_where_forward_compatibility_is(
    doctor: Look, stand_in_gpus: Any, tmp_path: Path, gpu: str, driver: str, tried: bool
) -> None:
    stand_in_gpus(79.6, driver, gpu)
    _, found = doctor(lsp=0.5, engine="docker", flavour="cuda", runs=str(tmp_path))
    assert found["driver"]["ok"] == tried
    assert ("works with forward compatibility, to be tried" in found["driver"]["found"]) == tried


def test_only_the_gpus_that_the_caller_was_given_count(
    doctor: Look, stand_in_gpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in_gpus(79.6, "580.95.05")
    for visible, found_gpus in (("2,3", 2), ("GPU-1,0,3", 3), ("", 4), ("MIG-1", 4)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        _, found = doctor(lsp=0.5, engine="docker", runs=str(tmp_path))
        assert found["GPUs"]["found"] == f"{found_gpus} GPUs of 80 GiB" and found["GPUs"]["ok"] == (found_gpus == 4)


@pytest.mark.parametrize(("experiment", "settings"), [("bespoke", 1), ("pairs", 9), ("paper", 15)])
def test_each_cell_of_the_paper_s_matrices_fits_its_machine_or_has_its_least_change(
    doctor: Look,
    stand_in_gpus: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    experiment: str,
    settings: int,
) -> None:
    """On four GPUs of 80 GB with 128 GB of main memory, on one of them, and with half of that main memory.

    The 30 settings of `paper` are 15 pairs of trainings, each evaluated on two benchmarks.
    """
    stand_in_gpus(79.6, "580.95.05")
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    loaded = load(experiment)
    names = {f"training {cell.name}" for cell in loaded.cells()}
    setting = {(cell.pair, cell.dataset, cell.protocol) for cell in loaded.cells() if cell.lsp == 0.5}
    assert len(setting) == settings and len(loaded.experiment.evaluation.benchmarks) == 2
    words: dict[str, Any] = {"experiment": experiment, "engine": "docker", "runs": str(tmp_path / "runs")}
    for main_gib, gpus in ((125.6, None), (125.6, 1), (62.8, None)):
        monkeypatch.setattr("psutil.virtual_memory", lambda gib=main_gib: SimpleNamespace(total=gib * GIB))
        asked = words if gpus is None else {**words, "gpus": gpus}
        selection = select(Options(**asked), baselines=True)
        fits = fits_of(selection.plan, selection.run_directory, Room(79.6, main_gib))
        assert names < {fit.what for fit in fits}
        unfit = [fit for fit in fits if not fit.fits]
        assert all(bool(fit.change) != fit.fits for fit in fits)
        _, found = doctor(**asked)
        check = found["memory of the stages"]
        if (main_gib, gpus) == (125.6, None):
            assert unfit == [] and check["found"].startswith(f"all {len(fits)} trainings and evaluated models fit: ")
        else:
            more = re.findall(r"(?: \(and (\d+) more\))? needs about", check["found"])
            assert sum(1 + int(number or 0) for number in more) == len(unfit) > 0
            assert set(check["cure"].split("; ")) == {fit.change for fit in unfit}
        if main_gib > 100.0:  # a plan is for the main memory of the experiment's own resources
            print_plan(Options(**asked), as_json=False, console=Console(width=300, markup=False))
            printed = capsys.readouterr().out
            assert printed.count("does not fit (✗)") == len(unfit)
            assert all(fit.change in printed for fit in unfit)


def test_a_login_node_that_downloads_need_not_have_the_memory_of_the_jobs(doctor: Look, tmp_path: Path) -> None:
    more = '[training]\nparallel = "ddp"\nprocesses = 2\n[resources]\nnodes = 2\nmemory_gib = 1e6\n'
    large = written(tmp_path / "large.toml", CHANGED + more)
    for only, memory, machines in (("download", False, False), ("tokenize", True, False), ("train", True, True)):
        _, found = doctor(experiment=large, runs=str(tmp_path / "runs"), only=only)
        assert ("memory" in found, "machines" in found) == (memory, machines)


def test_every_base_with_cuda_has_a_least_driver() -> None:
    bases = {recipe(name, flavour).base for name in ("train", "eval") for flavour in FLAVOURS}  # type: ignore[arg-type]
    assert {least_driver(cuda) for base in bases if (cuda := cuda_of(base))} == {"580.65.06"}


def written(file: Path, text: str) -> str:
    file.write_text(text, encoding="utf-8")
    return str(file)


CHANGED = f'extends = "{MICRO}"\ntitle = "changed"\n'


@pytest.mark.parametrize(
    ("change", "pins", "check", "problem"),
    [
        ("", '[models.tiny-student]\npath = "/no/model"\n', "pin", "its local path /no/model does not exist"),
        ("", '[datasets.tiny]\nrepository = "a/b"\ncommit = ""\n', "pin", "the pin of dataset 'tiny' (a/b) is empty"),
        ("[resources]\nmemory_gib = 1e6\n", "", "memory", "1e+06 GiB of memory"),
        ("[resources]\ngpus = 99\nparallel_stages = 1\n", "", "GPUs", "99 GPUs of 0 GiB"),
        (
            '[training]\nparallel = "ddp"\nprocesses = 2\n[resources]\nnodes = 2\n',
            "",
            "machines",
            "2 machines",
        ),
    ],
)
def test_what_an_experiment_lacks_is_named_and_a_run_says_the_same(
    doctor: Look, tmp_path: Path, change: str, pins: str, check: str, problem: str
) -> None:
    words = {
        "experiment": written(tmp_path / "changed.toml", CHANGED + change),
        "pins": written(tmp_path / "pins.toml", pins),
        "runs": str(tmp_path / "runs"),
    }
    code, found = doctor(**words)
    assert code == 2 and problem in found[check]["found"] + found[check]["wanted"]
    refused = invoke("run", *(part for name, word in words.items() for part in (f"--{name}", word)))
    assert refused.returncode == 2 and problem in refused.stderr and found[check]["cure"] in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1 and not (tmp_path / "runs").exists()


def test_a_disk_that_is_too_small_or_read_only(doctor: Look, tmp_path: Path, stand_in_gpus: Any) -> None:
    stand_in_gpus(79.6, "580.95.05")
    small = tmp_path / "small"
    with mounted(small, "size=300k"):
        _, found = doctor(lsp=0.5, runs=str(small))
    assert not found["disk"]["ok"] and found["disk"]["found"] == f"free in {small}: 0.3 MiB"
    frozen = tmp_path / "frozen"
    with mounted(frozen, "size=1m,ro"):
        code, found = doctor(experiment="tiny", runs=str(frozen / "runs"))
    assert code == 2 and found["run directory"]["found"] == f"{frozen / 'runs'}: its disk is read-only"


def test_a_download_with_a_changed_byte_is_named(doctor: Look, micro: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(micro, runs)
    words = {"experiment": str(MICRO), "runs": str(runs)}
    code, found = doctor(**words)
    assert code == 0 and "every hash verified" in found["downloaded files"]["found"]
    victim = next((runs / "stages").glob("download-*/output/**/*.safetensors"))
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    code, found = doctor(**words)
    assert code == 2 and f"{victim}: content differs" in found["downloaded files"]["found"]


def test_what_is_still_to_come_is_missing_where_no_hub_answers(
    doctor: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = '[datasets.tiny]\nrepository = "someone/rows"\ncommit = "0123456789abcdef0123456789abcdef01234567"\n'
    pins = written(tmp_path / "pins.toml", origin)
    words = {"experiment": str(MICRO), "pins": pins, "runs": str(tmp_path / "runs")}
    (tmp_path / "hub").mkdir()
    with local_hub(tmp_path / "hub") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        assert doctor(**words)[0] == 0
        code, found = doctor(offline=True, **words)
        assert code == 2 and found["downloads"]["found"] == "1 still to come: dataset tiny"
    code, found = doctor(**words)
    assert code == 2 and "127.0.0.1" in found["downloads"]["found"] and "does not answer" in found["downloads"]["found"]
    assert "invoke download --experiment" in found["downloads"]["cure"]


def test_without_an_engine_there_is_one_line_for_it(
    doctor: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    code, found = doctor(experiment=str(MICRO), engine="docker", runs=str(tmp_path / "runs"))
    assert code == 2 and "no Docker engine answers" in found["engine docker"]["found"]
    assert found["engine docker"]["cure"].startswith("start it") and not any("environment" in name for name in found)
    refused = invoke("run", "--experiment", str(MICRO), "--engine", "docker", "--runs", str(tmp_path / "runs"))
    assert refused.returncode == 2 and len(refused.stderr.strip().splitlines()) == 1


def test_torch_is_asked_for_by_its_build() -> None:
    check_torch(gpus=False)
    with pytest.raises(MachineError, match="CPU build of PyTorch"):
        check_torch(gpus=True)
