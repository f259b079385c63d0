"""A stage under `apptainer exec`: a child process, whose exit code says how the stage in it ended.

The kit holds one end of a pipe whose other end is the stage's standard input. When the host process is killed the pipe
closes, and the kernel asks the stage to stop: across the PID namespace, and where Apptainer is installed set-uid, a
parent's death would not be told.
"""

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from essence.engines.apptainer_faults import cure_of
from essence.engines.engine import Exit, Launch, ended_by_signal, memory_kills
from essence.engines.inherited_variables import SECRET
from essence.engines.local import ask_to_stop, kill_group
from essence.engines.secrets import Token

SIGNAL_BASE, NOT_STARTED = 128, 255
OWN_VARIABLE = re.compile(r"(APPTAINER|SINGULARITY)")
MACHINE_VARIABLE = re.compile(r"(APPTAINER|SINGULARITY)_(CACHEDIR|CONFIGDIR|CONFIG_FILE|TMPDIR|UNSQUASH|USERNS|NVCCLI)")
"""What Apptainer is told of this machine; its other variables would bring folders and variables inside."""
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
LAST_BYTES = 8192


class ApptainerStage:
    """A running stage."""

    def __init__(
        self,
        command: list[str],
        surroundings: Launch,
        work: Path,
        held: int,
        secret: Token | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """`held`: descriptor that holds the work folder (`held_work_folder`), and is this stage's to close.

        `variables`: more for Apptainer itself, which are no part of the command line.
        """
        self.surroundings = surroundings
        self.memory_kills = memory_kills()
        self._leave = contextlib.ExitStack()
        if secret:
            self._leave.callback(secret.forget)
        self._leave.callback(leave_work_folder, work, held)
        try:
            self.process = self._start(command, held, variables or {})
        except BaseException:
            self._leave.close()
            raise

    def _start(self, command: list[str], held: int, variables: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        read, lifeline = os.pipe()
        self._leave.callback(os.close, lifeline)
        try:
            with self.surroundings.folder.log.open("ab") as log:
                self.log_start = log.tell()
                return subprocess.Popen(
                    command,
                    stdin=read,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**host_variables(), **variables},
                    cwd=self.surroundings.folder.path,
                    # Should this process be killed, the container's own still holds its folder and its GPUs.
                    pass_fds=(held, *self.surroundings.held_open),
                    # Ctrl-C reaches the host alone, which then asks each stage to stop.
                    start_new_session=True,
                )
        finally:
            os.close(read)

    def poll(self) -> Exit | None:
        code = self.process.poll()
        if code is None:
            return None
        self._leave.close()
        return self._judge(code)

    def stop(self) -> None:
        """Apptainer passes the signal on to the stage."""
        ask_to_stop(self.process)

    def kill(self) -> None:
        """Without Apptainer's own process the kernel ends all that is in the container."""
        kill_group(self.process)
        self._leave.close()

    def _judge(self, code: int) -> Exit:
        """Apptainer's own failure, a signal from outside, or the stage's exit code."""
        if code == NOT_STARTED:
            return Exit(code, f"Apptainer could not start its container: {self._reason()}")
        number = -code if code < 0 else code - SIGNAL_BASE
        if number not in signal.valid_signals():
            return Exit(code)
        return ended_by_signal(number, self.memory_kills, self.surroundings.resources.memory_gib)

    def _reason(self) -> str:
        """The line in which Apptainer said why."""
        with self.surroundings.folder.log.open("rb") as log:
            log.seek(max(self.log_start, log.seek(0, os.SEEK_END) - LAST_BYTES))
            lines = log.read().decode(errors="replace").splitlines()
        said = [line for line in lines if "FATAL:" in line] or [line for line in lines if line.strip()]
        reason = plain(said[-1]) if said else "it does not say why"
        if "cgroups" in reason and self.surroundings.resources.memory_gib:
            reason += "; resources.memory_gib = 0 asks for no limit"
        elif cure := cure_of(reason):
            reason += f"; {cure}"
        return reason


def leave_work_folder(work: Path, held: int) -> None:
    """Remove the work folder, unless another process of the same stage, which waits or works, has it too."""
    with contextlib.suppress(OSError):
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(work, ignore_errors=True)
    os.close(held)


def plain(line: str) -> str:
    """A line of Apptainer's without colours and without its first word."""
    return COLOUR.sub("", line).strip().removeprefix("FATAL:").strip()


def host_variables() -> dict[str, str]:
    """What Apptainer itself sees: nothing secret, and nothing that it would bring inside."""
    return {
        name: value
        for name, value in os.environ.items()
        if not SECRET.search(name) and (not OWN_VARIABLE.match(name) or MACHINE_VARIABLE.fullmatch(name))
    }
