"""Processes that a test starts, looks for and waits for."""

import time
from pathlib import Path
from typing import Any

import psutil

HOLDER = """
import sys, time
from pathlib import Path
from essence.record.run_directory import hold
with hold(Path(sys.argv[1]), "the folder", "a test"):
    print("held", flush=True)
    time.sleep(60)
"""


def stage_processes(runs: Path) -> list[psutil.Process]:
    """Processes that work on stages of this run directory."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if "essence.stages" in line and any(str(runs) in part for part in line):
            found.append(process)
    return found


def wait_for(condition: Any, timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)
