"""Grade completions in worker processes, each completion within a limit of CPU time that holds.

math-verify guards itself with a signal, which interrupts Python but not one long operation of C (a power of big
numbers, a regular expression), works in a process's main thread only, and starts over for every expression it tries.
So the kernel keeps a limit beside it: a worker that has used its CPU time is ended and replaced, and its completion is
recorded as `timeout`. A worker that another signal ended, or that got no CPU time, is replaced too, and its completion
tried again: it may not be to blame.
"""

import contextlib
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

from essence.errors import ExitCode, InputError, StageError
from essence.evaluation.cpu_time import CPU_TIME_USED, ends_after_cpu_time, limit_expressions_by_cpu_time
from essence.evaluation.graders import GRADERS, TIMED_OUT, UnreadableGoldError, Verdict
from essence.evaluation.graders_apart import by_folder
from essence.signals import die_with_parent

WORKER_START_S = 120.0
"""A worker that is not ready by then is a fault of the machine, not of a completion."""
WORKER_MEMORY_BYTES = 4 << 30
"""Address space of a worker: a pathological power ends as a MemoryError, not as the death of the node."""
COMPLETIONS_A_WORKER = 32
"""Fewer completions than this are not worth a second worker."""
STALLED_AFTER = 30.0
"""A worker is ended when this many times its limit has passed on the clock: the machine gives it no CPU time."""
STALLED_AFTER_S = 60.0
"""Nor before that time, however small the limit is."""
TRIES = 3
"""Workers that a signal may end before their completion counts as the cause (memory); starts that may fail in a row."""


class Item(NamedTuple):
    """One completion to be graded."""

    gold: str
    completion: str
    place: str = ""
    """Where the gold comes from, for messages: `aime25, problem 3`."""


Answer = Verdict | UnreadableGoldError


def grade_all(items: Sequence[Item], grader: str, timeout_s: float, workers: int) -> Generator[Verdict]:
    """Grade with at most `workers` processes; verdicts come in the order of the items.

    Raises InputError for a gold that the grader cannot parse. Close it (`contextlib.closing`) where it may be left
    early.
    """
    with closing(grade_by_each(items, (grader,), timeout_s, workers)) as graded:
        for (verdict,) in graded:
            yield verdict


def grade_by_each(
    items: Sequence[Item], graders: Sequence[str], timeout_s: float, workers: int
) -> Generator[tuple[Verdict, ...]]:
    """As `grade_all`, by several graders: a verdict of each, in their order, for every item."""
    with closing(answers(items, graders, timeout_s, workers)) as answered:
        for item, found in zip(items, answered, strict=True):
            for grader, answer in zip(graders, found, strict=True):
                if isinstance(answer, UnreadableGoldError):
                    raise InputError(f"{unreadable(item, grader)}, wanted: a number or LaTeX.")
            yield tuple(answer for answer in found if isinstance(answer, Verdict))


def unreadable(item: Item, grader: str) -> str:
    """What is wrong with a gold."""
    return f"{item.place + ': ' if item.place else ''}the grader {grader} cannot read the gold answer {item.gold!r}"


def answers(
    items: Sequence[Item], graders: Sequence[str], timeout_s: float, workers: int
) -> Generator[tuple[Answer, ...]]:
    """What each grader says of each item, an unreadable gold included."""
    with ExitStack() as stack:
        parts = [
            (served, stack.enter_context(closing(_answers(items, folder, served, timeout_s, workers))))
            for folder, served in by_folder(graders).items()
        ]
        for found in zip(*(part for _, part in parts), strict=True):
            said = {
                grader: answer
                for (served, _), those in zip(parts, found, strict=True)
                for grader, answer in zip(served, those, strict=True)
            }
            yield tuple(said[grader] for grader in graders)


def _answers(
    items: Sequence[Item], folder: Path | None, graders: Sequence[str], timeout_s: float, workers: int
) -> Generator[list[Answer]]:
    """The same for graders that one process can serve."""
    pool = _Pool(items, graders, folder, timeout_s)
    try:
        pool.start(min(workers, 1 + len(items) // COMPLETIONS_A_WORKER, len(items)))
        for first in range(0, pool.tasks, len(graders)):
            found = []
            for task in range(first, first + len(graders)):
                while task not in pool.answers:
                    pool.advance()
                found.append(pool.answers.pop(task))
            yield found
    finally:
        pool.close()


@dataclass(eq=False)
class _Worker:
    """A process that grades one item at a time."""

    process: BaseProcess
    connection: Connection
    deadline: float
    task: int | None = None
    """What it grades; None while it starts or has nothing to do."""


@dataclass
class _Pool:
    """Workers, what is still to do, and the answers that are in. A task is one item by one grader."""

    items: Sequence[Item]
    graders: Sequence[str]
    folder: Path | None
    timeout_s: float
    next_task: int = 0
    again: list[int] = field(default_factory=list)
    """Tasks whose worker a signal ended."""
    killed: Counter[int] = field(default_factory=Counter)
    failed_starts: int = 0
    workers: list[_Worker] = field(default_factory=list)
    answers: dict[int, Answer] = field(default_factory=dict)

    @property
    def tasks(self) -> int:
        return len(self.items) * len(self.graders)

    def start(self, workers: int) -> None:
        """Start processes from a server that has no threads and has imported and used math-verify once.

        It has used the environment's own: those of a grader apart are started one by one.
        """
        self.context: ForkServerContext | SpawnContext
        if self.folder is None:
            self.context = multiprocessing.get_context("forkserver")
            self.context.set_forkserver_preload([__name__, "essence.evaluation.worker_preload"])
        else:
            self.context = multiprocessing.get_context("spawn")
        for _ in range(workers):
            self._start_worker()

    def advance(self) -> None:
        """Wait for the next answer or deadline, and act on it."""
        earliest = min(worker.deadline for worker in self.workers)
        answered = wait([w.connection for w in self.workers], timeout=max(0.0, earliest - time.monotonic()))
        for worker in list(self.workers):
            if worker.connection in answered:
                self._take_answer(worker)
            elif time.monotonic() >= worker.deadline:
                self._replace(worker)

    def close(self) -> None:
        """End every worker."""
        for worker in self.workers:
            _kill(worker)
        self.workers.clear()

    def _start_worker(self) -> None:
        ours, theirs = self.context.Pipe()
        told = (theirs, self.folder, tuple(self.graders), self.timeout_s)
        process = self.context.Process(target=_serve, args=told, daemon=True)
        process.start()
        theirs.close()
        self.workers.append(_Worker(process, ours, deadline=time.monotonic() + WORKER_START_S))

    def _take_answer(self, worker: _Worker) -> None:
        try:
            answer = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join()
            self._replace(worker)
            return
        self.failed_starts = 0
        if worker.task is not None:
            self.answers[worker.task] = answer
        self._hand_out(worker)

    def _hand_out(self, worker: _Worker) -> None:
        """Give a worker its next task; without one it is ended."""
        worker.task = self._take_task()
        if worker.task is None:
            self.workers.remove(worker)
            _kill(worker)
            return
        worker.deadline = time.monotonic() + max(STALLED_AFTER * self.timeout_s, STALLED_AFTER_S)
        item, grader = divmod(worker.task, len(self.graders))
        with contextlib.suppress(OSError):  # it has died: the next wait finds its end of file
            worker.connection.send((self.graders[grader], *self.items[item][:2]))

    def _take_task(self) -> int | None:
        if self.again:
            return self.again.pop()
        if self.next_task == self.tasks:
            return None
        self.next_task += 1
        return self.next_task - 1

    def _replace(self, worker: _Worker) -> None:
        """Replace a worker that is stalled or dead; its task timed out, or is done again after a signal."""
        self.workers.remove(worker)
        _kill(worker)
        if worker.task is None:
            self._failed_start(worker)
        elif not self._again(worker):
            self.answers[worker.task] = TIMED_OUT
        if self.again or self.next_task < self.tasks:
            self._start_worker()

    def _again(self, worker: _Worker) -> bool:
        """True when the task of a dead worker is to be done again."""
        code = worker.process.exitcode or 0
        if worker.task is None or code >= 0 or code == -CPU_TIME_USED:
            return False  # it ended by itself, as it would once more
        self.killed[worker.task] += 1
        if self.killed[worker.task] == TRIES:
            return False
        self.again.append(worker.task)
        return True

    def _failed_start(self, worker: _Worker) -> None:
        self.failed_starts += 1
        if self.failed_starts == TRIES:
            code = worker.process.exitcode
            raise StageError(
                f"{TRIES} grading processes ended before they were ready (exit code {code})", "see the log."
            )


def _kill(worker: _Worker) -> None:
    worker.connection.close()
    worker.process.kill()
    worker.process.join()


def _serve(connection: Connection, folder: Path | None, graders: Sequence[str], timeout_s: float) -> None:
    """A worker's life: say ready, then answer items until the parent closes the connection or is gone."""
    parent = os.getppid()  # the server that workers are forked from, which ends when the pool's own process does
    if parent == 1:
        raise SystemExit(ExitCode.STOPPED)
    die_with_parent(parent)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # the parent decides when to stop
    with contextlib.suppress(ValueError, OSError):  # a lower limit is there already, or the system knows none
        hard_limit = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (WORKER_MEMORY_BYTES, hard_limit))
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - math-verify prints what it could not parse
    if folder is not None:
        sys.path.insert(0, str(folder))
        from essence.evaluation.grading_examples import use

        limit_expressions_by_cpu_time()
        use(graders)
    with contextlib.suppress(EOFError, OSError):
        connection.send(None)
        for grader, gold, completion in _asked(connection):
            with ends_after_cpu_time(timeout_s):
                try:
                    answer: Answer = GRADERS[grader](gold, completion)
                except UnreadableGoldError as error:
                    answer = error
            connection.send(answer)


def _asked(connection: Connection) -> Iterator[tuple[str, str, str]]:
    while True:
        yield connection.recv()
