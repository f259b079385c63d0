"""From a cell and its experiment to the settings of its stages."""

from typing import Any

from essence.data.selection import reads_prefix
from essence.errors import ExperimentError
from essence.plan.experiment import Cell, Experiment
from essence.plan.schema import OF_RESOURCES, ExperimentSchema, TrainingSection
from essence.settings import (
    DecontaminationSettings,
    LoopSettings,
    ObjectiveSettings,
    OptimizerSettings,
    OrderSettings,
    ParallelSettings,
    ProtocolName,
    Record,
    Resources,
    RowsSettings,
    StageName,
    TeacherSettings,
    TokenizeSettings,
    TrainSettings,
    ViewSettings,
    draws,
    rollout_tokens,
)
from essence.settings.protocol import PROTOCOLS


def train_settings(cell: Cell, experiment: ExperimentSchema) -> TrainSettings:
    """All that determines the training of a cell."""
    protocol, data = PROTOCOLS[cell.protocol], experiment.data[cell.dataset]
    training = training_section(cell, experiment)
    batch_rows, batch_tokens = training.batch_rows, training.batch_tokens
    if not protocol.applies_gradient_accumulation:
        batch_rows = max(1, batch_rows // training.gradient_accumulation)
        # 0 would mean steps of rows.
        batch_tokens = min(batch_tokens, max(1, batch_tokens // training.gradient_accumulation))
    return TrainSettings(
        rows=RowsSettings(
            max_row_tokens=data.max_row_tokens,
            train_rows=cell.train_rows or data.train_rows,
            validation_rows=data.validation_rows,
            split_seed=resolve_seed(data.split_seed, cell.seed),
            token_budget=cell.token_budget,
            published=data.published,
        ),
        view=ViewSettings(
            lsp=cell.lsp,
            span=cell.span,
            sections=cell.sections,
            cot_includes_next_token=protocol.cot_includes_next_token,
            supervise_end_of_sequence=protocol.supervise_end_of_sequence,
            keep_context=protocol.keep_context,
            left_pad_multiple=protocol.left_pad_multiple,
            misordered_markers=protocol.misordered_markers,
            draw_seed=cell.seed if draws(cell.span) else 0,
        ),
        validation_view=protocol.validation_view,
        objective=ObjectiveSettings(**part(training, ObjectiveSettings)),
        optimizer=OptimizerSettings(
            **{**part(training, OptimizerSettings), "batch_rows": batch_rows, "batch_tokens": batch_tokens}
        ),
        rollouts=training.rollouts if rollout_tokens(cell.span) else None,
        order=OrderSettings(seed=resolve_seed(protocol.order_seed, cell.seed), multiple=protocol.order_multiple),
        checkpoint_ranks=protocol.checkpoint_ranks,
        **part(training, LoopSettings),
        **part(training, ParallelSettings),
        seed=cell.seed,
    )


def training_section(cell: Cell, experiment: ExperimentSchema) -> TrainingSection:
    """`[training]`, with what the cell's pair changes of it."""
    section = experiment.by_pair.get(cell.pair)
    changes = section.model_dump(exclude_none=True, exclude=OF_RESOURCES) if section else {}
    return experiment.training.model_copy(update=changes)


def resources_of(stage: StageName, experiment: ExperimentSchema, of: Cell | str | None = None) -> Resources:
    """`[resources]` for a stage: of a training with what the pair of its cell changes, of an evaluation its model.

    Nothing but a training runs on several machines or, generation apart, on several GPUs.
    """
    resources = Resources(**part(experiment.resources, Resources))
    if stage == "train":
        pair = experiment.by_pair.get(of.pair) if isinstance(of, Cell) else None
        return resources.model_copy(update=pair.model_dump(exclude_none=True, include=OF_RESOURCES) if pair else {})
    resources = resources.model_copy(update={"nodes": 1})
    if stage == "generate":
        model = experiment.by_model.get(of) if isinstance(of, str) else None
        return resources.model_copy(update=model.model_dump()) if model else resources
    gpus = min(1, resources.gpus) if stage == "teacher" else 0
    return resources.model_copy(update={"gpus": gpus, **({} if gpus else {"gpu_memory_gib": 0.0})})


def part(section: Record, record: type[Record]) -> dict[str, Any]:
    """The fields of a TOML section that a record of the settings has too."""
    return {name: getattr(section, name) for name in record.model_fields}


def tokenize_settings(dataset: str, protocol: ProtocolName, loaded: Experiment) -> TokenizeSettings:
    """All that determines how a data set becomes tokens."""
    data, rules, released = loaded.experiment.data[dataset], loaded.experiment.decontamination, PROTOCOLS[protocol]
    fields = {name: loaded.catalogue.benchmarks[name].problem_field for name in rules.benchmarks}
    return TokenizeSettings(
        format=loaded.catalogue.datasets[dataset].format,
        keep_generation_header=released.keep_generation_header,
        markers=released.markers,
        faulty_rows=released.faulty_rows,
        max_row_characters=data.max_row_characters,
        max_rejected_share=data.max_rejected_share,
        decontamination=DecontaminationSettings(
            problem_fields=fields, overlap_words=rules.overlap_words, remove=rules.remove
        ),
    )


def resolve_seed(rule: int | str, cell_seed: int) -> int:
    """A fixed seed, or the cell's."""
    return cell_seed if isinstance(rule, str) else rule


def teacher_settings(cell: Cell, settings: TrainSettings, loaded: Experiment) -> TeacherSettings:
    """What the teacher stage of a cell is given; the same for all cells that can share it.

    A cell of fewer rows than its data set has reads the first of them. Rows that depend on the seed
    (`split_seed = "cell"`) are stored for each seed.

    Raises:
        ExperimentError: this cell cannot be taught by stored states.
    """
    _check(cell, settings, loaded)
    rows = max(settings.rows.train_rows, loaded.experiment.data[cell.dataset].train_rows)
    return TeacherSettings(
        rows=settings.rows.model_copy(update={"train_rows": rows, "token_budget": None, "published": None}),
        compute_dtype=settings.compute_dtype,
        packing=settings.packing,
        pad_to_multiple=settings.pad_to_multiple,
    )


def _check(cell: Cell, settings: TrainSettings, loaded: Experiment) -> None:
    asked = f"{loaded.file}: training.teacher = '{settings.teacher}'"
    if settings.objective.kd_weight == 0.0:
        raise ExperimentError(f"{asked}, but kd_weight = 0.0 reads no teacher: leave it out")
    if settings.teacher_placement != "replicated":
        raise ExperimentError(
            f"{asked}, but teacher_placement = '{settings.teacher_placement}' places a live teacher: leave one of them "
            "out"
        )
    if settings.view.span == "lead+answer" and not reads_prefix(settings.view):
        raise ExperimentError(
            f"{asked}, but {cell.name} leaves out the middle of the chain of thought, so the teacher's states of what "
            "follows are not those of whole rows: use teacher = 'live'"
        )
    if not reads_prefix(settings.view):
        raise ExperimentError(
            f"{asked}, but {cell.name} drops what comes before its span, so the teacher's states of whole rows are "
            "not those of what it reads: use teacher = 'live', the span 'right-with-context' or protocol 'corrected'"
        )
