"""Workers that are killed, run out of memory or hang in C: the completion is a timeout and the others are graded."""

import multiprocessing
import os
import re
import signal
import time
from contextlib import closing
from multiprocessing.connection import Connection

import pytest

pytest.importorskip("math_verify", reason="math-verify is not installed")

from essence.scoring import grade
from essence.scoring.grade import Item, grade_all
from essence.scoring.graders import GRADERS, Verdict

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
    elif completion == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return GRADERS["math-verify"](gold, completion)


def serve_failing_grader(connection: Connection, grader: str) -> None:
    """The life of a real worker, with one more grader to choose from."""
    GRADERS["failing"] = grade_or_fail
    serve(connection, grader)


@pytest.mark.parametrize(
    ("fault", "timeout_s"), [("memory", 20.0), ("killed", 20.0), ("regular expression", 1.0), ("power", 1.0)]
)
def test_only_the_faulty_completion_is_lost(fault: str, timeout_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grade, "_serve", serve_failing_grader)
    items = [RIGHT, Item("42", fault), RIGHT, Item("42", r"\boxed{43}")]
    with closing(grade_all(items, "failing", timeout_s, 1)) as graded:
        verdicts = list(graded)
    assert [verdict.status for verdict in verdicts] == ["graded", "timeout", "graded", "graded"]
    assert [verdict.correct for verdict in verdicts] == [True, False, True, False]


def test_a_worker_killed_from_outside_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grade, "_serve", serve_failing_grader)
    before = {process.pid for process in multiprocessing.active_children()}
    with closing(grade_all([RIGHT, Item("42", "regular expression"), RIGHT], "failing", 60.0, 1)) as graded:
        assert next(graded).correct
        (worker,) = (process for process in multiprocessing.active_children() if process.pid not in before)
        assert worker.pid is not None
        started = time.monotonic()
        os.kill(worker.pid, signal.SIGKILL)
        assert [verdict.status for verdict in graded] == ["timeout", "graded"]
    assert time.monotonic() - started < 50.0
