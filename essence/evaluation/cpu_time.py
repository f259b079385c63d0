"""Limits of grading in CPU seconds, so that a verdict does not depend on how busy the machine is.

math-verify gives each expression a few seconds of the clock, and what does not end within them is no answer or a wrong
one, without a word. On a machine with seven processes for each core that came true of plain intervals, whose verdicts
differed from one run to the next. A second of CPU time is a second of the clock where nothing disturbs.
"""

import contextlib
import signal
from collections.abc import Callable, Iterator
from functools import partial, wraps
from typing import ParamSpec, TypeVar

CPU_TIME_USED = signal.SIGPROF
"""What ends a process that has used the CPU time of its task; nothing else sends it."""
P = ParamSpec("P")
T = TypeVar("T")


def limit_expressions_by_cpu_time() -> None:
    """Make math-verify's own limits for one expression count CPU time, in this process.

    Its modules look `timeout` up when they parse or compare, and raise an exception of their own from version 0.9 on.
    """
    from math_verify import grader, parser

    limited = partial(timeout, getattr(grader, "TimeoutException", TimeoutError))
    for module in (parser, grader):
        if not hasattr(module, "timeout"):
            raise AttributeError(f"{module.__name__} has no `timeout`: its limits cannot be those of the CPU")
        module.timeout = limited


def timeout(error: type[BaseException], timeout_seconds: int) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A decorator in the place of math-verify's: `error` after that many seconds of the process's own CPU time."""

    def time_is_up(*_: object) -> None:
        raise error("no end within its CPU time")

    def decorator(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def limited(*args: P.args, **keywords: P.kwargs) -> T:
            before = signal.signal(signal.SIGVTALRM, time_is_up)
            signal.setitimer(signal.ITIMER_VIRTUAL, timeout_seconds)
            try:
                return function(*args, **keywords)
            finally:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
                signal.signal(signal.SIGVTALRM, before)

        return limited

    return decorator


@contextlib.contextmanager
def ends_after_cpu_time(limit_s: float) -> Iterator[None]:
    """End this process by CPU_TIME_USED when what is inside takes more CPU time.

    The kernel does it, in the middle of an operation of C too.
    """
    signal.signal(CPU_TIME_USED, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
