"""What the evaluations of untrained models cost, which are paid once for all cells."""

from typing import NamedTuple

from essence.plan.estimate import evaluation_gpu_hours
from essence.plan.measured_lengths import measured_lengths
from essence.plan.model_sizes import architecture
from essence.plan.newest_proof import speeds_for
from essence.plan.stage_plan import Plan
from essence.plan.times import Lengths
from essence.record.run_directory import RunDirectory


class BaselineHours(NamedTuple):
    """GPU hours of all untrained models together; 0 where sizes are not known."""

    expected: float
    """At the length that the experiment expects, or that their own finished evaluations measured."""
    cap: float


def baselines_gpu_hours(plan: Plan, run_directory: RunDirectory) -> BaselineHours:
    """Of a plan's baselines. How others' completions end says nothing of an untrained model's."""
    loaded, section = plan.loaded, plan.loaded.experiment.evaluation
    speeds = speeds_for(run_directory, loaded.experiment.resources.gpus)
    expected = cap = 0.0
    for one in plan.baselines:
        sizes = architecture(one.model, plan.stages[one.evaluations[0].generate].inputs["model"], loaded, run_directory)
        own = measured_lengths(one.evaluations, run_directory, section.max_new_tokens)
        lengths = own or Lengths.all_of(section.expected_tokens)
        most = Lengths.all_of(section.max_new_tokens)
        expected += evaluation_gpu_hours(one.evaluations, sizes, loaded, lengths, speeds, one.model) or 0.0
        cap += evaluation_gpu_hours(one.evaluations, sizes, loaded, most, speeds, one.model) or 0.0
    return BaselineHours(expected, cap)
