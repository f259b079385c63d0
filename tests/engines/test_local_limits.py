"""Limits of a stage without containers: set for its process, or refused."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from essence.commands.options import select
from essence.engines.engine import limit_words
from essence.engines.local import LocalEngine
from essence.engines.selected_run import Options
from essence.errors import MachineError
from support.container_launch import RESOURCES, surroundings_of
from support.project import MICRO

LIMITED = RESOURCES.model_copy(update={"ulimits": {"nofile": 512}})


def test_a_stage_has_its_limits(tmp_path: Path) -> None:
    around = surroundings_of(tmp_path, resources=LIMITED)
    command = LocalEngine("cpu").command(around)
    assert command[: len(limit_words(LIMITED.ulimits))] == ["prlimit", "--nofile=512"]
    assert command[2:] == LocalEngine("cpu").command(surroundings_of(tmp_path))
    code = "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    done = subprocess.run([*command[:2], sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "(512, 512)\n"


def test_where_limits_cannot_be_set_they_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    stages = select(Options(experiment=str(MICRO)), baselines=False).wanted[:1]
    LocalEngine("cpu").check(stages)
    with pytest.raises(MachineError, match=r"resources.ulimits needs the command prlimit, which is not here"):
        LocalEngine("cpu").check([replace(stages[0], resources=LIMITED)])
