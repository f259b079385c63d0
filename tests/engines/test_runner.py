"""What the runner writes down of stages that end before they begin, with an engine that starts none."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from essence.commands.options import select
from essence.engines.runner import Runner
from essence.engines.selected_run import Options
from essence.errors import MachineError
from essence.files import read_json, write_json
from essence.record.run_directory import RunDirectory
from support.project import MICRO


def refuse(_surroundings: Any) -> Any:
    raise MachineError("no container today")


def test_an_earlier_failure_is_not_the_reason_of_an_attempt_that_never_began(tmp_path: Path) -> None:
    planned = select(Options(experiment=str(MICRO), runs=str(tmp_path)), baselines=False).plan.stages.values()
    first = next(stage for stage in planned if not stage.inputs)
    folder = RunDirectory(tmp_path).stage(first.id)
    folder.path.mkdir(parents=True)
    write_json(folder.failure, {"kind": "InputError", "curable": True, "message": "an old one", "time": None})
    engine = SimpleNamespace(image=lambda _: {}, start=refuse)
    display = SimpleNamespace(event=lambda *_: None, tick=lambda _: None)
    runner = Runner(engine, RunDirectory(tmp_path), [first], 1, {}, display)  # type: ignore[arg-type]
    assert runner.run().failed == [first.id]
    assert read_json(folder.failure)["message"] == "no container today"
