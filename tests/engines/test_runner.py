"""What the runner decides: which stage starts when, what a failure stops, and how a run ends.

The plan is that of the micro matrix. The engine is the local one, but its stages are objects in this process that end
as a test says.
"""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from essence.commands.options import select
from essence.engines.capacity import Capacity
from essence.engines.engine import Exit, Launch
from essence.engines.local import LocalEngine
from essence.engines.runner import Runner, Summary
from essence.engines.selected_run import Options
from essence.errors import ExitCode, InputError, MachineError
from essence.files import read_json, write_json
from essence.plan.stage_plan import PlannedStage
from essence.record.run_directory import RunDirectory, StageFolder, hold
from support.project import MICRO
from support.synthetic_run import manifest

PROBLEM = json.dumps({"id": "a", "problem": "What is 1+1?", "answer": "2"}) + "\n"


@dataclass
class Stage:
    """A stage that runs for a few looks."""

    folder: StageFolder
    looks: int
    code: int
    finishes: bool
    answers_stop: bool
    asked: list[str] = field(default_factory=list)

    def poll(self) -> Exit | None:
        if "kill" in self.asked:
            return Exit(-signal.SIGKILL)
        if "stop" in self.asked and self.answers_stop:
            return Exit(ExitCode.STOPPED)
        self.looks -= 1
        if self.looks > 0:
            return None
        if self.code == 0 and self.finishes:
            (self.folder.output / "problems").mkdir(parents=True, exist_ok=True)
            (self.folder.output / "problems" / "problems.jsonl").write_text(PROBLEM)
            spec = read_json(self.folder.spec)
            record = manifest(spec["key"], "download", spec["title"], {}, {}, {}, {})
            write_json(self.folder.manifest, record)
        return Exit(self.code, "ended by a test" if self.code else None)

    def stop(self) -> None:
        self.asked.append("stop")

    def kill(self) -> None:
        self.asked.append("kill")


class ScriptedEngine(LocalEngine):
    """Starts such stages; `codes` and `refused` by the beginning of a title."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.codes: dict[str, int] = {}
        self.refused: dict[str, Exception] = {}
        self.looks = 2
        self.finishes = self.answers_stop = True
        self.started: dict[str, Stage] = {}

    def start(self, surroundings: Launch) -> Stage:
        for title, error in self.refused.items():
            if surroundings.title.startswith(title):
                raise error
        code = next((code for title, code in self.codes.items() if surroundings.title.startswith(title)), 0)
        stage = Stage(surroundings.folder, self.looks, code, self.finishes, self.answers_stop)
        self.started[surroundings.stage_id] = stage
        return stage


class Display:
    """Keeps what is shown; `act` is called at each look."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.waited: list[str] = []
        self.most = 0
        self.act: Callable[[], None] = lambda: None

    def event(self, kind: str, stage: PlannedStage, seconds: float) -> None:
        assert seconds >= 0.0
        self.events.append((kind, stage.id))

    def waits(self, stage: PlannedStage, holder: str) -> None:
        assert f"process {os.getpid()}" in holder
        self.waited.append(stage.id)

    def waits_for_gpus(self, stage: PlannedStage) -> None:
        raise AssertionError("no stage here asks for GPUs")

    def tick(self, running: dict[str, StageFolder]) -> None:
        self.most = max(self.most, len(running))
        self.act()

    def of(self, kind: str) -> list[str]:
        return [identifier for event, identifier in self.events if event == kind]


@dataclass
class Bench:
    """A runner with its engine and display."""

    runs: RunDirectory
    stages: list[PlannedStage]
    engine: ScriptedEngine = field(default_factory=ScriptedEngine)
    display: Display = field(default_factory=Display)

    def run(self, parallel: int = 2) -> Summary:
        return Runner(self.engine, self.runs, self.stages, Capacity(parallel), {"version": "0"}, self.display).run()

    def named(self, beginning: str) -> list[str]:
        return [stage.id for stage in self.stages if stage.title.startswith(beginning)]

    def after(self, *identifiers: str) -> set[str]:
        """All that needs one of these stages, directly or not."""
        found = set(identifiers)
        for stage in self.stages:
            if found & set(stage.inputs.values()):
                found.add(stage.id)
        return found - set(identifiers)


@pytest.fixture(scope="module")
def planned() -> list[PlannedStage]:
    return select(Options(experiment=str(MICRO)), baselines=True).plan.wanted()


@pytest.fixture
def bench(planned: list[PlannedStage], tmp_path: Path) -> Bench:
    return Bench(RunDirectory(tmp_path), planned)


@pytest.mark.parametrize("parallel", [1, 3])
def test_every_stage_runs_once_after_its_inputs_and_no_more_at_once_than_allowed(bench: Bench, parallel: int) -> None:
    summary = bench.run(parallel)
    assert summary.complete and sorted(summary.finished) == sorted(stage.id for stage in bench.stages)
    assert bench.display.most == parallel
    places = {event: place for place, event in enumerate(bench.display.events)}
    for stage in bench.stages:
        for identifier in stage.inputs.values():
            assert places["finished", identifier] < places["started", stage.id]
        spec = read_json(bench.runs.stage(stage.id).spec)
        assert (spec["key"], spec["inputs"]) == (stage.key, {n: f"../{i}" for n, i in stage.inputs.items()})


def test_what_is_done_is_not_started_again(bench: Bench) -> None:
    bench.run()
    first = next(iter(bench.named("train")))
    bench.runs.stage(first).manifest.unlink()
    again = Bench(bench.runs, bench.stages)
    summary = again.run()
    assert summary.finished == [first] == again.display.of("started")
    assert len(summary.done_before) == len(bench.stages) - 1 and summary.complete


def test_a_failure_stops_only_what_depends_on_it(bench: Bench) -> None:
    failing = bench.named("train")[0]
    title = next(stage.title for stage in bench.stages if stage.id == failing)
    bench.engine.codes = {title: 1}
    summary = bench.run()
    assert summary.failed == [failing] and set(summary.blocked) == bench.after(failing)
    assert not (summary.complete or summary.interrupted)
    assert len(summary.finished) == len(bench.stages) - 1 - len(summary.blocked)
    assert read_json(bench.runs.stage(failing).failure)["message"] == "ended by a test"


def test_the_stage_s_own_reason_is_kept(bench: Bench) -> None:
    failing = bench.named("train")[0]
    bench.engine.codes = {next(stage.title for stage in bench.stages if stage.id == failing): 1}
    said = {"kind": "InputError", "curable": True, "message": "its own sentence", "time": None}

    def write() -> None:
        if failing in bench.engine.started:
            write_json(bench.runs.stage(failing).failure, said)

    bench.display.act = write
    assert bench.run().failed == [failing]
    assert read_json(bench.runs.stage(failing).failure) == said


def test_an_end_without_a_record_is_a_failure(bench: Bench) -> None:
    bench.engine.finishes = False
    summary = bench.run()
    assert summary.finished == [] and set(summary.failed) == {stage.id for stage in bench.stages if not stage.inputs}


def test_a_stage_that_was_stopped_from_outside_has_not_failed(bench: Bench) -> None:
    bench.engine.codes = {"tokenize": ExitCode.STOPPED}
    summary = bench.run()
    assert summary.interrupted and summary.failed == [] and bench.display.of("stopped") == bench.named("tokenize")
    assert set(summary.blocked) == {*bench.named("tokenize"), *bench.after(*bench.named("tokenize"))}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_asks_what_runs_to_stop_and_starts_nothing_more(bench: Bench, number: signal.Signals) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    bench.engine.looks, bench.display.act = 99, lambda: os.kill(os.getpid(), number)
    summary = bench.run(parallel=2)
    assert summary.interrupted and summary.finished == summary.failed == []
    assert len(summary.blocked) == len(bench.stages) and len(bench.engine.started) == 2
    assert [stage.asked for stage in bench.engine.started.values()] == [["stop"], ["stop"]]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == handlers


def test_a_second_interrupt_ends_what_does_not_stop(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.engine.looks, bench.engine.answers_stop = 10**6, False
    interrupted: list[float] = []

    def pause(seconds: float) -> None:
        interrupted.append(seconds)
        raise KeyboardInterrupt

    monkeypatch.setattr("essence.engines.runner.time.sleep", pause)
    summary = bench.run(parallel=2)
    assert len(interrupted) == 2 and summary.interrupted and summary.failed == []
    assert [stage.asked for stage in bench.engine.started.values()] == [["stop", "kill"]] * 2


def test_a_host_that_cannot_go_on_leaves_no_stage_running(bench: Bench) -> None:
    first, second = [stage for stage in bench.stages if not stage.inputs][:2]
    bench.engine.looks, bench.engine.refused = 99, {second.title: OSError("no more processes")}
    with pytest.raises(OSError, match="no more processes"):
        bench.run()
    assert bench.engine.started[first.id].asked == ["stop"]


def test_what_the_engine_refuses_is_the_reason_and_not_an_earlier_failure(bench: Bench) -> None:
    first = next(stage for stage in bench.stages if not stage.inputs)
    folder = bench.runs.stage(first.id)
    folder.path.mkdir(parents=True)
    write_json(folder.failure, {"kind": "InputError", "curable": True, "message": "an old one", "time": None})
    bench.engine.refused = {first.title: MachineError("no container today")}
    assert bench.run().failed == [first.id]
    assert read_json(folder.failure)["message"] == "no container today"


def test_who_holds_a_stage_is_shown(bench: Bench) -> None:
    first = next(stage for stage in bench.stages if not stage.inputs)
    with hold(bench.runs.stage(first.id).path, "the stage", "a test"):
        bench.run()
    assert bench.display.waited == [first.id]


def test_unreadable_problems_end_the_run_before_anything_is_trained(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(__name__ + ".PROBLEM", json.dumps({"question": "What is 1+1?", "answer": "2"}) + "\n")
    with pytest.raises(InputError, match="problem"):
        bench.run()
    assert not set(bench.engine.started) & {i for kind in ("train", "generate", "grade") for i in bench.named(kind)}
    assert all("stop" in stage.asked for stage in bench.engine.started.values() if stage.looks > 0)
