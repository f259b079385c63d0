"""Run the stages of a plan through an engine: what is done is skipped, what is half done goes on, the rest is started.

A failed stage stops only what depends on it. Ctrl-C and SIGTERM ask the running stages to stop and wait for them.
Benchmarks are read as soon as they are fetched, so that a misspelt field is told before hours of training, not after.
"""

import importlib.util
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Literal, Protocol

from essence.engines.capacity import Capacity
from essence.engines.engine import Engine, Exit, RunningStage, surroundings
from essence.engines.gpu_pool import NO_GPUS, TakenGpus
from essence.errors import ExitCode, InputError, KitError
from essence.evaluation.benchmarks import read_problems
from essence.files import write_json
from essence.plan.stage_plan import PlannedStage
from essence.record.facts import CodeFacts
from essence.record.input_checks import own_names
from essence.record.live_records import GivenGpus
from essence.record.run_directory import RunDirectory, StageFolder, describe_holder, holder_alive
from essence.record.source_key import module_hashes
from essence.settings import GenerateSettings, Spec

POLL_S = 0.05
GPU_POLL_S = 1.0
STOP_GRACE_S = 600.0
"""A checkpoint of a 4B student with its moments is 48 GB; a second Ctrl-C ends the wait."""
BEFORE_PROBLEMS = ("download", "tokenize")
"""Stages that start whatever the benchmarks hold."""
Event = Literal["started", "finished", "failed", "stopped"]


class Display(Protocol):
    """What is told while stages run."""

    def event(self, kind: Event, stage: PlannedStage, seconds: float) -> None: ...

    def waits(self, stage: PlannedStage, holder: str) -> None: ...

    def waits_for_gpus(self, stage: PlannedStage) -> None: ...

    def tick(self, running: dict[str, StageFolder]) -> None: ...


@dataclass
class Summary:
    """How a run ended, by stage id."""

    done_before: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)
    """Not started, because something they need failed or was stopped."""
    interrupted: bool = False

    @property
    def complete(self) -> bool:
        return not (self.failed or self.blocked or self.interrupted)


@dataclass(frozen=True)
class _Started:
    """A stage that runs."""

    stage: PlannedStage
    process: RunningStage
    at: float
    gpus: TakenGpus


@dataclass
class Runner:
    """Stages, where they lie, and how many may run at the same time."""

    engine: Engine
    run_directory: RunDirectory
    stages: list[PlannedStage]
    capacity: Capacity
    code: CodeFacts
    display: Display
    _running: dict[str, _Started] = field(default_factory=dict)
    _next_look_s: dict[int, float] = field(default_factory=dict)
    """Number of GPUs -> when so many are looked for again, by the clock of `time.monotonic`."""
    _stopping: bool = False
    _checked: set[str] = field(default_factory=set)
    _told: set[str] = field(default_factory=set)
    """Stages of which was told that they wait for GPUs."""

    def run(self) -> Summary:
        """Run until nothing is left that can be run; InputError for a benchmark whose problems cannot be read."""
        summary = Summary(done_before=[s.id for s in self.stages if self._folder(s).done])
        waiting = [s for s in self.stages if s.id not in summary.done_before]
        try:
            with _stop_on_signals():
                self._loop(waiting, summary)
        except KeyboardInterrupt:
            summary.interrupted = True
            self._stop_all(summary)
        except BaseException:
            # A disk that refuses a spec, say: what runs must not be left without anybody who watches it.
            self._stop_all(summary)
            raise
        ended = {*summary.done_before, *summary.finished, *summary.failed}
        summary.blocked = [s.id for s in self.stages if s.id not in ended]
        return summary

    def _loop(self, waiting: list[PlannedStage], summary: Summary) -> None:
        while True:
            finished = {*summary.done_before, *summary.finished}
            without_room = False
            for stage in [stage for stage in waiting if finished.issuperset(stage.inputs.values())]:
                if (gpus := self._room(stage)) is None:
                    without_room = True
                    continue
                waiting.remove(stage)
                self._start(stage, gpus, summary)
            if not (self._running or without_room):
                return
            time.sleep(POLL_S)
            self._collect(summary)
            self.display.tick({identifier: self.run_directory.stage(identifier) for identifier in self._running})

    def _check_problems(self) -> None:
        """Read each benchmark that is fetched and still to be generated for, once; InputError as its stage would."""
        for stage in self.stages:
            if not isinstance(stage.settings, GenerateSettings) or self._folder(stage).done:
                continue
            fetched, benchmark = self.run_directory.stage(stage.inputs["problems"]), stage.settings.benchmark
            what = f"{stage.inputs['problems']} {benchmark.model_dump_json()}"
            if what in self._checked or not fetched.done:
                continue
            self._checked.add(what)
            problems = fetched.output / "problems"
            # The host's own environment may lack what reads Parquet.
            if importlib.util.find_spec("pyarrow") or not any(problems.rglob("*.parquet")):
                try:
                    read_problems(problems, benchmark)
                except InputError as error:
                    raise error.reworded(partial(own_names, folders=[fetched])) from error

    def _room(self, stage: PlannedStage) -> TakenGpus | None:
        """The GPUs of a stage that can start now; None while it has to wait."""
        if not stage.resources.gpus:
            busy = sum(not one.stage.resources.gpus for one in self._running.values())
            return NO_GPUS if busy < self.capacity.parallel else None
        others = [one.stage for one in self._running.values() if one.stage.resources.gpus]
        pool = self.capacity.gpus
        if not pool.identities:
            # They cannot be told apart here: one stage at a time has all that the engine gives it.
            return None if others else NO_GPUS
        asked = stage.resources.gpus
        if not self.capacity.have_room([stage, *others]) or time.monotonic() < self._next_look_s.get(asked, 0.0):
            return None
        taken = pool.take(asked, self._folder(stage).path)
        if taken is None:
            self._next_look_s[asked] = time.monotonic() + GPU_POLL_S
            if not self._running and stage.id not in self._told:
                self._told.add(stage.id)
                self.display.waits_for_gpus(stage)
        return taken

    def _start(self, stage: PlannedStage, gpus: TakenGpus, summary: Summary) -> None:
        if stage.stage not in BEFORE_PROBLEMS:
            self._check_problems()
        folder = self._folder(stage)
        folder.path.mkdir(parents=True, exist_ok=True)
        spec = make_spec(stage, self.code, self.engine.image(stage.runs_in))
        write_json(folder.spec, spec.model_dump(mode="json"))
        # Why an earlier attempt failed is not why this one does, which may end before it can say so.
        folder.failure.unlink(missing_ok=True)
        if gpus.names:
            write_json(folder.given_gpus, GivenGpus(names=gpus.names).model_dump(mode="json"))
        self.display.event("started", stage, 0.0)
        if holder_alive(folder.path):
            self.display.waits(stage, describe_holder(folder.path))
        try:
            launch = surroundings(stage, self.run_directory, gpus)
            launch.make_folders()
            process = self.engine.start(launch)
        except KitError as error:
            gpus.leave()
            self._ended(stage, Exit(code=1, cause=str(error)), 0.0, summary)
        else:
            self._running[stage.id] = _Started(stage, process, time.monotonic(), gpus)

    def _collect(self, summary: Summary) -> None:
        for one in list(self._running.values()):
            if (ending := one.process.poll()) is not None:
                del self._running[one.stage.id]
                one.gpus.leave()
                self._next_look_s.clear()
                self._ended(one.stage, ending, time.monotonic() - one.at, summary)

    def _ended(self, stage: PlannedStage, ending: Exit, seconds: float, summary: Summary) -> None:
        if ending.code == 0 and self._folder(stage).done:
            summary.finished.append(stage.id)
            self.display.event("finished", stage, seconds)
        elif self._stopping or ending.code == ExitCode.STOPPED:
            summary.interrupted = summary.interrupted or not self._stopping
            self.display.event("stopped", stage, seconds)
        else:
            summary.failed.append(stage.id)
            self._say_cause(stage, ending)
            self.display.event("failed", stage, seconds)

    def _say_cause(self, stage: PlannedStage, ending: Exit) -> None:
        """A stage that was ended from outside, or never began, could not write why."""
        folder = self._folder(stage)
        if ending.cause and not folder.failure.is_file():
            write_json(folder.failure, {"kind": "Killed", "curable": True, "message": ending.cause, "time": None})

    def _stop_all(self, summary: Summary) -> None:
        """Ask the running stages to stop; a second Ctrl-C, or too long a wait, ends them at once."""
        self._stopping = True
        for one in self._running.values():
            one.process.stop()
        deadline = time.monotonic() + STOP_GRACE_S
        try:
            while self._running and time.monotonic() < deadline:
                time.sleep(POLL_S)
                self._collect(summary)
        except KeyboardInterrupt:
            pass
        for one in self._running.values():
            one.process.kill()
        self._collect(summary)

    def _folder(self, stage: PlannedStage) -> StageFolder:
        return self.run_directory.stage(stage.id)


def make_spec(stage: PlannedStage, code: CodeFacts, image: dict[str, str | None]) -> Spec:
    """What is told to a stage; inputs relative to its folder, so that the same spec runs under every engine."""
    return Spec(
        stage=stage.stage,
        key=stage.key,
        title=stage.title,
        settings=stage.settings.model_dump(mode="json"),
        inputs={name: f"../{identifier}" for name, identifier in stage.inputs.items()},
        environment=stage.environment,
        source_sha256=stage.source_sha256,
        modules=module_hashes(stage.stage) if stage.source_sha256 else {},
        accepted=stage.built_on,
        resources=stage.resources,
        graders=stage.graders,
        code=code,
        image=image,
    )


def last_lines(log: Path, count: int) -> list[str]:
    """The last non-empty lines of a log."""
    if not log.is_file():
        return []
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in lines if line.strip()][-count:]


@contextmanager
def _stop_on_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP (a closed terminal) end a run as Ctrl-C does."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
