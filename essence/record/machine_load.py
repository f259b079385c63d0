"""How much of a machine a stage had: what stands beside every measured time, so that a busy machine is seen."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from essence.record.manifest import Cost

LOADS_DIFFER = 0.1
"""Two trainings whose wall time over processor time differs by a larger share did not run alike."""

WALL_OVER_CPU = "wall/CPU"
GPU_BUSY = "gpu_busy_share"
"""Where a record has it: `cost.more`."""


@dataclass(frozen=True)
class MachineLoad:
    """None where a record does not tell, or cannot: of several attempts only the last has its processor time."""

    wall_over_cpu: float | None = None
    """Wall time over processor time: it rises where other work took the processor, or the stage waited."""
    gpu_busy: float | None = None
    """Share of the time that its GPUs were busy, as the driver counts it."""

    @property
    def words(self) -> str:
        """`93 % GPU`, else `wall/CPU 1.02`; empty where nothing is known."""
        if self.gpu_busy is not None:
            return f"{100 * self.gpu_busy:.0f}\u00a0% GPU"
        return self.processor_words

    @property
    def processor_words(self) -> str:
        """`wall/CPU 1.02`, which `differs` goes by; empty where it is not known."""
        return f"{WALL_OVER_CPU} {self.wall_over_cpu:.2f}" if self.wall_over_cpu is not None else ""

    def beside(self, other: "MachineLoad") -> tuple[str, str]:
        """Words of both: of the processor where they differ in it, however busy their GPUs were."""
        if self.differs(other):
            return self.processor_words, other.processor_words
        return self.words, other.words

    def differs(self, other: "MachineLoad") -> bool:
        """Whether one of the two had less of the processor than the other; False where that is not known."""
        if not self.wall_over_cpu or not other.wall_over_cpu:
            return False
        return abs(other.wall_over_cpu / self.wall_over_cpu - 1.0) > LOADS_DIFFER


UNKNOWN_LOAD = MachineLoad()


def load_of(cost: Cost, attempts: int, gpu_busy: float | None) -> MachineLoad:
    """The load of a finished stage, from its cost and the number of its attempts."""
    known = attempts <= 1 and cost.wall_s and cost.cpu_s
    return MachineLoad(cost.wall_s / cost.cpu_s if known else None, gpu_busy)


def mean_load(loads: Sequence[MachineLoad]) -> MachineLoad:
    """Of trainings of one arm; of those that are known."""
    walls = [load.wall_over_cpu for load in loads if load.wall_over_cpu is not None]
    busy = [load.gpu_busy for load in loads if load.gpu_busy is not None]
    return MachineLoad(mean(walls) if walls else None, mean(busy) if busy else None)
