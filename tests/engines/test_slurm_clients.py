"""Slurm's commands in practice: another environment, unexpected output, no answer, and refusals, with stand-ins.

A stand-in is a program of the command's name that does what the documentation of Slurm says, and writes down its
environment and its words.
"""

import os
from pathlib import Path
from typing import Any

import pytest

from essence.engines.apptainer_stage import MACHINE_VARIABLE, host_variables
from essence.engines.slurm import queue, submit
from essence.engines.slurm.refusals import cure
from essence.engines.slurm.site import load_site
from essence.engines.slurm.submit import Submission
from essence.errors import SchedulerError, SilentSchedulerError
from essence.files import read_json_lines
from support.slurm_clients import PREFIXES, Clients, drawn
from support.slurm_job import job


@pytest.fixture
def clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clients:
    found = Clients(tmp_path / "clients")
    found.put("sbatch")
    found.put("squeue")
    monkeypatch.setenv("PATH", f"{found.folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(submit, "LOOK_AFTER_S", 0.0)
    for name in queue.OF_SLURM:
        # Of the Slurm of other tests in this process.
        monkeypatch.delenv(name, raising=False)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_no_variable_of_the_caller_changes_what_is_queued(
    clients: Clients, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    queue.submit("text", ["1"], ["2"])
    for name, value in drawn(seed).items():
        monkeypatch.setenv(name, value)
    queue.submit("text", ["1"], ["2"])
    queue.accepts("text")
    (words, plain, text), (again, mine, same), (_, tested, _) = clients.calls("sbatch")
    assert (words, text) == (again, same) and "--export=ALL" in words and "--dependency=afterok:1,afterany:2" in words
    assert plain == mine == tested
    assert not [name for name in mine if name.startswith(PREFIXES)]


def test_which_cluster_is_asked_is_the_callers_to_say(clients: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", "/etc/other.conf")
    monkeypatch.setenv("SLURM_JWT", "a.b.c")
    monkeypatch.setenv("HF_TOKEN", "planted")
    queue.submit("text")
    seen = clients.calls("sbatch")[0][1]
    assert seen["SLURM_CONF"] == "/etc/other.conf" and seen["SLURM_JWT"] == "a.b.c" and "HF_TOKEN" not in seen


@pytest.mark.parametrize("seed", range(5))
def test_no_variable_of_the_caller_reaches_a_container(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    for name, value in drawn(seed).items():
        monkeypatch.setenv(name, value)
    told = [name for name in host_variables() if name.startswith(("APPTAINER", "SINGULARITY"))]
    assert all(MACHINE_VARIABLE.fullmatch(name) for name in told)


QUEUED = "{job}|RUNNING|None|0|0|node1|(null)|{folder}|"


def test_a_submission_that_is_not_answered_is_looked_for_and_not_sent_twice(clients: Clients, tmp_path: Path) -> None:
    one = job(tmp_path / "stages")
    folder = str(one.surroundings.folder.path)
    clients.put("sbatch", "err sbatch: error: Batch job submission failed: Socket timed out on send/recv operation")
    clients.put("squeue", f"out {QUEUED.format(job=4711, folder=folder)}")
    submission = Submission(load_site("generic"), "generic")
    submission.add(one)
    assert submission.jobs == {one.surroundings.stage_id: "4711"} and len(clients.calls("sbatch")) == 1


@pytest.mark.parametrize(
    "silence",
    [
        "err sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
        "err sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received",
        "err sbatch: error: slurm_receive_msg: Unexpected message received",
        "out ",
    ],
)
def test_a_submission_that_slurm_did_not_take_is_tried_again(clients: Clients, tmp_path: Path, silence: str) -> None:
    clients.put("sbatch", silence, silence, "out 12;cluster")
    clients.put("squeue", "out ", "out ")
    submission = Submission(load_site("generic"), "generic")
    submission.add(one := job(tmp_path / "stages"))
    assert submission.jobs == {one.surroundings.stage_id: "12"} and len(clients.calls("sbatch")) == 3


def test_what_was_queued_stays_where_slurm_falls_silent(clients: Clients, tmp_path: Path) -> None:
    silent = ["err sbatch: error: Unable to contact slurm controller (connect failure)"] * submit.TRIES
    clients.put("sbatch", "out 12", *silent)
    clients.put("squeue", *["out "] * 5)
    clients.put("scancel")
    submission = Submission(load_site("generic"), "generic")
    first, second = job(tmp_path / "stages", "tokenize"), job(tmp_path / "stages", "train")
    submission.add_all([first, second])
    assert submission.jobs == {first.surroundings.stage_id: "12"} and submission.refusal
    assert not clients.calls("scancel") and second.surroundings.folder.path.is_dir()


@pytest.mark.parametrize(
    ("answer", "jobs"),
    [
        ("out Welcome to the cluster!|n|" + QUEUED.format(job=5, folder="/a"), ["5"]),
        ("out |||||||", []),
        ("out 5||None|0|0|n|(null)|/a|", []),
        ("out 5|RUNNING", []),
        ("out " + QUEUED.format(job="5_2", folder="/a"), ["5_2"]),
        ("out ", []),
    ],
)
def test_lines_of_the_queue_that_are_no_jobs_are_skipped(clients: Clients, answer: str, jobs: list[str]) -> None:
    clients.put("squeue", answer)
    assert [state.job for state in queue.queue()] == jobs


def test_a_folder_in_another_encoding_is_no_traceback(clients: Clients) -> None:
    program = clients.folder / "bin" / "squeue"
    program.write_bytes(b"#!/bin/sh\nprintf '5|RUNNING|None|0|0|n|(null)|/caf\\351|\\n'\n")
    assert [state.job for state in queue.queue()] == ["5"]


@pytest.mark.parametrize("answer", ["", "5|||", "5|COMPLETED", "x|COMPLETED|0:0|n", "hello", "5| |0:0|n"])
def test_lines_of_the_accounts_that_tell_no_end_are_skipped(clients: Clients, answer: str) -> None:
    clients.put("sacct", f"out {answer}")
    assert queue.ended(["5"]) == {}
    clients.put("sacct", "out Notice|n|5|CANCELLED by 1000|odd|n")
    assert queue.ended(["5"])["5"].state == "CANCELLED"


def test_an_answer_without_a_job_is_a_sentence(clients: Clients) -> None:
    clients.put("sbatch", "out Submitted to the scheduler of tomorrow")
    with pytest.raises(SilentSchedulerError, match=r"names no job .its answer: Submitted to the scheduler of tomorrow"):
        queue.submit("text")


POLICY = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"


@pytest.mark.parametrize(
    ("words", "about"),
    [
        (f"QOSMaxWallDurationPerJobLimit; Batch job submission failed: {POLICY}", "limits.train.time"),
        (
            "Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)",
            "limits.train.time",
        ),
        (f"AssocGrpCPUMinutesLimit; Batch job submission failed: {POLICY}", "no hours left"),
        (f"QOSGrpGRESMinutes; Batch job submission failed: {POLICY}", "no hours left"),
        (f"QOSMinGRES; Batch job submission failed: {POLICY}", "less than the QOS wants"),
        (f"QOSMaxGRESPerUser; Batch job submission failed: {POLICY}", "more than the QOS or account may have at once"),
        ("Batch job submission failed: Invalid account or account/partition combination specified", "account = ''"),
        ("Batch job submission failed: Invalid qos specification", "qos = ''"),
        ("invalid partition specified: gpuu", "partition = ''"),
        ("Batch job submission failed: Invalid feature specification", "constraint = ''"),
        ("Batch job submission failed: Requested reservation is invalid", "reservation = ''"),
        ("Batch job submission failed: Requested node configuration is not available", "ask for what a node has"),
        (f"QOSMaxSubmitJobPerUserLimit; Batch job submission failed: {POLICY}", "limit on queued jobs"),
        ("Batch job submission failed: The moon is full", ""),
    ],
)
def test_a_refusal_names_the_key_that_it_is_about_or_none(clients: Clients, words: str, about: str) -> None:
    clients.put("sinfo", "out gpu")
    said = cure(load_site("generic"), "generic", job(), words)
    assert about in said if about else said == ""


def test_a_refusal_cancels_what_this_command_queued(clients: Clients, tmp_path: Path) -> None:
    clients.put("sbatch", "out 12", "err sbatch: error: Batch job submission failed: Invalid qos specification")
    clients.put("scancel")
    first, second = job(tmp_path / "stages", "tokenize"), job(tmp_path / "stages", "train")
    with pytest.raises(SchedulerError, match="the 1 jobs queued before it were cancelled"):
        Submission(load_site("generic"), "generic").add_all([first, second])
    assert clients.calls("scancel")[0][0] == ["--quiet", "12"] and not second.surroundings.folder.path.exists()


def test_what_a_job_writes_while_it_is_cancelled_stays_with_its_name(
    clients: Clients, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had begun already; its last line comes after its folder was looked at."""
    clients.put("sbatch", "out 12", "err sbatch: error: Batch job submission failed: Invalid qos specification")
    clients.put("scancel")
    first, second = job(tmp_path / "stages", "tokenize"), job(tmp_path / "stages", "train")
    folder = first.surroundings.folder

    def read_and_be_late(path: Path) -> list[Any]:
        folder.log.write_text("slurmstepd: error: *** JOB 12 CANCELLED ***\n", encoding="utf-8")
        return read_json_lines(path)

    monkeypatch.setattr("essence.engines.slurm.submit.read_json_lines", read_and_be_late)
    with pytest.raises(SchedulerError, match="the 1 jobs queued before it were cancelled"):
        Submission(load_site("generic"), "generic").add_all([first, second])
    assert sorted(folder.path.iterdir()) == sorted([folder.jobs, folder.log]) and len(read_json_lines(folder.jobs)) == 1
