"""How long the stages that take GPUs are expected to run, where the estimate knows: what their jobs ask for."""

from collections.abc import Iterator

from essence.plan.estimate import estimate
from essence.plan.measured_lengths import lengths_of
from essence.plan.stage_plan import CellPlan, Plan
from essence.plan.times import Lengths
from essence.record.run_directory import RunDirectory

SECONDS_IN_HOUR = 3600.0


def expected_seconds(plan: Plan, run_directory: RunDirectory) -> dict[str, float]:
    """Stage id -> seconds on the GPUs that the stage is given, of trainings and generations.

    An untrained model is not estimated: its completions are as long as it likes.
    """
    measured = lengths_of(plan, run_directory)
    return {
        stage: hours / (asked.gpus * asked.nodes) * SECONDS_IN_HOUR
        for cell in plan.cells
        for stage, hours in _gpu_hours(cell, plan, run_directory, measured)
        if (asked := plan.stages[stage].resources).gpus
    }


def _gpu_hours(
    cell: CellPlan, plan: Plan, run_directory: RunDirectory, measured: Lengths | None
) -> Iterator[tuple[str, float]]:
    costs = estimate(cell, plan.loaded, run_directory, measured)
    if costs.training_gpu_hours is not None:
        yield cell.stages["train"], costs.training_gpu_hours
    if costs.evaluation_gpu_hours is not None:
        # Problems differ from benchmark to benchmark: each has time for all of them.
        yield from ((evaluation.generate, costs.evaluation_gpu_hours) for evaluation in cell.evaluations)
