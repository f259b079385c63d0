"""plan.json: the cells of an experiment, the stages they consist of, and what was finished in the place of these."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, Self

from pydantic import ConfigDict, Field, model_validator

from essence.errors import RecordError
from essence.record.record_files import read_record
from essence.record.run_directory import RunDirectory
from essence.settings import ProtocolName, Record, StageName
from essence.settings.axes import CellAxes

Under = Literal["earlier code", "another environment", "earlier code with other settings"]
Checkpoint = Literal["model", "best", "last"]
"""Folder of a model in the output of what made it: `model` of a download, `best` or `last` of a training."""


class Planned(Record):
    """A part of a plan; fields of later code are left out."""

    model_config = ConfigDict(extra="ignore")


class EarlierEntry(Planned):
    """A finished stage that was there in the place of a planned one."""

    stage: str
    """Its id."""
    under: Under
    causes: list[str]
    """`distill/objective.py changed`."""
    acceptable: bool
    """True when settings, inputs and environment are equal, so that it may be taken in the place of the planned one."""


class StageEntry(Planned):
    """One stage of a plan."""

    stage: StageName
    title: str
    key: str
    inputs: dict[str, str] = Field(default_factory=dict)
    """Input name -> id of the stage that makes it."""
    earlier: EarlierEntry | None = None
    accepted: EarlierEntry | None = None
    """What changed since an accepted stage of earlier code was finished (`--accept-earlier`)."""

    def as_json(self) -> dict[str, object]:
        """As it is written: most stages have neither `earlier` nor `accepted`."""
        return self.model_dump(exclude_none=True)


class EvaluationEntry(Planned):
    """One benchmark of one checkpoint: two stages."""

    benchmark: str
    samples: int
    checkpoint: Checkpoint
    generate: str
    grade: str

    @property
    def name(self) -> str:
        """`aime25 best`."""
        return f"{self.benchmark} {self.checkpoint}"

    @property
    def stages(self) -> dict[str, str]:
        return {"generate": self.generate, "grade": self.grade}


class CellEntry(CellAxes, Planned):
    """One cell of a plan."""

    name: str
    stages: dict[str, str]
    """tokenize, train, student, teacher (the model) -> stage id; `states` where the teacher is paid once."""
    evaluations: list[EvaluationEntry]

    @model_validator(mode="after")
    def is_trained(self) -> Self:
        if "train" not in self.stages:
            raise ValueError("a cell needs a train stage")
        return self

    @property
    def train(self) -> str:
        return self.stages["train"]

    @property
    def taught(self) -> bool:
        """False for plain fine-tuning."""
        return "teacher" in self.stages

    @property
    def title(self) -> str:
        """What it is called where cells and baselines stand together."""
        return self.name

    def as_json(self) -> dict[str, object]:
        evaluations = [one.model_dump() for one in self.evaluations]
        return {"name": self.name, **self.axes(), "stages": self.stages, "evaluations": evaluations}


class BaselineEntry(Planned):
    """A model that is evaluated as it comes."""

    role: Literal["student", "teacher", "model"]
    """`model`: neither a student nor a teacher of the matrix, but one that was named on its own."""
    model: str
    protocol: ProtocolName
    evaluations: list[EvaluationEntry]

    @property
    def stages(self) -> dict[str, str]:
        return {}

    @property
    def title(self) -> str:
        return f"{self.role} {self.model}"


class PlanRecord(Planned):
    """plan.json."""

    schema_version: int = 1
    experiment: str = ""
    title: str = ""
    note: str = ""
    cells: list[CellEntry]
    baselines: list[BaselineEntry]
    stages: dict[str, StageEntry]

    @property
    def entries(self) -> list[CellEntry | BaselineEntry]:
        """All that is evaluated."""
        return [*self.cells, *self.baselines]

    def as_json(self) -> dict[str, object]:
        """As docs/design.md has it."""
        return {
            **self.model_dump(include={"schema_version", "experiment", "title", "note"}),
            "cells": [cell.as_json() for cell in self.cells],
            "baselines": [baseline.model_dump() for baseline in self.baselines],
            "stages": {name: stage.as_json() for name, stage in self.stages.items()},
        }

    def twins(self) -> Iterator[str]:
        """A sentence for each cell that is there twice: its trainings would count as two seeds."""
        trainings: dict[str, str] = {}
        for cell in self.cells:
            if cell.name in trainings:
                yield f"two records for one cell, {cell.name}: {trainings[cell.name]} and {cell.train}"
            trainings[cell.name] = cell.train

    def unplanned(self) -> Iterator[str]:
        """A sentence for each stage that a cell or baseline names and the plan does not describe."""
        named = {i: e.title for e in self.entries for part in (e, *e.evaluations) for i in part.stages.values()}
        yield from (f"{what} names {identifier}, which is not among its stages"
                    for identifier, what in named.items() if identifier not in self.stages)  # fmt: skip


def read_plan(file: Path) -> PlanRecord:
    """A plan; RecordError where it is missing, damaged, of another shape, or names a stage that it lacks."""
    plan = read_record(file, PlanRecord, "a plan")
    for sentence in plan.unplanned():
        raise RecordError(f"{file}: not a plan of this kit: {sentence}")
    return plan


def plan_of(run: RunDirectory, experiment: str) -> PlanRecord:
    """The plan of an experiment; errors as `read_plan`."""
    return read_plan(run.plan(experiment))


def accepted_sentences(planned: Iterable[StageEntry]) -> list[str]:
    """What `--accept-earlier` took in: a sentence for each kind of stage and cause."""
    counts: dict[tuple[str, str], int] = {}
    for entry in planned:
        if entry.accepted:
            group = (entry.stage, ", ".join(entry.accepted.causes))
            counts[group] = counts.get(group, 0) + 1
    return [
        f"Accepted from earlier code (--accept-earlier): {count} finished {stage} "
        f"stage{'s' if count > 1 else ''}; since then: {causes}."
        for (stage, causes), count in counts.items()
    ]
