"""How long a training takes with the least change that makes it fit: the estimate of the experiment so changed."""

from collections.abc import Iterable
from dataclasses import replace

from essence.plan.estimate import estimate
from essence.plan.experiment import Experiment
from essence.plan.fit import Fit
from essence.plan.schema import TrainingSection
from essence.plan.stage_plan import CellPlan, Plan
from essence.record.run_directory import RunDirectory
from essence.sizes.memory import DeviceLoad
from essence.sizes.rollout_sizes import RolloutLoad


def with_times(fits: Iterable[Fit], plan: Plan, run_directory: RunDirectory) -> list[Fit]:
    """The same, with hours and seconds a step of each training that a change makes fit."""
    cells = {f"training {cell.cell.name}": cell for cell in plan.cells}
    return [_timed(fit, cells[fit.what], plan.loaded, run_directory) if fit.loads else fit for fit in fits]


def _timed(fit: Fit, cell: CellPlan, loaded: Experiment, run_directory: RunDirectory) -> Fit:
    assert fit.loads is not None
    found = estimate(cell, changed_experiment(loaded, cell.cell.pair, *fit.loads), run_directory)
    return replace(fit, changed_gpu_hours=found.training_gpu_hours, changed_step_s=found.training_step_s)


def changed_experiment(loaded: Experiment, pair: str, before: DeviceLoad, load: DeviceLoad) -> Experiment:
    """The experiment whose trainings of a pair give each device another load; those of other pairs are not meant."""
    experiment = loaded.experiment
    section = experiment.by_pair.get(pair)
    nodes = experiment.resources.nodes
    training = {
        "parallel": load.parallel,
        "processes": load.devices,
        "teacher_placement": load.teacher_placement,
        "optimizer_placement": load.optimizer_placement,
        **_rollouts(experiment.training, before.rollouts, load.rollouts),
    }
    asked = (section.activation_checkpointing if section else None) or experiment.resources.activation_checkpointing
    most = (section.micro_batch_tokens if section else None) or experiment.resources.micro_batch_tokens
    resources = {
        "gpus": max(experiment.resources.gpus, -(-load.devices // nodes)),
        "activation_checkpointing": "on" if load.activation_checkpointing > before.activation_checkpointing else asked,
        "micro_batch_tokens": most if load.positions == before.positions else load.positions,
    }
    changes = {
        "training": experiment.training.model_copy(update=training),
        "resources": experiment.resources.model_copy(update=resources),
        "by_pair": {name: other for name, other in experiment.by_pair.items() if name != pair},
    }
    return replace(loaded, experiment=experiment.model_copy(update=changes))


def _rollouts(training: TrainingSection, before: RolloutLoad | None, most: RolloutLoad | None) -> dict[str, object]:
    """What draws so many rollouts together at most: fewer steps at a time, or else steps of fewer rows."""
    if before is None or most is None or most.rows >= before.rows:
        return {}
    of_step = before.rows // training.rollouts.every_steps
    steps = max(1, most.rows // of_step)
    fewer = training.rollouts.model_copy(update={"every_steps": steps})
    if most.rows >= of_step:
        return {"rollouts": fewer}
    return {"rollouts": fewer, "batch_rows": max(1, training.batch_rows * most.rows // of_step)}


def moves_optimizer(fit: Fit) -> bool:
    """Whether the change puts masters and moments into main memory."""
    return fit.loads is not None and fit.loads[1].optimizer_placement == "main_memory"
