"""Which cells may read a teacher that was computed once, and what is computed for them.

A causal teacher's states of a row's first tokens are the same whatever follows, so one reading of the whole rows serves
every cell that reads its rows from the first token on: all proportions, sections, epochs and seeds.
"""

from essence.distill.sequence import reads_prefix
from essence.errors import ExperimentError
from essence.experiment import Cell, LoadedExperiment
from essence.settings import TeacherSettings, TopKSettings, TrainSettings


def teacher_settings(cell: Cell, settings: TrainSettings, loaded: LoadedExperiment) -> TeacherSettings:
    """What the teacher stage of a cell is told; the same for all cells that can share it.

    A cell of fewer rows than its data set has reads the first of them. Rows that depend on the seed
    (`split_seed = "cell"`) are stored for each seed.

    Raises:
        ExperimentError: this cell cannot be taught by stored states.
    """
    _check(cell, settings, loaded)
    rows = max(settings.rows.train_rows, loaded.experiment.data[cell.dataset].train_rows)
    sparse = TopKSettings(k=settings.teacher_top_k, temperature=settings.objective.temperature)
    return TeacherSettings(
        rows=settings.rows.model_copy(update={"train_rows": rows, "token_budget": None, "published": None}),
        top_k=sparse if settings.teacher == "top-k" else None,
        compute_dtype=settings.compute_dtype,
        attention=settings.attention,
        packing=settings.packing,
        pad_to_multiple=settings.pad_to_multiple,
    )


def _check(cell: Cell, settings: TrainSettings, loaded: LoadedExperiment) -> None:
    asked = f"{loaded.file}: training.teacher = '{settings.teacher}'"
    if settings.objective.kd_weight == 0.0:
        raise ExperimentError(f"{asked}, but kd_weight = 0.0 reads no teacher: leave it out")
    if settings.teacher_placement != "replicated":
        raise ExperimentError(
            f"{asked}, but teacher_placement = '{settings.teacher_placement}' places a live teacher: leave one of them "
            "out"
        )
    if not reads_prefix(settings.view):
        raise ExperimentError(
            f"{asked}, but {cell.name} drops what stands before its span, so the teacher's states of whole rows are "
            "not those of what it reads: use teacher = 'live', the span 'right-with-context' or protocol 'corrected'"
        )
