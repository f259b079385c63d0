"""From cells to stages: what is to be done, keyed by what determines its result, shared where it is the same.

A plan is pure: the same experiment, environment, source and contents of local paths give the same plan on every
machine.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from essence.errors import InputError
from essence.plan.catalogue import find_pin, to_source
from essence.plan.cells import part, resolve_seed, resources_of, teacher_settings, tokenize_settings, train_settings
from essence.plan.experiment import Cell, Experiment
from essence.plan.on_policy import check_training
from essence.plan.renewal import Renewals, Wanted
from essence.record.finished_stages import Earlier, FinishedStages
from essence.record.local_sources import LocalSources
from essence.record.plan_record import BaselineEntry, CellEntry, Checkpoint, EvaluationEntry, PlanRecord, StageEntry
from essence.record.run_directory import stage_id
from essence.record.source_key import source_sha256
from essence.record.stage_key import stage_key
from essence.settings import (
    STAGES_IN,
    BenchmarkSettings,
    DownloadSettings,
    EnvironmentName,
    GenerateSettings,
    GradeSettings,
    GradingSettings,
    ProtocolName,
    Record,
    Resources,
    SamplingSettings,
    StageName,
)
from essence.settings.protocol import PROTOCOLS
from essence.settings.toml import shown

VLLM_LOCK = "vllm_lock_sha256"
"""What an engine without images calls the lock of the layer that holds vLLM; an image holds it in any case."""
GRADER_LOCK = "math_verify_09_lock_sha256"
"""The same for the layer that holds the grader `math-verify-0.9`."""
ONLY: dict[str, tuple[StageName, ...]] = {
    "download": ("download",),
    "tokenize": ("tokenize",),
    "teacher": ("teacher",),
    "train": ("train",),
    "generate": ("generate",),
    "grade": ("grade",),
    "evaluate": ("generate", "grade"),
}
"""Words for `--only`: the stages that are wanted; what they need is run too."""


@dataclass(frozen=True)
class PlannedStage:
    """One stage with everything that is given to it; see `Spec`."""

    id: str
    stage: StageName
    key: str
    title: str
    settings: Record
    inputs: dict[str, str]
    """Input name -> stage id."""
    resources: Resources
    runs_in: EnvironmentName
    environment: dict[str, str]
    """Identity of that environment."""
    source_sha256: str
    graders: dict[str, float] = field(default_factory=dict)
    """As in `Spec`."""
    earlier: Earlier | None = None
    """What is finished in its place; of an accepted stage, what changed since."""
    accepted: bool = False
    """True when this is a finished stage of earlier code."""
    built_on: dict[str, list[str]] = field(default_factory=dict)
    """`accepted` of `Spec`."""

    def entry(self) -> StageEntry:
        """As plan.json has it."""
        found = self.earlier.entry() if self.earlier else None
        return StageEntry(
            stage=self.stage,
            title=self.title,
            key=self.key,
            inputs=self.inputs,
            earlier=None if self.accepted else found,
            accepted=found if self.accepted else None,
        )


@dataclass(frozen=True)
class CellPlan:
    """The stages of one cell."""

    cell: Cell
    stages: dict[str, str]
    """tokenize, train, student, teacher (the model) -> stage id; `states` where the teacher is paid once."""
    evaluations: list[EvaluationEntry]


@dataclass(frozen=True)
class Plan:
    """All cells of a selection, and their stages in an order in which they can run."""

    loaded: Experiment
    cells: list[CellPlan]
    baselines: list[BaselineEntry]
    stages: dict[str, PlannedStage]

    def wanted(self, only: str | None = None) -> list[PlannedStage]:
        """The stages to run for `--only`, with all that they need, in order."""
        kinds = ONLY[only] if only else ("grade", "train")
        needed: set[str] = set()
        waiting = [s.id for s in self.stages.values() if s.stage in kinds]
        while waiting:
            current = waiting.pop()
            if current not in needed:
                needed.add(current)
                waiting += self.stages[current].inputs.values()
        return [stage for stage in self.stages.values() if stage.id in needed]

    def record(self) -> PlanRecord:
        """plan.json, as docs/design.md has it."""
        experiment = self.loaded.experiment
        return PlanRecord(
            experiment=self.loaded.name,
            title=experiment.title,
            note=experiment.note,
            cells=[
                CellEntry(name=c.cell.name, **c.cell.model_dump(), stages=c.stages, evaluations=c.evaluations)
                for c in self.cells
            ],
            baselines=self.baselines,
            stages={stage.id: stage.entry() for stage in self.stages.values()},
        )


Environment = Callable[[EnvironmentName], dict[str, str]]
"""What an engine says of an environment; part of the key of every stage that runs in it."""


def environment_of(stage: StageName, settings: Record) -> EnvironmentName:
    """Which environment a stage runs in; what the kit makes itself, models for one, needs that of training."""
    if isinstance(settings, DownloadSettings):
        return "train" if settings.source.builtin else "download"
    return "eval" if stage in STAGES_IN["eval"] else "train"


def _that_counts(environment: dict[str, str], settings: Record) -> dict[str, str]:
    """Without the locks of layers that a stage does not use: installing vLLM or a grader renews nothing."""
    unused = {VLLM_LOCK, GRADER_LOCK}
    if isinstance(settings, SamplingSettings) and settings.decoder == "vllm":
        unused.remove(VLLM_LOCK)
    if isinstance(settings, GradeSettings) and settings.grader == "math-verify-0.9":
        unused.remove(GRADER_LOCK)
    return {name: value for name, value in environment.items() if name not in unused}


def make_plan(
    loaded: Experiment,
    cells: list[Cell],
    environment: Environment,
    baselines: bool,
    local: LocalSources | None = None,
    accept_earlier: bool = False,
) -> Plan:
    """The plan for some cells of an experiment, with or without the untrained models beside them.

    `local` says what local paths hold, and held when a run directory took them in; that run directory is looked
    through for what is finished in the place of planned stages. With `accept_earlier` such a stage is taken.
    """
    planner = _Planner(loaded, environment, local or LocalSources(), accept_earlier)
    cell_plans = [planner.cell(cell) for cell in cells]
    baseline_plans = planner.baselines(cells) if baselines else []
    return Plan(loaded, cell_plans, baseline_plans, planner.stages)


def make_evaluation_plan(
    loaded: Experiment,
    model: str,
    protocol: ProtocolName,
    seed: int,
    environment: Environment,
    local: LocalSources | None = None,
) -> Plan:
    """The plan for one finished model of the catalogue on the experiment's benchmarks, without any training."""
    planner = _Planner(loaded, environment, local or LocalSources())
    downloaded = planner.download("model", model)
    evaluations = [
        planner.evaluation(benchmark, downloaded, "model", protocol, seed, model)
        for benchmark in loaded.experiment.evaluation.benchmarks
    ]
    return Plan(
        loaded,
        [],
        [BaselineEntry(role="model", model=model, protocol=protocol, evaluations=evaluations)],
        planner.stages,
    )


@dataclass
class _Planner:
    loaded: Experiment
    environment: Environment
    local: LocalSources
    accept_earlier: bool = False
    stages: dict[str, PlannedStage] = field(default_factory=dict)
    accepted: dict[str, str] = field(default_factory=dict)
    """Id of a stage as this code would key it -> id of the finished stage that was taken in its place."""

    @functools.cached_property
    def renewals(self) -> Renewals | None:
        directory = self.local.run_directory
        return Renewals(FinishedStages(directory)) if directory else None

    def add(
        self, stage: StageName, title: str, settings: Record, inputs: dict[str, str], of: Cell | str | None = None
    ) -> str:
        """A stage by its key; the second cell that needs it finds it here. `of` is as in `resources_of`."""
        runs_in = environment_of(stage, settings)
        environment, source = _that_counts(self.environment(runs_in), settings), source_sha256(stage)
        if isinstance(settings, DownloadSettings) and not settings.source.builtin:
            # What a commit or a folder holds depends on neither: a new lock does not fetch 16 GB again.
            environment, source = {}, ""
        read = {name: self.stages[identifier].key for name, identifier in inputs.items()}
        resolved = settings.model_dump(mode="json")
        key = stage_key(stage, resolved, read, environment, source)
        identifier = stage_id(stage, key)
        if identifier in self.accepted:
            return self.accepted[identifier]
        if identifier not in self.stages:
            wanted = Wanted(stage, title, resolved, inputs, environment, source)
            earlier = self.renewals.find(identifier, key, wanted) if self.renewals else None
            accepted = self.accept_earlier and earlier is not None and earlier.acceptable
            if earlier and accepted:
                self.accepted[identifier] = earlier.id
                identifier, key = earlier.id, earlier.key
            resources = resources_of(stage, self.loaded.experiment, of)
            self.stages[identifier] = PlannedStage(
                *(identifier, stage, key, title, settings, inputs, resources, runs_in, environment, source),
                earlier=earlier,
                accepted=accepted,
                built_on=self._built_on(inputs),
            )
        return identifier

    def _built_on(self, inputs: dict[str, str]) -> dict[str, list[str]]:
        """The accepted stages that these inputs are or come from."""
        found: dict[str, list[str]] = {}
        for stage in map(self.stages.__getitem__, inputs.values()):
            found |= stage.built_on
            if stage.accepted and stage.earlier:
                found[stage.id] = list(stage.earlier.causes)
        return found

    def download(self, kind: Literal["model", "dataset", "benchmark"], name: str) -> str:
        catalogue, where = self.loaded.catalogue, str(self.loaded.file)
        pins: Any = {
            "model": catalogue.models,
            "dataset": catalogue.datasets,
            "benchmark": catalogue.benchmarks,
        }[kind]
        pin = find_pin(pins, name, kind, where)
        try:
            source = to_source(kind, name, pin, self.local)
        except InputError as error:  # of what its path leads to
            told = f"{where}: {kind}s.{name}.path = {shown(pin.path)}: {error.problem}"
            raise InputError(told, error.cure) from None
        return self.add("download", f"download {kind} {name}", DownloadSettings(source=source), {})

    def cell(self, cell: Cell) -> CellPlan:
        experiment, protocol = self.loaded.experiment, PROTOCOLS[cell.protocol]
        settings = train_settings(cell, experiment)
        check_training(cell.span, settings, str(self.loaded.file))
        stages = {"student": self.download("model", cell.student)}
        if settings.objective.kd_weight > 0.0:  # plain fine-tuning reads no teacher
            stages["teacher"] = self.download("model", cell.teacher)
        reads = experiment.data[cell.dataset].tokenizer
        tokenizer = stages.get(reads) or self.download("model", getattr(cell, reads))
        tokens = self.add(
            "tokenize",
            f"tokenize {cell.dataset} for {getattr(cell, reads)} ({cell.protocol})",
            tokenize_settings(cell.dataset, cell.protocol, self.loaded),
            {
                "rows": self.download("dataset", cell.dataset),
                "tokenizer": tokenizer,
                **{
                    f"problems-{name}": self.download("benchmark", name)
                    for name in experiment.decontamination.benchmarks
                },
            },
        )
        stages["tokenize"] = tokens
        if settings.teacher != "live":
            stages["states"] = self.add(
                "teacher",
                f"teacher {cell.teacher} reads {cell.dataset} ({cell.protocol})",
                teacher_settings(cell, settings, self.loaded),
                {"tokens": tokens, "tokenizer": tokenizer, "teacher": stages["teacher"]},
            )
        inputs = {"tokens": tokens, "student": stages["student"]}
        if "teacher" in stages:
            inputs["teacher"] = stages.get("states", stages["teacher"])
        stages["train"] = train = self.add("train", f"train {cell.name}", settings, inputs, of=cell)
        evaluations = [
            self.evaluation(benchmark, train, checkpoint, cell.protocol, cell.seed, cell.name, cell.student)
            for benchmark in experiment.evaluation.benchmarks
            for checkpoint in protocol.evaluated_checkpoints
        ]
        return CellPlan(cell, stages, evaluations)

    def evaluation(
        self,
        benchmark: str,
        model: str,
        folder: Checkpoint,
        protocol: ProtocolName,
        seed: int,
        of: str,
        student: str = "",
    ) -> EvaluationEntry:
        """`of` is the model by its short name, or the cell that trained it from `student`."""
        section, grading = self.loaded.experiment.evaluation, self.loaded.experiment.grading
        pin = self.loaded.catalogue.benchmarks[benchmark]
        problems = self.download("benchmark", benchmark)
        asked = BenchmarkSettings(
            name=benchmark,
            problem_field=pin.problem_field,
            answer_field=pin.answer_field,
            answer_type=pin.answer_type,
            prompt=pin.prompt,
            problems=section.problems,
        )
        may_stop = PROTOCOLS[protocol].may_stop_loops
        sampling = {**part(section, SamplingSettings), "stop_loops": section.stop_loops and may_stop}
        generate = self.add(
            "generate",
            f"generate {benchmark} avg@{section.samples} with {of} ({folder})",
            GenerateSettings(
                benchmark=asked,
                model_folder=folder,
                stop_at_turn_end=PROTOCOLS[protocol].stop_at_turn_end,
                seed=resolve_seed(section.seed, seed),
                **sampling,
            ),
            {"model": model, "problems": problems},
            of=student or of,
        )
        grade = self.add(
            "grade",
            f"grade {benchmark} avg@{section.samples} of {of} ({folder})",
            GradeSettings(
                benchmark=asked,
                samples=section.samples,
                grader=PROTOCOLS[protocol].grader if grading.grader == "protocol" else grading.grader,
                **part(grading, GradingSettings),
            ),
            {"samples": generate, "problems": problems},
        )
        self._tell_grader(generate, grade)
        return EvaluationEntry(
            benchmark=benchmark, samples=section.samples, checkpoint=folder, generate=generate, grade=grade
        )

    def _tell_grader(self, generate: str, grade: str) -> None:
        """Let a generate stage know who judges, so that it tries the golds before it pays for completions."""
        stage, settings = self.stages[generate], self.stages[grade].settings
        if isinstance(settings, GradeSettings):
            graders = {**stage.graders, settings.grader: settings.timeout_s}
            self.stages[generate] = replace(stage, graders=graders)

    def baselines(self, cells: list[Cell]) -> list[BaselineEntry]:
        section = self.loaded.experiment.evaluation
        plans: dict[tuple[str, str, str], BaselineEntry] = {}
        for cell in cells:
            for role in section.baselines:
                model = getattr(cell, role)
                if (role, model, cell.protocol) not in plans:
                    downloaded = self.download("model", model)
                    evaluations = [
                        self.evaluation(benchmark, downloaded, "model", cell.protocol, cell.seed, model)
                        for benchmark in section.benchmarks
                    ]
                    plans[role, model, cell.protocol] = BaselineEntry(
                        role=role, model=model, protocol=cell.protocol, evaluations=evaluations
                    )
        return list(plans.values())
