"""A full disk and a read-only run directory: one sentence, and nothing that looks finished."""

import json
import os
from pathlib import Path

import pytest

from essence.errors import disk_error
from support.processes import stage_processes
from support.project import MICRO, invoke
from support.small_disk import mounted


@pytest.mark.slow
@pytest.mark.parametrize("full", [pytest.param("bytes", marks=pytest.mark.nightly), "files"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing_that_looks_finished(full: str, tmp_path: Path) -> None:
    """What a run does not see beforehand: the bytes of rows that are made, and how many files a disk has room for."""
    runs, experiment = tmp_path / "small", tmp_path / "full.toml"
    rows = 20_000 if full == "bytes" else 150
    text = f'extends = "{MICRO}"\ntitle = "Too much"\n[datasets.tiny.options]\nrows = {rows}\n'
    experiment.write_text(text, encoding="utf-8")
    with mounted(runs, "size=4m" if full == "bytes" else "size=1g,nr_inodes=40"):
        words = ("--experiment", str(experiment), "--runs", str(runs))
        done = invoke("run", "--only", "download", *words)
        assert done.returncode in (1, 2)  # the host process may be the first to write to it
        assert "no space is left on its disk; make room there" in done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        finished = {file.parent.name for file in runs.glob("stages/*/manifest.json")}
        assert all((runs / "stages" / name / "output").is_dir() for name in finished)
        assert len(finished) < 3
        # Otherwise the file system could not be taken away either.
        assert stage_processes(runs) == []


def test_a_host_that_cannot_go_on_leaves_no_stage_behind(tmp_path: Path) -> None:
    words = ("run", "--experiment", str(MICRO), "--only", "download", "--runs", str(tmp_path))
    second = json.loads(invoke(*words, "--dry-run", "--json").stdout)[1]["id"]
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / second).write_text("in the way of the stage's folder")
    done = invoke(*words)
    assert done.returncode == 2 and "a file has that name, where a folder is wanted" in done.stderr
    assert stage_processes(tmp_path) == []


def test_a_read_only_run_directory_is_one_sentence(tmp_path: Path) -> None:
    runs = tmp_path / "frozen"
    with mounted(runs, "size=1m,ro"):
        done = invoke("run", "--experiment", str(MICRO), "--only", "download", "--runs", str(runs))
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert str(runs) in done.stderr and "its disk is read-only; name another run directory with --runs" in done.stderr


def test_only_what_a_disk_refuses_is_told_so() -> None:
    assert disk_error(FileNotFoundError(2, os.strerror(2), "x"), "runs") is None
    assert "runs: no space" in str(disk_error(RuntimeError("I/O error: No space left on device (os error 28)"), "runs"))
