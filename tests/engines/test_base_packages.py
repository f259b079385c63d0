"""What is installed beside Python where an image's base has none: the script runs, with stand-ins for what it calls."""

import re
import subprocess
from pathlib import Path

import pytest

from support.project import PROJECT

PYTHON = {"python3", "python3-venv", "python3-dev", "gcc", "ca-certificates"}
FAST_NETWORK = {"libibverbs1", "ibverbs-providers"}
STAND_IN = '#!/bin/sh\necho "${0##*/} $*" >> "$LOG"\n'


def packages_of(environment: str) -> list[str]:
    """The words that an image's Dockerfile gives to the script."""
    text = (PROJECT / "docker" / f"{environment}.Dockerfile").read_text().replace("\\\n", " ")
    (words,) = re.findall(
        r"source=docker/install-python\.sh,target=/run/install\.sh +sh /run/install\.sh([^\n]*)", text
    )
    return str(words).split()


@pytest.mark.parametrize(("environment", "more"), [("train", FAST_NETWORK), ("eval", set())])
@pytest.mark.parametrize("has_python", [False, True])
def test_a_base_of_cuda_gets_python_and_training_the_libraries_of_infiniband(
    tmp_path: Path, environment: str, more: set[str], has_python: bool
) -> None:
    log, programs = tmp_path / "log", tmp_path / "bin"
    programs.mkdir()
    for name in ("apt-get", "rm"):
        (programs / name).write_text(STAND_IN)
        (programs / name).chmod(0o755)
    (programs / "python3").write_text(f"#!/bin/sh\nexit {0 if has_python else 1}\n")
    (programs / "python3").chmod(0o755)
    script = ["/bin/sh", str(PROJECT / "docker" / "install-python.sh"), *packages_of(environment)]
    subprocess.run(script, env={"PATH": str(programs), "LOG": str(log)}, check=True)
    if has_python:
        assert not log.exists(), "a base with Python is left as it is"
        return
    update, install, removed = log.read_text().splitlines()
    assert update == "apt-get update" and removed.startswith("rm -rf /var/lib/apt/lists/")
    words = install.split()
    assert words[:4] == ["apt-get", "install", "--yes", "--no-install-recommends"]
    assert set(words[4:]) == PYTHON | more
