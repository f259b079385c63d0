"""Where the project is, and its commands run as a person would."""

import os
import subprocess
import sys
from pathlib import Path

INVOKE = Path(sys.executable).with_name("invoke")
PROJECT = Path(__file__).resolve().parents[2]
MICRO = PROJECT / "tests" / "micro.toml"


def command_line(*arguments: str) -> list[str]:
    """An invoke command line of the environment that runs the tests."""
    return [str(INVOKE), *arguments]


def invoke(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run an invoke command in the project, as a person would."""
    return subprocess.run(command_line(*arguments), cwd=PROJECT, capture_output=True, text=True, timeout=1500)


def required(what: str) -> bool:
    """True when a check that cannot run here must fail instead of being skipped ($ESSENCE_REQUIRE, comma separated)."""
    return what in os.environ.get("ESSENCE_REQUIRE", "").split(",")
