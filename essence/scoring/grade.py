"""Grade completions in worker processes, each completion under a deadline that holds.

math-verify guards itself with SIGALRM, which interrupts Python but not one long operation of C (a power of big numbers,
a regular expression), works in a process's main thread only, and starts anew for every expression it tries. So the
deadline is kept outside: a worker that has not answered in time is killed and replaced, and its completion is recorded
as `timeout`.
"""

import contextlib
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import NamedTuple

from essence.errors import InputError, StageError
from essence.scoring.graders import GRADERS, TIMED_OUT, UnreadableGoldError, Verdict

WORKER_START_S = 120.0
"""A worker that is not ready by then is a fault of the machine, not of a completion."""
WORKER_MEMORY_BYTES = 4 << 30
"""Address space of a worker: a pathological power ends as a MemoryError, not as the death of the node."""
COMPLETIONS_A_WORKER = 32
"""Fewer completions than this are not worth a second worker."""


class Item(NamedTuple):
    """One completion to be graded."""

    gold: str
    completion: str
    place: str = ""
    """Where the gold comes from, for messages: `aime25, problem 3`."""


def grade_all(items: Sequence[Item], grader: str, timeout_s: float, workers: int) -> Generator[Verdict]:
    """Grade with at most `workers` processes; verdicts come in the order of the items.

    Raises InputError for a gold that the grader cannot parse. Close it (`contextlib.closing`) where it may be left
    early.
    """
    pool = _Pool(items, grader, timeout_s)
    try:
        pool.start(min(workers, 1 + len(items) // COMPLETIONS_A_WORKER, len(items)))
        for index in range(len(items)):
            while index not in pool.verdicts:
                pool.advance()
            yield pool.verdicts.pop(index)
    finally:
        pool.close()


@dataclass(eq=False)
class _Worker:
    """A process that grades one item at a time."""

    process: BaseProcess
    connection: Connection
    deadline: float
    item: int | None = None
    """What it grades; None while it starts or has nothing to do."""


@dataclass
class _Pool:
    """Workers, what is still to do, and the verdicts that are in."""

    items: Sequence[Item]
    grader: str
    timeout_s: float
    next_item: int = 0
    workers: list[_Worker] = field(default_factory=list)
    verdicts: dict[int, Verdict] = field(default_factory=dict)

    def start(self, workers: int) -> None:
        """Start processes from a server that has no threads and has imported and used math-verify once."""
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([__name__, "essence.scoring.warm"])
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
                self._give_up(worker)

    def close(self) -> None:
        """End every worker."""
        for worker in self.workers:
            _kill(worker)
        self.workers.clear()

    def _start_worker(self) -> None:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=_serve, args=(theirs, self.grader), daemon=True)
        process.start()
        theirs.close()
        self.workers.append(_Worker(process, ours, deadline=time.monotonic() + WORKER_START_S))

    def _take_answer(self, worker: _Worker) -> None:
        try:
            answer = worker.connection.recv()
        except (EOFError, OSError):
            self._give_up(worker)
            return
        if isinstance(answer, UnreadableGoldError):
            raise self._unreadable_gold(worker.item)
        if worker.item is not None:
            self.verdicts[worker.item] = answer
        self._hand_out(worker)

    def _unreadable_gold(self, index: int | None) -> InputError:
        item = self.items[index or 0]
        place = f"{item.place}: " if item.place else ""
        return InputError(
            f"{place}the grader {self.grader} cannot read the gold answer {item.gold!r}, wanted: a number or LaTeX."
        )

    def _hand_out(self, worker: _Worker) -> None:
        """Give a worker its next item; without one it is ended."""
        if self.next_item == len(self.items):
            self.workers.remove(worker)
            _kill(worker)
            return
        worker.item, self.next_item = self.next_item, self.next_item + 1
        worker.deadline = time.monotonic() + self.timeout_s
        with contextlib.suppress(OSError):  # it has died: the next wait finds its end of file
            worker.connection.send(self.items[worker.item][:2])

    def _give_up(self, worker: _Worker) -> None:
        """Record the item of a worker that is late or dead as timed out, and replace the worker."""
        self.workers.remove(worker)
        _kill(worker)
        if worker.item is None:
            raise StageError(
                f"A grading process ended before it was ready (exit code {worker.process.exitcode}); see the log."
            )
        self.verdicts[worker.item] = TIMED_OUT
        if self.next_item < len(self.items):
            self._start_worker()


def _kill(worker: _Worker) -> None:
    worker.connection.close()
    worker.process.kill()
    worker.process.join()


def _serve(connection: Connection, grader: str) -> None:
    """A worker's life: say ready, then answer items until the parent closes the connection or kills it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # the parent decides when to stop
    with contextlib.suppress(ValueError, OSError):  # a lower limit is there already, or the system knows none
        hard_limit = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (WORKER_MEMORY_BYTES, hard_limit))
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - math-verify prints what it could not parse
    with contextlib.suppress(EOFError, OSError):
        connection.send(None)
        while True:
            gold, completion = connection.recv()
            try:
                answer: Verdict | UnreadableGoldError = GRADERS[grader](gold, completion)
            except UnreadableGoldError as error:
                answer = error
            connection.send(answer)
