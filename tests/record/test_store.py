"""The run directory: who holds it, what counts as finished, what a kill between two steps leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from essence.errors import HeldError, RecordError
from essence.files import read_json, write_json
from essence.record.attempts import AttemptJournal
from essence.record.run_directory import StageFolder, hold, holder_alive
from support.processes import HOLDER


@pytest.fixture
def other_holder(tmp_path: Path):
    """Another process that holds `tmp_path / 'held'`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "held")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_is_told_who_holds_a_folder(tmp_path: Path, other_holder: subprocess.Popen[str]) -> None:
    with pytest.raises(HeldError, match=rf"the folder is held by process {other_holder.pid} on \S+ since .*\(a test\)"):
        with hold(tmp_path / "held", "the folder", "mine"):
            pytest.fail("held twice")
    assert holder_alive(tmp_path / "held")


def test_a_killed_holder_lets_go(tmp_path: Path, other_holder: subprocess.Popen[str]) -> None:
    other_holder.send_signal(signal.SIGKILL)
    other_holder.wait()
    assert not holder_alive(tmp_path / "held")
    with hold(tmp_path / "held", "the folder", "mine", wait_s=5):
        assert read_json(tmp_path / "held" / "holder.json")["pid"] == os.getpid()
    assert not (tmp_path / "held" / "holder.json").exists()


def test_a_reused_process_number_is_not_the_holder(tmp_path: Path) -> None:
    import socket

    long_ago = {"pid": os.getpid(), "host": socket.gethostname(), "since": 1.0, "command": "old"}
    write_json(tmp_path / "holder.json", long_ago)
    assert not holder_alive(tmp_path)


def test_a_process_of_a_container_is_not_the_one_here_with_its_number(tmp_path: Path) -> None:
    import socket

    # Number 1 lives on every machine since before anything else.
    holder = {"pid": 1, "host": socket.gethostname(), "command": "in a container", "pid_namespace": "pid:[1]"}
    write_json(tmp_path / "holder.json", {**holder, "since": time.time() - 1000})
    assert not holder_alive(tmp_path)
    write_json(tmp_path / "progress.json", {"updated": time.time()})
    assert holder_alive(tmp_path)
    # What an earlier one told does not make one silent that has just begun.
    write_json(tmp_path / "progress.json", {"updated": time.time() - 500})
    write_json(tmp_path / "holder.json", {**holder, "since": time.time() - 1})
    assert holder_alive(tmp_path)


def test_output_without_a_manifest_is_not_finished(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path)
    folder.open_partial()
    (folder.partial / "a.txt").write_text("a", encoding="utf-8")
    folder.commit()
    assert folder.output.is_dir() and not folder.done
    folder.open_partial()
    assert (folder.partial / "a.txt").read_text(encoding="utf-8") == "a" and not folder.output.exists()


def test_states(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path)
    assert folder.state() == "left"
    AttemptJournal(folder.attempts, folder.progress)
    assert folder.state() == "interrupted"
    write_json(folder.failure, {"message": "no"})
    assert folder.state() == "failed"
    write_json(folder.manifest, {})
    assert folder.state() == "done"


def test_attempts_of_a_killed_process_count_up_to_its_last_sign_of_life(tmp_path: Path) -> None:
    file, progress = tmp_path / "attempts.jsonl", tmp_path / "progress.json"
    first = AttemptJournal(file, progress)
    write_json(progress, {"updated": first.unix + 7.5})
    with file.open("a", encoding="utf-8") as torn:
        torn.write('{"ended": "fini')
    AttemptJournal(file, progress).end("failed")
    third = AttemptJournal(file, progress)
    time.sleep(0.01)
    attempts = third.attempts()
    assert [attempt.outcome for attempt in attempts] == ["killed", "failed", "finished"]
    assert attempts[0].seconds == 7.5 and attempts[2].seconds > 0


def test_a_damaged_record_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    for text in ('{"a": 1', "[1]", "\x00"):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(RecordError, match=r"plan\.json: damaged"):
            read_json(file)
    write_json(file, {"a": [1, "ä"]})
    assert json.loads(file.read_text(encoding="utf-8")) == {"a": [1, "ä"]}
