"""What is compiled while a stage of the training environment runs lies in that stage's folder."""

import os
from pathlib import Path

import pytest

from essence.record.run_directory import StageFolder
from essence.stages.compilations import INDUCTOR, TRITON, compile_apart, remove_earlier


@pytest.fixture(autouse=True)
def callers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (INDUCTOR, TRITON):
        monkeypatch.setenv(name, "/the/caller/s")


def test_each_attempt_compiles_in_a_folder_of_its_own(tmp_path: Path) -> None:
    folder, attempts = StageFolder(tmp_path), set()
    for _ in range(2):
        compile_apart("train", folder)
        inductor, triton = Path(os.environ[INDUCTOR]), Path(os.environ[TRITON])
        assert inductor.parent == triton.parent and inductor.parent.parent == folder.scratch
        attempts.add(inductor.parent)
    assert len(attempts) == 2 and not folder.scratch.exists()


def test_what_a_killed_attempt_compiled_is_removed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no process of this attempt can have begun to compile yet."""
    folder = StageFolder(tmp_path)
    for _ in range(2):
        compile_apart("train", folder)
        Path(os.environ[TRITON]).mkdir(parents=True)
    (folder.scratch / "training").mkdir()
    own = Path(os.environ[TRITON]).parent
    monkeypatch.setenv("RANK", "0")
    remove_earlier(folder, nodes=1)
    monkeypatch.delenv("RANK")
    remove_earlier(folder, nodes=2)
    assert len(list(folder.scratch.iterdir())) == 3
    remove_earlier(folder, nodes=1)
    assert {path.name for path in folder.scratch.iterdir()} == {own.name, "training"} and (own / "triton").is_dir()


def test_pytorch_compiles_there(tmp_path: Path) -> None:
    runtime = pytest.importorskip("torch._inductor.runtime.cache_dir_utils", reason="PyTorch is not installed")
    compile_apart("train", StageFolder(tmp_path))
    for place in (runtime.cache_dir(), runtime.triton_cache_dir(0)):
        assert Path(place).parent.parent == StageFolder(tmp_path).scratch


def test_what_vllm_keeps_stays_where_the_launch_says(tmp_path: Path) -> None:
    compile_apart("generate", StageFolder(tmp_path))
    assert os.environ[INDUCTOR] == os.environ[TRITON] == "/the/caller/s"
