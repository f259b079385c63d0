"""Python without what only Linux has: for code that must also run elsewhere. What it hides is what macOS lacks."""

import builtins
import fcntl
import io
import os
import resource
import sys
from pathlib import Path
from typing import Any

LINUX_ALONE = {
    os: ("sched_getaffinity", "sched_setaffinity", "pidfd_open", "memfd_create", "O_TMPFILE", "copy_file_range"),
    fcntl: ("F_SETSIG", "F_GETSIG", "F_SETLEASE", "F_SETPIPE_SZ", "F_OFD_SETLK"),
}
HIDDEN = ("/proc/", "/dev/shm")
WITHOUT_LINUX = """
import os, sys
sys.path[:0] = [os.getcwd(), os.path.join(os.getcwd(), "tests")]
from support.other_system import hide_linux, hide_linux_in_stages
hide_linux()
hide_linux_in_stages()
from invoke.main import program
sys.exit(program.run(["invoke", *sys.argv[1:]]))
"""
STAGE = "from support.other_system import hide_linux; hide_linux(); print('on another system', flush=True); "
STAGE += "import runpy, sys; sys.argv[0] = 'essence.stages'; runpy.run_module('essence.stages', run_name='__main__')"


class _System:
    """`sys` with another name of the platform."""

    platform = "darwin"

    def __getattr__(self, name: str) -> Any:
        return getattr(sys, name)


def hide_linux() -> None:
    """From the kit's own modules: other libraries know the system that they were built for."""
    import essence.progress
    import essence.signals

    for module in (essence.progress, essence.signals):
        vars(module)["sys"] = _System()
    for library, names in LINUX_ALONE.items():
        for name in names:
            if hasattr(library, name):
                delattr(library, name)
    real_limit, real_open = resource.setrlimit, io.open

    def set_limit(which: int, limits: tuple[int, int]) -> None:
        if which == resource.RLIMIT_AS:
            raise ValueError("current limit exceeds maximum limit")
        real_limit(which, limits)

    def open_there(file: Any, *arguments: Any, **named: Any) -> Any:
        frames = (sys._getframe(depth).f_globals.get("__name__", "") for depth in (1, 2))
        if str(file).startswith(HIDDEN) and any(name.startswith("essence.") for name in frames):
            raise FileNotFoundError(2, "not on this system", str(file))
        return real_open(file, *arguments, **named)

    resource.setrlimit = set_limit
    builtins.open = io.open = open_there


def hide_linux_in_stages() -> None:
    """The processes of stages as this one."""
    from essence.engines import local

    start = local.LocalEngine.command
    variables = local.variables

    def command(self: local.LocalEngine, surroundings: Any) -> list[str]:
        python, *_ = start(self, surroundings)
        return [python, "-c", STAGE, *surroundings.arguments[2:]]

    def told(surroundings: Any) -> dict[str, str]:
        found = variables(surroundings)
        places = (found["PYTHONPATH"], str(Path(found["PYTHONPATH"]) / "tests"))
        return {**found, "PYTHONPATH": os.pathsep.join(places)}

    local.LocalEngine.command = command  # type: ignore[method-assign]
    local.variables = told
