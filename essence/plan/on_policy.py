"""What a cell of span `rollout-k` cannot be, said in one sentence before anything runs."""

from essence.errors import ExperimentError
from essence.settings import TrainSettings, rollout_tokens
from essence.settings.axes import CellAxes


def check_axes(cell: CellAxes, name: str, where: str) -> None:
    """ExperimentError for a cell whose axes contradict its span; nothing of other spans.

    Args:
        cell: the axes.
        name: of the cell.
        where: the experiment's file.
    """
    if rollout_tokens(cell.span) is None:
        return
    if cell.sections != "cot+a":
        raise ExperimentError(
            f"{where}: the cell {name} has sections '{cell.sections}', but span '{cell.span}' is taught on the "
            "student's own words, all of which stand where chain of thought and answer would",
            'give it sections = ["cot+a"]',
        )
    if cell.protocol != "corrected":
        raise ExperimentError(
            f"{where}: the cell {name} is of protocol '{cell.protocol}', whose code has no rollouts, and which "
            "validates on rows cut like those that are trained on",
            'give it protocol = ["corrected"]',
        )
    if cell.token_budget:
        raise ExperimentError(
            f"{where}: token_budget = {cell.token_budget} chooses rows by their tokens, and how many span "
            f"'{cell.span}' reads is known only when the student has spoken",
            "leave token_budget out",
        )


def check_training(span: str, settings: TrainSettings, where: str) -> None:
    """ExperimentError where the settings of a training do not go with span `rollout-k`; nothing of other spans."""
    if settings.rollouts is None:
        return
    most, limit = rollout_tokens(span) or 0, settings.rows.max_row_tokens
    if most > limit:
        raise ExperimentError(
            f"{where}: span '{span}' is longer than max_row_tokens = {limit}, the limit of the rows that are read",
            f"use rollout-{limit} or shorter, or raise max_row_tokens",
        )
    for wrong, found, why, cure in _contradictions(settings):
        if wrong:
            raise ExperimentError(f"{where}: span '{span}' with {found} in [training]: {why}", cure)


def _contradictions(settings: TrainSettings) -> list[tuple[bool, str, str, str]]:
    """(whether it is so, setting as found, why it does not go, cure)."""
    objective = settings.objective
    return [
        (
            objective.kd_weight != 1.0,
            f"kd_weight = {objective.kd_weight:g}",
            "cross-entropy on the student's own words would teach it what it says already",
            "set kd_weight = 1.0",
        ),
        (
            objective.divergence != "reverse_kl",
            f"divergence = '{objective.divergence}'",
            "the student's own words are an estimate of the reverse divergence, from student to teacher",
            "set divergence = 'reverse_kl'",
        ),
        (
            settings.teacher != "live",
            f"teacher = '{settings.teacher}'",
            "nothing stored knows what the student will say",
            "use teacher = 'live'",
        ),
        (
            settings.packing,
            "packing = true",
            "a student that speaks reads with a key-value cache, which packed attention does not have",
            "set packing = false",
        ),
        (
            settings.processes > 1 or settings.parallel != "single",
            f"parallel = '{settings.parallel}' on {settings.processes} processes",
            "rollouts are drawn by the one process that holds the whole student",
            "set parallel = 'single' and processes = 1",
        ),
        (
            settings.optimizer.batch_tokens > 0,
            f"batch_tokens = {settings.optimizer.batch_tokens}",
            "it chooses the rows of a step by their tokens, which are not known before the student has spoken",
            "leave it out",
        ),
    ]
