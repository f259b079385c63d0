"""A full disk and a read-only run directory: one sentence, and nothing that looks finished."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import MICRO, invoke
from test_matrix import stage_processes

from essence.errors import disk_error


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A small file system in memory; skipped where this user may not mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a small file system: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def heavier_than_told(folder: Path) -> Path:
    """A model whose file holds more than its config speaks of; pins that name it for teacher and student."""
    model = folder / "model"
    model.mkdir()
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    (model / "config.json").write_text(json.dumps(dict.fromkeys(sizes, 1)), encoding="utf-8")
    (model / "model.safetensors").write_bytes(os.urandom(2 << 20))
    pins = folder / "pins.toml"
    pins.write_text("".join(f'[models.{n}]\npath = "{model}"\n' for n in ("tiny-teacher", "tiny-student")))
    return pins


def test_a_full_disk_is_one_sentence_and_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    runs, pins = tmp_path / "small", heavier_than_told(tmp_path)
    with mounted(runs, "size=1m"):
        words = ("--experiment", str(MICRO), "--pins", str(pins), "--runs", str(runs))
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
    assert done.returncode == 1 and "FileExistsError" in done.stderr
    assert stage_processes(tmp_path) == []


def test_a_read_only_run_directory_is_one_sentence(tmp_path: Path) -> None:
    runs = tmp_path / "frozen"
    with mounted(runs, "size=1m,ro"):
        done = invoke("run", "--experiment", str(MICRO), "--only", "download", "--runs", str(runs))
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert str(runs) in done.stderr and "its disk is read-only; make room there, or name another" in done.stderr


def test_only_what_a_disk_refuses_is_told_so() -> None:
    assert disk_error(FileNotFoundError(2, os.strerror(2), "x"), "runs") is None
    assert "runs: no space" in str(disk_error(RuntimeError("I/O error: No space left on device (os error 28)"), "runs"))
