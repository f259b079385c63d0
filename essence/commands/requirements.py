"""What a run needs against what this machine has; said before anything is started."""

from essence.commands.selection import Selection
from essence.errors import MachineError
from essence.estimate import download_gib, estimate
from essence.machine import this_machine


def check_machine(selection: Selection) -> None:
    """MachineError naming what is missing for the stages that are left, and what can be run instead."""
    left = selection.left()
    if not left:
        return
    resources = selection.loaded.experiment.resources
    machine = this_machine(selection.run_directory.root)
    lacks: list[str] = []
    if any(stage.resources.gpus for stage in left) and len(machine.gpus) < resources.gpus:
        lacks.append(f"{resources.gpus} GPUs of {resources.gpu_memory_gib:.0f} GiB (here: {machine.describe()})")
    elif any(stage.resources.gpus for stage in left) and machine.gpu_memory_gib < resources.gpu_memory_gib * 0.95:
        lacks.append(f"{resources.gpu_memory_gib:.0f} GiB on each GPU (here: {machine.gpu_memory_gib:.0f} GiB)")
    disk = disk_gib(selection)
    if disk > machine.disk_gib:
        lacks.append(f"about {disk:.0f} GiB of disk (free in {selection.run_directory.root}: {machine.disk_gib:.0f})")
    if lacks:
        raise MachineError(
            f"{selection.name} needs {' and '.join(lacks)}; the same matrix in miniature runs here: "
            f"make reproduce-tiny; what this one takes: invoke plan --experiment {selection.name}"
        )


def disk_gib(selection: Selection) -> float:
    """Disk that what is left is estimated to take: models saved and downloaded, scratch of what runs at once."""
    left = {stage.id for stage in selection.left()}
    cells = [plan for plan in selection.plan.cells if plan.stages["train"] in left]
    costs = [estimate(plan, selection.loaded, selection.run_directory) for plan in cells]
    scratch = max((cost.scratch_gib or 0.0 for cost in costs), default=0.0)
    at_once = min(len(cells), selection.loaded.experiment.resources.parallel_stages)
    downloads = download_gib(cells, selection.loaded, selection.run_directory)
    return sum(cost.disk_gib or 0.0 for cost in costs) + scratch * at_once + downloads
