"""Trainings of a run beside what the proof of their machine predicts of a step: the model of time, tried on the run."""

from dataclasses import asdict, dataclass

from essence import text
from essence.plan.newest_proof import Proof, proof_of
from essence.record.run_directory import RunDirectory
from essence.record.stage_records import TrainManifest
from essence.report.page.cost_claim import pair_of
from essence.report.results.records import Results
from essence.report.results.stage_reader import StageEvidence
from essence.sizes.architecture import Architecture
from essence.sizes.speeds import Crossing, StepWork, crossing_bytes, gathers_of_pass, layers_of_step, step_seconds

PREDICTED_COLUMNS = ("Training", "Steps", "A step, measured", "A step, predicted", "Predicted / measured")
BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class PredictedRow:
    """One training."""

    cell: str
    link: str
    steps: int
    measured_s: float
    """Mean of a step."""
    predicted_s: float
    proof: str
    """Which one, in words."""

    @property
    def line(self) -> list[str]:
        """A cell for each of `PREDICTED_COLUMNS`."""
        seconds = [f"{1e3 * one:.3g}{text.SPACE}ms" for one in (self.measured_s, self.predicted_s)]
        return [self.cell, f"{self.steps:,}", *seconds, text.times(self.predicted_s / self.measured_s)]

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def predicted_rows(results: Results) -> list[PredictedRow]:
    """Finished trainings on machines that were proved, each once, in the order of the plan."""
    stages = {stage.id: stage for stage in results.stages}
    done = {cell.train.id: (cell.name, cell.train) for cell in results.cells if cell.train.training}
    rows = (_row(name, stage, stages, RunDirectory(results.run_dir)) for name, stage in done.values())
    return [row for row in rows if row]


def _row(
    name: str, stage: StageEvidence, stages: dict[str, StageEvidence], run_directory: RunDirectory
) -> PredictedRow | None:
    manifest = stage.training
    proof = proof_of(run_directory, manifest.hardware) if manifest else None
    student, teacher = pair_of(stage, stages)
    if not (manifest and proof and student):
        return None
    told = manifest.cost.more.model_dump()
    seconds, flops, steps = told.get("training_s"), told.get("training_flops"), manifest.results.steps
    work = _work(manifest, student, teacher, float(flops)) if flops and steps else None
    if not (seconds and work):
        return None
    predicted = step_seconds(proof.speeds, work)
    return PredictedRow(name, stage.link, steps, float(seconds) / steps, predicted, _words(proof))


def _words(proof: Proof) -> str:
    return f"{proof.date}, {proof.device}"


def _work(
    manifest: TrainManifest, student: Architecture, teacher: Architecture | None, flops: float
) -> StepWork | None:
    """What a step of each device was, on average; None of a record that does not say how it ran."""
    executed, steps = manifest.settings.executed, manifest.results.steps
    ran, counts, processes = executed.micro_batches, executed.parameters, executed.parallel.processes
    if not (ran and counts and processes):
        return None
    backend, passes = executed.parallel.backend, max(1, round(ran.passes / steps / processes))
    live, compiled = teacher if executed.parallel.teacher != "cached" else None, executed.preflight.layers
    moved = executed.parallel.optimizer == "main_memory"
    size, crossing = BYTES[executed.dtype or "float32"], BYTES[executed.reduce_dtype or "float32"]
    crossed = Crossing(
        parallel="zero3" if backend == "zero3" else "zero2" if backend == "zero2" else "ddp",
        processes=processes,
        passes=passes,
        gradient_bytes=crossing * counts.trained,
        weight_bytes=size * student.parameters,
        gathers=gathers_of_pass(recomputed=bool(manifest.recomputed)),
        teacher_bytes=size * live.parameters if live and executed.parallel.teacher == "sharded" else 0.0,
        masters_shared=moved,
    )
    updated = counts.trained / (processes if moved or backend in ("zero2", "zero3") else 1)
    return StepWork(
        flops=flops / steps / processes,
        layer_passes=passes
        * layers_of_step(student.layers, compiled.student, live.layers if live else 0, compiled.teacher),
        parameters=0.0 if moved else updated,
        link_bytes=crossing_bytes(crossed),
        main_memory_parameters=updated if moved else 0.0,
    )
