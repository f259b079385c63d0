"""What vLLM compiled is kept, unless a start that failed may have left it half written."""

import multiprocessing
from pathlib import Path

import pytest

from essence.evaluation.decoders.kept_compilations import KEPT, kept_compilations

FORK = multiprocessing.get_context("fork")


class _KilledError(Exception):
    """In the place of a signal."""


def start(folder: Path, written: str, ends_well: bool, running: object = None) -> None:
    """An engine that writes a file while it starts; `running`: an event until which it goes on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEPT, str(folder))
        try:
            with kept_compilations():
                (folder / "vllm").mkdir(exist_ok=True)
                (folder / "vllm" / written).touch()
                if not ends_well:
                    raise _KilledError
        except _KilledError:
            return
        if running is not None:
            assert running.wait(60)  # type: ignore[attr-defined]


def in_its_own_process(*arguments: object) -> None:
    process = FORK.Process(target=start, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0


def kept(folder: Path) -> set[str]:
    return {path.name for path in (folder / "vllm").iterdir()}


def test_a_start_that_failed_leaves_nothing_to_the_next(tmp_path: Path) -> None:
    in_its_own_process(tmp_path, "one", True)
    in_its_own_process(tmp_path, "two", True)
    assert kept(tmp_path) == {"one", "two"}
    in_its_own_process(tmp_path, "half", False)
    assert kept(tmp_path) == {"one", "two", "half"}
    in_its_own_process(tmp_path, "three", True)
    assert kept(tmp_path) == {"three"}
    in_its_own_process(tmp_path, "four", True)
    assert kept(tmp_path) == {"three", "four"}


def test_nothing_is_removed_below_an_engine_that_runs(tmp_path: Path) -> None:
    over = FORK.Event()
    running = FORK.Process(target=start, args=(tmp_path, "one", True, over))
    running.start()
    while not (tmp_path / "vllm" / "one").exists():
        assert running.is_alive()
    in_its_own_process(tmp_path, "half", False)
    in_its_own_process(tmp_path, "two", True)
    assert kept(tmp_path) == {"one", "half", "two"}
    over.set()
    running.join()
    in_its_own_process(tmp_path, "three", True)
    assert kept(tmp_path) == {"three"}


def test_without_a_folder_nothing_is_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(KEPT, raising=False)
    monkeypatch.chdir(tmp_path)
    with kept_compilations():
        pass
    assert not list(tmp_path.iterdir())
