"""The machinery of the tests: groups stay in one process, and shared results are made once."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.project import PROJECT
from support.shared import Shared

FILES = {
    "test_one.py": "@pytest.fixture(scope='module')\ndef made(): return 1\n"
    "@pytest.mark.parametrize('x', range(4))\ndef test_a(x, made): time.sleep(0.1)\n",
    "test_alone.py": "@pytest.mark.parametrize('x', range(8))\ndef test_e(x): time.sleep(0.5)\n",
    "test_two.py": "@pytest.mark.parametrize('x', range(4))\ndef test_b(x): time.sleep(0.1)\n"
    "@pytest.mark.docker\ndef test_c(): time.sleep(0.1)\n"
    "@pytest.mark.docker\n@pytest.mark.own_engine\n@pytest.mark.slow\ndef test_f(): time.sleep(0.1)\n",
    "test_three.py": "@pytest.mark.apptainer\n@pytest.mark.parametrize('x', range(3))\n"
    "def test_d(x): time.sleep(0.1)\n",
}


def test_a_group_has_one_process_and_engines_come_first(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["support.parallel_plan"]\n')
    marks = "".join(f"\n    {mark}: x" for mark in ("docker", "apptainer", "own_engine", "slow"))
    (tmp_path / "pytest.ini").write_text(f"[pytest]\nmarkers ={marks}\n")
    for name, text in FILES.items():
        (tmp_path / name).write_text(f"import time\nimport pytest\n{text}")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "2", "-v", "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(PROJECT / "tests")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and " 21 passed" in done.stdout, done.stdout + done.stderr
    ran = re.findall(r"\[(gw\d)\] \[ *\d+%\] PASSED \S+::(test_.)", done.stdout)
    processes = {test: {process for process, name in ran if name == test} for _, test in ran}
    assert len(processes.pop("test_e")) == 2, ran
    assert all(len(processes[name]) == 1 for name in ("test_a", "test_c", "test_d")), ran
    assert processes["test_c"] == processes["test_d"] != processes["test_f"]
    engines = next(iter(processes["test_d"]))
    assert next(test for process, test in ran if process == engines) == "test_d", ran


def test_what_is_shared_is_made_once(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(place: Path) -> str:
        made.append(place)
        (place / "file").write_text("whole")
        return str(place)

    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(lambda _: Shared(tmp_path).once("thing", make), range(8)))
    assert len(made) == 1 and set(told) == {str(made[0])}
    assert (made[0] / "file").read_text() == "whole"


def test_what_failed_is_not_tried_again(tmp_path: Path) -> None:
    tried: list[Path] = []

    def make(place: Path) -> str:
        tried.append(place)
        raise OSError("no network")

    with pytest.raises(OSError, match="no network"):
        Shared(tmp_path).once("thing", make)
    with pytest.raises(pytest.fail.Exception, match="thing: it was tried, and an earlier test says how it failed"):
        Shared(tmp_path).once("thing", make)
    assert len(tried) == 1
