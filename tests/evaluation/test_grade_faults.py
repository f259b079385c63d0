"""Workers that are killed, run out of memory or hang in C: the completion is a timeout and the others are graded."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest

pytest.importorskip("math_verify", reason="math-verify is not installed")

from essence.evaluation import grading_pool as grade
from essence.evaluation.graders import GRADERS, Verdict
from essence.evaluation.grading_pool import Item, grade_all

serve = grade._serve
RIGHT = Item("42", r"\boxed{42}")


def grade_or_fail(gold: str, completion: str) -> Verdict:
    """A grader that does to its process what the completion names."""
    if completion == "memory":
        bytearray(2 * grade.WORKER_MEMORY_BYTES)
    elif completion == "regular expression":
        re.match("(a+)+b", "a" * 60)
    elif completion == "power":
        7 ** (10**9)
    elif completion == "loop":
        while True:
            pass
    elif completion == "no CPU time":
        time.sleep(1.2)
    elif completion == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return GRADERS["math-verify"](gold, completion)


def serve_failing_grader(connection: Connection, folder: Path | None, graders: Sequence[str], timeout_s: float) -> None:
    """The life of a real worker, with one more grader to choose from."""
    GRADERS["failing"] = grade_or_fail
    serve(connection, folder, graders, timeout_s)


@pytest.mark.parametrize(
    ("fault", "timeout_s"),
    [("memory", 20.0), ("killed", 20.0), ("regular expression", 1.0), ("power", 1.0), ("loop", 1.0)],
)
def test_only_the_faulty_completion_is_lost(fault: str, timeout_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grade, "_serve", serve_failing_grader)
    items = [RIGHT, Item("42", fault), RIGHT, Item("42", r"\boxed{43}")]
    with closing(grade_all(items, "failing", timeout_s, 1)) as graded:
        verdicts = list(graded)
    assert [verdict.status for verdict in verdicts] == ["graded", "timeout", "graded", "graded"]
    assert [verdict.correct for verdict in verdicts] == [True, False, True, False]


def test_a_machine_that_gives_no_cpu_time_changes_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grade, "_serve", serve_failing_grader)
    with closing(grade_all([Item("42", "no CPU time"), RIGHT], "failing", 1.0, 1)) as graded:
        assert [verdict.status for verdict in graded] == ["no answer", "graded"]


def test_a_stopped_worker_is_replaced_and_its_completion_graded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grade, "STALLED_AFTER", 2)
    monkeypatch.setattr(grade, "STALLED_AFTER_S", 2.0)
    before = {process.pid for process in multiprocessing.active_children()}
    with closing(grade_all([RIGHT] * 40, "math-verify", 2.0, 1)) as graded:
        verdicts = [next(graded)]
        (worker,) = (process for process in multiprocessing.active_children() if process.pid not in before)
        assert worker.pid
        os.kill(worker.pid, signal.SIGSTOP)
        verdicts += graded
    assert [verdict.correct for verdict in verdicts] == [True] * 40


@pytest.mark.parametrize(("work", "ends"), [("sleeps", True), ("computes", False)])
def test_an_expression_has_seconds_of_the_cpu_not_of_the_clock(work: str, ends: bool) -> None:
    script = f"""
import time
from essence.evaluation.cpu_time import limit_expressions_by_cpu_time
limit_expressions_by_cpu_time()
from math_verify import grader, parser
def sleeps():
    time.sleep(1.3)
def computes():
    while True:
        pass
for module in (grader, parser):
    try:
        module.timeout(timeout_seconds=1)({work})()
        print("ended")
    except TimeoutError:
        print("cut")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ended" if ends else "cut"] * 2


def test_the_completion_of_a_worker_killed_from_outside_is_graded_again() -> None:
    before = {process.pid for process in multiprocessing.active_children()}
    items = [Item("42", f"{number} " + "and so on, " * 200 + r"\boxed{42}") for number in range(120)]
    kills = 0
    with closing(grade_all(items, "math-verify", 60.0, 1)) as graded:
        verdicts = [next(graded)]
        for verdict in graded:
            verdicts.append(verdict)
            workers = [process for process in multiprocessing.active_children() if process.pid not in before]
            if kills < 4 and len(verdicts) % 20 == 0 and workers and workers[0].pid:
                os.kill(workers[0].pid, signal.SIGKILL)
                kills += 1
    assert kills == 4
    assert [verdict.status for verdict in verdicts] == ["graded"] * 120
    assert all(verdict.correct for verdict in verdicts)


ORPHANS = """
import os, sys
from contextlib import closing
from essence.evaluation.grading_pool import Item, grade_all
import multiprocessing
items = [Item("42", r"\\boxed{42}"), Item("42", r"\\boxed{9^{9^{9^{9}}}}")]
if __name__ == "__main__":
    with closing(grade_all(items, "math-verify", 600.0, 1)) as graded:
        next(graded)
        print(*(process.pid for process in multiprocessing.active_children()), flush=True)
        next(graded)
"""


def test_no_worker_outlives_a_killed_command(tmp_path: Path) -> None:
    script = tmp_path / "grade_and_hang.py"
    script.write_text(ORPHANS)
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert workers and all(psutil.pid_exists(pid) for pid in workers)
    time.sleep(2.0)  # within the power
    process.kill()
    process.wait()
    ended = time.monotonic() + 60.0
    while alive := [pid for pid in workers if psutil.pid_exists(pid)]:
        assert time.monotonic() < ended, f"orphans: {alive}"
        time.sleep(0.1)
