"""How long the stages that take GPUs are expected to run, where the estimate knows: what their jobs ask for."""

from collections.abc import Iterator

from essence.plan.estimate import Estimate, estimate
from essence.plan.experiment import Experiment
from essence.plan.stage_plan import CellPlan, Plan
from essence.record.run_directory import RunDirectory

SECONDS_IN_HOUR = 3600.0


def expected_seconds(plan: Plan, run_directory: RunDirectory) -> dict[str, float]:
    """Stage id -> seconds on the GPUs that the experiment gives one stage, of trainings and generations.

    An untrained model is not estimated: its completions are as long as it likes.
    """
    return {stage: seconds for cell in plan.cells for stage, seconds in _of_cell(cell, plan.loaded, run_directory)}


def _of_cell(cell: CellPlan, loaded: Experiment, run_directory: RunDirectory) -> Iterator[tuple[str, float]]:
    resources = loaded.experiment.resources
    if not resources.gpus:
        return
    costs: Estimate = estimate(cell, loaded, run_directory)
    if costs.training_gpu_hours is not None:
        gpus = resources.gpus * resources.nodes
        yield cell.stages["train"], costs.training_gpu_hours / gpus * SECONDS_IN_HOUR
    if costs.evaluation_gpu_hours is not None:
        # Problems differ from benchmark to benchmark: each has time for all of them.
        for evaluation in cell.evaluations:
            yield evaluation.generate, costs.evaluation_gpu_hours / resources.gpus * SECONDS_IN_HOUR
