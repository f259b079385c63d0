"""What a record says of the code that made it."""

import os
import subprocess
from pathlib import Path

import pytest

from essence.record.facts import code_facts, query_gpus


def repository(folder: Path) -> Path:
    folder.mkdir()
    somebody = ("-c", "user.name=a", "-c", "user.email=a@b")
    for words in (("init", "-q"), (*somebody, "commit", "-q", "--allow-empty", "-m", "a")):
        subprocess.run(["git", "-C", str(folder), *words], check=True)
    return folder


def test_links_and_repositories_beside_the_code_are_named_in_the_diff(tmp_path: Path) -> None:
    """As people link a scratch disk or a data folder into their checkout."""
    project = repository(tmp_path / "project")
    clean, diff = code_facts(project)
    assert clean["commit"] and clean["dirty"] is False and diff == ""
    (project / "notes.txt").write_text("a")
    (project / "scratch").symlink_to(tmp_path)
    (project / "gone").symlink_to(tmp_path / "nothing")
    repository(project / "inner")
    facts, diff = code_facts(project)
    assert facts["dirty"] and facts["commit"] == clean["commit"]
    assert f"untracked: scratch -> {tmp_path}\n" in diff and f"untracked: gone -> {tmp_path / 'nothing'}\n" in diff
    assert "untracked: inner/ no file\n" in diff and "untracked: notes.txt ca978112" in diff
    (project / "scratch").unlink()
    (project / "scratch").symlink_to(tmp_path / "project")
    assert code_facts(project)[0]["diff_sha256"] != facts["diff_sha256"]


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("0, NVIDIA H100, GPU-1, 81559, 580.95.05", [("0", 79.65)]),
        ("0, NVIDIA GB10, GPU-1, [N/A], 580.95.05", [("0", None)]),
        ("WARNING: infoROM is corrupted at gpu 0000:3B:00.0\n0, NVIDIA H100, GPU-1, 81559, 580.95.05", [("0", 79.65)]),
        ("No devices were found", []),
        ("Failed to initialize NVML: Driver/library version mismatch", []),
        ("0, NVIDIA H100", []),
        ("", []),
    ],
)
def test_what_nvidia_smi_says_beside_gpus_is_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, found: list[tuple[str, float | None]]
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{said}\nEND\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    query_gpus.cache_clear()
    try:
        assert [(gpu.index, gpu.memory_gib) for gpu in query_gpus()] == found
    finally:
        query_gpus.cache_clear()
