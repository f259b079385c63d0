"""`--gpus N`: another number of GPUs for a stage than the experiment's file says, without a file of one's own.

The effective batch stays what the protocol says: steps have the same rows, and fewer processes read more of them each.
The number of processes is a setting of a training, so such a training has a key of its own; results agree up to
rounding.
"""

from dataclasses import replace

from essence.errors import ExperimentError
from essence.plan.experiment import Experiment
from essence.plan.schema import ModelSection, PairSection
from essence.settings import Parallel, TeacherPlacement

MOST_GPUS = 1024


def with_gpus(loaded: Experiment, gpus: int | None) -> Experiment:
    """The experiment with so many GPUs a stage, and as many processes a training; as it is for None.

    One process trains alone, and its teacher is whole; where one process trained, several do under ZeRO-2.

    Raises:
        ExperimentError: no such number, or the experiment asks for no GPU.
    """
    if gpus is None:
        return loaded
    experiment = loaded.experiment
    if not 1 <= gpus <= MOST_GPUS:
        raise ExperimentError(f"--gpus {gpus}: must be an integer of 1 to {MOST_GPUS}, the GPUs of one stage")
    if not experiment.resources.gpus:
        raise ExperimentError(f"--gpus {gpus}: {loaded.name} asks for no GPU", "leave --gpus out")
    processes = gpus * experiment.resources.nodes
    training, resources = experiment.training, experiment.resources
    trained = {
        "processes": processes,
        "parallel": backend_of(training.parallel, processes),
        "teacher_placement": _placement(training.teacher_placement, processes),
    }
    held = {"gpus": gpus, "tensor_parallel": _width(resources.tensor_parallel, gpus)}
    changes = {
        "training": training.model_copy(update=trained),
        "resources": resources.model_copy(update=held),
        "by_pair": {name: _pair(section, processes) for name, section in experiment.by_pair.items()},
        "by_model": {name: _model(section, gpus) for name, section in experiment.by_model.items()},
    }
    return replace(loaded, experiment=experiment.model_copy(update=changes))


def backend_of(backend: Parallel, processes: int) -> Parallel:
    """The backend of so many processes that is nearest to another number's."""
    if processes == 1:
        return "single"
    return "zero2" if backend == "single" else backend


def _placement(placement: TeacherPlacement, processes: int) -> TeacherPlacement:
    return "replicated" if processes == 1 and placement == "sharded" else placement


def _width(tensor_parallel: int, gpus: int) -> int:
    """GPUs of one copy: as many as were asked for, where that many divide what there is."""
    return max(width for width in range(1, min(tensor_parallel, gpus) + 1) if gpus % width == 0)


def _pair(section: PairSection, processes: int) -> PairSection:
    changes = {
        "parallel": section.parallel and backend_of(section.parallel, processes),
        "teacher_placement": section.teacher_placement and _placement(section.teacher_placement, processes),
    }
    return section.model_copy(update=changes)


def _model(section: ModelSection, gpus: int) -> ModelSection:
    return section.model_copy(update={"tensor_parallel": _width(section.tensor_parallel, gpus)})
