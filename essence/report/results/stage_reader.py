"""What a run directory holds of each stage: state, manifest, metrics. What is missing is reported, not an error."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import TypeVar
from urllib.parse import quote

from essence.errors import RecordError
from essence.record.live_records import read_failure
from essence.record.machine_load import UNKNOWN_LOAD, MachineLoad, load_of
from essence.record.manifest import Manifest
from essence.record.plan_record import StageEntry
from essence.record.recount import METRICS, MetricLine, StepLine, ValidationLine, metric_lines
from essence.record.run_directory import RunDirectory, StageFolder, State
from essence.record.stage_checks import EDITED
from essence.record.stage_records import (
    DownloadManifest,
    GenerateManifest,
    GradeManifest,
    TokenizeManifest,
    TrainManifest,
    read_manifest,
)
from essence.record.training_records import RowsRecord
from essence.settings import StageName

STATE_WORDS: dict[State, str] = {
    "done": "done",
    "running": "running",
    "failed": "failed",
    "interrupted": "interrupted",
    "left": "not run",
}
AnyManifest = TypeVar("AnyManifest", bound=Manifest)


@dataclass(frozen=True)
class StageEvidence:
    """One stage of the plan, as its folder shows it."""

    id: str
    stage: StageName
    title: str
    folder: StageFolder
    state: State
    manifest: Manifest | None = field(default=None, repr=False)
    """None unless the stage is done."""
    problem: str = ""
    """What is wrong with a manifest that is there; it then counts for nothing."""
    inputs: dict[str, str] = field(default_factory=dict, repr=False)
    """Name of an input -> id of the stage that makes it, as planned."""

    def of(self, kind: type[AnyManifest]) -> AnyManifest | None:
        """The manifest, where it is one of this kind."""
        return self.manifest if isinstance(self.manifest, kind) else None

    @property
    def download(self) -> DownloadManifest | None:
        """The manifest of a finished download."""
        return self.of(DownloadManifest)

    @property
    def tokenized(self) -> TokenizeManifest | None:
        """The manifest of a finished tokenize stage."""
        return self.of(TokenizeManifest)

    @property
    def training(self) -> TrainManifest | None:
        """The manifest of a finished training."""
        return self.of(TrainManifest)

    @property
    def generated(self) -> GenerateManifest | None:
        """The manifest of finished completions."""
        return self.of(GenerateManifest)

    @property
    def graded(self) -> GradeManifest | None:
        """The manifest of a finished grade stage."""
        return self.of(GradeManifest)

    @property
    def trained_rows(self) -> RowsRecord | None:
        """What a finished training read."""
        return self.training.inputs.data.train if self.training else None

    @property
    def resolved(self) -> Mapping[str, object]:
        """The settings of a finished stage as it was asked, in the words of the kit that ran it; else empty."""
        return self.manifest.resolved_json if self.manifest else {}

    @property
    def load(self) -> MachineLoad:
        """How much of the machine it had."""
        if self.manifest is None:
            return UNKNOWN_LOAD
        return load_of(self.manifest.cost, len(self.manifest.identity.attempts))

    @property
    def link(self) -> str:
        """Path of the manifest, seen from `<run_dir>/<experiment>/report/`."""
        return f"../../stages/{quote(self.folder.path.name)}/manifest.json"

    @property
    def state_words(self) -> str:
        """`failed: no such file`."""
        return f"{STATE_WORDS[self.state]}: {self.reason}" if self.reason else STATE_WORDS[self.state]

    @property
    def reason(self) -> str:
        """Why the stage is not done, as far as its folder says; its last words, on one line."""
        if self.problem or self.state == "done":
            return self.problem
        with contextlib.suppress(RecordError):
            return read_failure(self.folder.failure).last_line
        with contextlib.suppress(OSError):
            lines = self.folder.log.read_text(encoding="utf-8", errors="replace").splitlines()
            return next((line.strip() for line in reversed(lines) if line.strip()), "")
        return ""

    def steps(self) -> list[StepLine]:
        """Optimiser steps in `metrics.jsonl`, in order; of a step written twice (after a resume) the later."""
        return _in_order([line for line in self._metrics() if isinstance(line, StepLine)])

    def validations(self) -> list[ValidationLine]:
        """As `steps`, of validations."""
        return _in_order([line for line in self._metrics() if isinstance(line, ValidationLine)])

    def median_time(self) -> float | None:
        """Median of its steps x their number, in s: a step that other work held up weighs like any other.

        Read once for each size and time of the file: a run is judged several times for one report.
        """
        file = self.folder.output / METRICS
        with contextlib.suppress(OSError):
            status = file.stat()
            return _median_time(file, status.st_size, status.st_mtime_ns)
        return None

    def _metrics(self) -> list[MetricLine]:
        """The lines of the file that can be read."""
        with contextlib.suppress(OSError):
            return _lines(self.folder.output / METRICS)
        return []


@lru_cache(maxsize=8192)
def _median_time(file: Path, _bytes: int, _modified_ns: int) -> float | None:
    """None where no step tells its time; OSError where the file is gone."""
    steps = _in_order([line for line in _lines(file) if isinstance(line, StepLine)])
    seconds = [float(step.seconds) for step in steps if step.seconds]
    return median(seconds) * len(seconds) if seconds else None


def _lines(file: Path) -> list[MetricLine]:
    return [line for line in metric_lines(file) if line]


AnyMetric = TypeVar("AnyMetric", StepLine, ValidationLine)


def _in_order(lines: list[AnyMetric]) -> list[AnyMetric]:
    records = {line.step: line for line in lines}
    return [records[step] for step in sorted(records)]


def read_stage(run: RunDirectory, stage_id: str, entry: StageEntry) -> StageEvidence:
    """What a stage's folder shows; `entry` is the stage in plan.json."""
    folder = run.stage(stage_id)
    state = folder.state()
    found = StageEvidence(stage_id, entry.stage, entry.title, folder, state, inputs=entry.inputs)
    if state != "done":
        return found
    try:
        manifest = read_manifest(folder.manifest)
    except RecordError as error:
        return replace(found, state="failed", problem=str(error))
    if not manifest.is_sealed:
        problem = f"manifest.json: {EDITED}, so it is not counted: `invoke verify` says more"
        return replace(found, state="failed", problem=problem)
    return replace(found, manifest=manifest)
