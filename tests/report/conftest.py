"""A run whose results are made up, and its report."""

import json
import shutil
from pathlib import Path

import pytest

from essence.report.build import write_report
from support.shared import Shared
from support.synthetic_run import SyntheticRun


@pytest.fixture
def run(tmp_path: Path) -> SyntheticRun:
    return SyntheticRun(tmp_path).write()


@pytest.fixture
def reported(shared: Shared, tmp_path: Path) -> SyntheticRun:
    """The same run with its report, which is drawn once for all processes; a copy of the test's own."""

    def make(place: Path) -> str:
        made = SyntheticRun(place / "runs").write()
        write_report(made.root, made.experiment)
        return str(made.root)

    root = tmp_path / "runs"
    shutil.copytree(shared.once("reported", make), root)
    return SyntheticRun(root, plan=json.loads((root / "tiny" / "plan.json").read_text()))
