"""What a teacher paid once takes on disk and saves in GPU hours, before anything runs: arithmetic on sizes.

Given whatever `teacher` says now, so that a plan says if a change would save time.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from essence.data.selection import reads_prefix
from essence.files import GIB
from essence.plan.cells import train_settings
from essence.plan.estimate import SECONDS_IN_HOUR, trained_of
from essence.plan.experiment import Experiment
from essence.plan.model_sizes import architecture, mean_row
from essence.plan.newest_proof import speeds_for
from essence.plan.stage_plan import CellPlan
from essence.plan.times import training_time
from essence.record.run_directory import RunDirectory
from essence.settings import ProtocolName, TeacherForm, TrainSettings, rollout_tokens
from essence.sizes.architecture import forward_flops, stored_bytes_per_token


@dataclass(frozen=True)
class StoredTeacher:
    """One cache, as it is planned or as it would be."""

    dataset: str
    protocol: ProtocolName
    teacher: str
    form: TeacherForm
    """What the experiment says now; `live` = this is what `cached` would be."""
    stage: str | None
    """Its id; None where the teacher is live."""
    cells: int
    """Trainings that read it."""
    rows: int
    tokens: int
    bytes_per_token: int
    disk_gib: float
    gpu_hours: float
    """Of the one reading."""
    saved_gpu_hours: float
    """Of the trainings, which do not read the rows with the teacher; the one reading taken off."""

    def as_json(self) -> dict[str, object]:
        return asdict(self)

    def sentence(self) -> str:
        """For `invoke plan`."""
        saving = f"{self.disk_gib:.3g} GiB of disk ({self.bytes_per_token:,} bytes per token)"
        saved = f"{self.saved_gpu_hours:.2g}" if self.saved_gpu_hours > 0 else "nothing"
        over = f"{self.cells} training{'s' * (self.cells > 1)}"
        hours = f"{self.gpu_hours:.2g} GPU hours once and saves {saved} over {over}"
        what = f"{self.teacher} for {self.rows:,} rows of {self.dataset} ({self.protocol})"
        if self.form == "live":
            return f"training.teacher = 'cached' would store the states of {what}: takes {saving}, {hours}"
        return f"teacher = 'cached': the states of {what}: takes {saving}, {hours}"


def stored_teachers(plans: Sequence[CellPlan], loaded: Experiment, run_directory: RunDirectory) -> list[StoredTeacher]:
    """The caches of some cells; cells that cannot read one, and sizes that are not known yet, are left out.

    None beside a student that learns from its own words: `teacher` is of all cells, and no cache knows what it says.
    """
    if any(rollout_tokens(plan.cell.span) for plan in plans):
        return []
    sharing: dict[tuple[str, ...], list[CellPlan]] = {}
    for plan in plans:
        settings = train_settings(plan.cell, loaded.experiment)
        if settings.objective.kd_weight > 0.0 and reads_prefix(settings.view):
            key = (plan.stages["tokenize"], plan.stages["teacher"], str(settings.rows.split_seed))
            sharing.setdefault(key, []).append(plan)
    found = (_stored(group, loaded, run_directory) for group in sharing.values())
    return [one for one in found if one]


def _stored(group: Sequence[CellPlan], loaded: Experiment, run_directory: RunDirectory) -> StoredTeacher | None:
    first = group[0]
    settings = train_settings(first.cell, loaded.experiment)
    teacher = architecture(first.cell.teacher, first.stages["teacher"], loaded, run_directory)
    row, _ = mean_row(first, loaded, run_directory)
    if teacher is None or row is None:
        return None
    length = int(row.lengths[0])
    rows = max(loaded.experiment.data[first.cell.dataset].train_rows, *(p.cell.train_rows or 0 for p in group), 0)
    size = stored_bytes_per_token(teacher, settings.compute_dtype)
    speeds = speeds_for(run_directory, loaded.experiment.resources.gpus)
    reading = forward_flops(teacher, length) * rows * speeds.flop_s / SECONDS_IN_HOUR
    saved = 0.0
    for plan in group:
        one = train_settings(plan.cell, loaded.experiment)
        saved += _gpu_hours(plan, loaded, run_directory, one.model_copy(update={"teacher": "live"}))
        saved -= _gpu_hours(plan, loaded, run_directory, one.model_copy(update={"teacher": "cached"}))
    return StoredTeacher(
        dataset=first.cell.dataset,
        protocol=first.cell.protocol,
        teacher=first.cell.teacher,
        form=settings.teacher,
        stage=first.stages.get("states"),
        cells=len(group),
        rows=rows,
        tokens=rows * length,
        bytes_per_token=size,
        disk_gib=rows * length * size / GIB,
        gpu_hours=reading,
        saved_gpu_hours=saved - reading,
    )


def _gpu_hours(plan: CellPlan, loaded: Experiment, run_directory: RunDirectory, settings: TrainSettings) -> float:
    """Of a training under these settings; 0 where a size is not known."""
    trained = trained_of(plan, loaded, run_directory, settings)
    if trained is None:
        return 0.0
    speeds = speeds_for(run_directory, loaded.experiment.resources.gpus)
    devices = trained.resources.gpus * trained.resources.nodes or settings.processes
    return training_time(trained, speeds).seconds * devices / SECONDS_IN_HOUR
