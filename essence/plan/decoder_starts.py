"""What starting the decoder takes of the hours of evaluations: each benchmark of a model starts one of its own."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from essence import text
from essence.plan.estimate import SECONDS_IN_HOUR, estimate
from essence.plan.measured_lengths import lengths_of
from essence.plan.newest_proof import newest_proof, speeds_for
from essence.plan.stage_plan import CellPlan, Plan
from essence.record.run_directory import RunDirectory


@dataclass(frozen=True)
class DecoderStarts:
    """Of the evaluations of some cells, done or not."""

    starts: int
    start_s: float
    """Of one, on all the GPUs of its stage."""
    proved: bool
    """Measured by `invoke prove`, with weights that are made and not read; otherwise assumed."""
    gpu_hours: float
    """Of all starts."""
    evaluation_gpu_hours: float
    """Of all evaluations, starts included."""
    shared_gpu_hours: float
    """Of the starts that would be left if the benchmarks of a model shared one decoder."""

    @property
    def finding(self) -> str:
        """One sentence."""
        share = self.gpu_hours / self.evaluation_gpu_hours
        how = "measured" if self.proved else "assumed"
        return (
            f"Evaluations start a decoder {self.starts} times, {text.duration(self.start_s)} each ({how}): "
            f"{self.gpu_hours:.1f} of {self.evaluation_gpu_hours:.0f} GPU hours ({share:.1%}); one decoder for all "
            f"benchmarks of a model would take {self.shared_gpu_hours:.1f}."
        )

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def decoder_starts(plan: Plan, cells: Iterable[CellPlan], run_directory: RunDirectory) -> DecoderStarts | None:
    """Of the evaluations of these cells of a plan; None where their hours are not known."""
    gpus, measured = plan.loaded.experiment.resources.gpus, lengths_of(plan, run_directory)
    start_s = speeds_for(run_directory, gpus).decoder_start_s
    starts, models, hours = 0, 0, 0.0
    for cell in cells:
        found = estimate(cell, plan.loaded, run_directory, measured).evaluation_gpu_hours
        if found is None:
            return None
        hours += found
        starts += len(cell.evaluations)
        models += len({one.checkpoint for one in cell.evaluations})
    each = gpus * start_s / SECONDS_IN_HOUR
    proof = newest_proof(run_directory, gpus)
    proved = proof is not None and proof.decoding is not None
    return DecoderStarts(starts, start_s, proved, starts * each, hours, models * each) if hours else None
