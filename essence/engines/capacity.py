"""What may run at the same time on this machine: GPUs that are each one stage's alone, main memory and cores shared.

Memory and cores are of the stages with GPUs. Those without (download, tokenise, grade) run beside them, as many as
`parallel_stages` says: a training does not wait because an earlier one is graded.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import psutil

from essence.engines.gpu_pool import GpuPool
from essence.engines.machine import usable_cores
from essence.engines.selected_run import Run
from essence.files import GIB
from essence.plan.fit import main_memory_of_trainings
from essence.plan.stage_plan import PlannedStage
from essence.settings import TrainSettings
from essence.settings.proving import ProveTrainingSettings


@dataclass(frozen=True)
class Capacity:
    """What may run at the same time."""

    parallel: int
    """Stages without GPUs."""
    gpus: GpuPool = field(default_factory=GpuPool)
    """Of stages with GPUs as many as find free ones here."""
    memory_gib: float = math.inf
    """Main memory of this machine, for those stages together."""
    estimated_gib: Mapping[str, float] = field(default_factory=dict)
    """Stage id -> main memory that it is expected to take, of stages that name no limit of their own."""
    cores: float = math.inf
    """That this run may use, for those stages together."""

    @classmethod
    def of_this_machine(cls, selection: Run) -> "Capacity":
        """What a run has here; a queue gives its jobs GPUs of other machines."""
        resources = selection.loaded.experiment.resources
        if selection.engine.queue or not resources.gpus:
            return cls(resources.parallel_stages)
        return cls(
            resources.parallel_stages,
            GpuPool.of_this_machine(selection.engine.gpus_in_use),
            psutil.virtual_memory().total / GIB,
            main_memory_of_trainings(selection.plan, selection.run_directory),
            usable_cores(),
        )

    def main_gib(self, stage: PlannedStage) -> float:
        """What a stage takes of the main memory; 0 = not known."""
        return stage.resources.memory_gib or self.estimated_gib.get(stage.id, 0.0)

    def have_room(self, stages: Collection[PlannedStage]) -> bool:
        """True when memory and cores suffice for these stages with GPUs together; one alone is never refused."""
        if len(stages) < 2:
            return True
        return sum(map(self.main_gib, stages)) <= self.memory_gib and sum(map(cores_of, stages)) <= self.cores

    def at_once(self, stages: Iterable[PlannedStage]) -> int:
        """How many of these stages run at once, without GPUs or with them, whichever are more.

        Of stages with GPUs those that take most count: the others may be more.
        """
        return max(self.parallel, min((self._like(stage)[0] for stage in stages if stage.resources.gpus), default=0))

    def remark(self, stages: Iterable[PlannedStage]) -> str:
        """Why GPUs stay free, where memory or cores allow fewer stages than GPUs do; empty where they do not."""
        for stage in stages:
            if not stage.resources.gpus:
                continue
            count, by_gpus = self._like(stage)
            if count < by_gpus:
                return self._why(stage, count, by_gpus)
        return ""

    def _like(self, stage: PlannedStage) -> tuple[int, int]:
        """How many stages like this one run at once, and how many the GPUs alone would allow."""
        by_gpus = self.gpus.stages_at_once(stage.resources.gpus)
        count = next((n for n in range(by_gpus, 1, -1) if self.have_room([stage] * n)), min(by_gpus, 1))
        return count, by_gpus

    def _why(self, stage: PlannedStage, count: int, by_gpus: int) -> str:
        cores, gib = cores_of(stage), self.main_gib(stage)
        told = []
        if by_gpus * cores > self.cores:
            told.append(f"{cores} of {self.cores:g} cores (lower threads in [resources] to run more)")
        if by_gpus * gib > self.memory_gib:
            told.append(f"{gib:.0f} of {self.memory_gib:.0f} GiB of main memory")
        free = f"{stage.stage}: {count} at a time, though there are GPUs for {by_gpus}"
        return f"{free}: each takes {' and '.join(told)}"


def cores_of(stage: PlannedStage) -> int:
    """What a stage takes of a machine's cores: `threads` for each process of a training, else once.

    The copies of a model that generate share the threads of their stage.
    """
    settings, threads = stage.settings, stage.resources.threads
    if isinstance(settings, TrainSettings):
        return threads * -(-settings.processes // stage.resources.nodes)
    if isinstance(settings, ProveTrainingSettings):  # of one machine, whatever the training takes
        return threads * -(-settings.processes // settings.machines)
    return threads
