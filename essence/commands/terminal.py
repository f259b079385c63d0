"""Standard input, output and error of a command, whatever they are: closed, full, a pipe that ends, another encoding.

A command that costs hours must not end because no one reads what it says. What cannot be written is dropped, and the
command ends with a sentence; a reader that has seen enough (`head`, `less`) is no fault. Ctrl-C ends a command with
exit code 130 and no traceback, also while modules are still imported.
"""

import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, TextIO

from essence.errors import DISK, DiskError, ExitCode, ExperimentError

if TYPE_CHECKING:
    from rich.console import Console

PIPED_WIDTH = 140
STANDARD = (0, 1, 2)
"""Descriptors of standard input, output and error."""
IMPORTING = "<frozen importlib"


class Output(io.TextIOWrapper):
    """A stream that drops what its file refuses, and remembers why."""

    failure: OSError | None = None

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        """From now on all goes to the null device, with what is still in the buffer."""
        self.failure = self.failure or error
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())
        os.close(null)


def prepare() -> None:
    """Make the three streams usable, bytecode kept, and Ctrl-C the end of a command that has not begun."""
    for descriptor in STANDARD:
        _open_where_closed(descriptor)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  a descriptor, for the whole process
    sys.stdout, sys.stderr = _output(1, sys.stdout), _output(2, sys.stderr)
    # invoke keeps Python from writing bytecode, so that every command would compile what was pulled or edited again.
    sys.dont_write_bytecode = bool(sys.flags.dont_write_bytecode)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _leave)


def _open_where_closed(descriptor: int) -> None:
    """A closed one would be given to the next file that is opened, and that file would get what is printed."""
    try:
        os.fstat(descriptor)
    except OSError:
        os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _output(descriptor: int, stream: TextIO | None) -> Output:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    binary = open(descriptor, "wb", closefd=False)  # noqa: SIM115  a descriptor, for the whole process
    # What the encoding lacks, a sign or a name of a file, becomes a question mark.
    return Output(binary, encoding=encoding, errors="replace", line_buffering=descriptor == 2 or os.isatty(descriptor))


def check_output() -> None:
    """DiskError when standard output has not taken all that was printed."""
    sys.stdout.flush()
    failure = getattr(sys.stdout, "failure", None)
    if failure and failure.errno != errno.EPIPE:
        said = DISK.get(failure.errno, failure.strerror)
        raise DiskError(f"standard output: {said}, and what was printed is not whole", "give it another place")


def check_arguments(arguments: list[str]) -> None:
    """ExperimentError for an argument that is no text: it would go into records, which are UTF-8."""
    for argument in arguments:
        try:
            argument.encode("utf-8")
        except UnicodeEncodeError:
            shown = argument.encode("ascii", "backslashreplace").decode("ascii")
            raise ExperimentError(
                f"{shown}: is not of the encoding {sys.getfilesystemencoding()}, in which paths are read here",
                "rename it, or set LC_ALL=C.UTF-8",
            ) from None


def check_surroundings() -> None:
    """ExperimentError for words or a folder whose name is no text."""
    check_arguments([*sys.argv, __file__, os.getcwd()])  # noqa: PTH109  text, not a path


def console() -> "Console":
    """For messages: standard error where standard output is for JSON."""
    from rich.console import Console  # takes a moment, and `invoke --list` needs none

    # Where there is no terminal to ask, lines are as wide as the tables need. What is printed holds messages and paths:
    # brackets in them are no markup.
    return Console(stderr="--json" in sys.argv, width=None if sys.stdout.isatty() else PIPED_WIDTH, markup=False)


def teller(console: "Console") -> Callable[[str], None]:
    """A line as it is, for whoever knows no console."""
    return partial(console.print, highlight=False, soft_wrap=True)


def is_program() -> bool:
    """True when invoke is what runs, and no test or page imports the tasks."""
    return sys.argv[0].endswith(("/invoke", "/inv", "/invoke/__main__.py"))


@contextmanager
def interruptible() -> Iterator[None]:
    """Within it Ctrl-C is a KeyboardInterrupt."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """While a module is imported the exception could be swallowed, or become another one; nothing is half done then."""
    while frame is not None:
        if frame.f_code.co_filename.startswith(IMPORTING):
            _leave(number, frame)
        frame = frame.f_back
    raise KeyboardInterrupt


def _leave(number: int, frame: FrameType | None) -> None:
    del number, frame
    os.write(2, b"stopped\n")
    os._exit(ExitCode.INTERRUPTED)
