"""`invoke clean`: what no experiment needs any more, or one experiment with what only it needs."""

import shutil
from pathlib import Path

from rich.console import Console

from essence.atomic import read_json
from essence.engines import scheduler
from essence.engines.stage_jobs import has_jobs, stage_jobs
from essence.errors import HeldError, RecordError, SchedulerError
from essence.store import RunDirectory, StageFolder, describe_holder, holder_alive

GIB = 1 << 30


def clean(run_directory: RunDirectory, experiment: str | None, confirmed: bool, console: Console) -> int:
    """Remove stale stages, or an experiment; without `confirmed` only say what would go."""
    folders = removable(run_directory, experiment)
    for folder in folders:
        if holder_alive(folder):
            raise HeldError(f"{folder} is held by {describe_holder(folder)}; stop it first")
    _check_no_jobs(run_directory, folders)
    size = sum(p.stat().st_size for folder in folders for p in folder.rglob("*") if p.is_file())
    for folder in folders:
        console.print(("removing " if confirmed else "would remove ") + str(folder), highlight=False, soft_wrap=True)
        if confirmed:
            shutil.rmtree(folder)
    what = f"{len(folders)} folders, {size / GIB:.3f} GiB"
    if not folders:
        console.print(f"{run_directory.root}: nothing to remove")
    elif not confirmed:
        console.print(f"{what}; to remove them, add --yes", highlight=False)
    return 0


def _check_no_jobs(run_directory: RunDirectory, folders: list[Path]) -> None:
    """HeldError when jobs of a scheduler work in these folders or wait to, or when nobody says that they do not."""
    stages = {path.name: StageFolder(path) for path in folders if path.parent == run_directory.stages}
    left = {identifier: stage for identifier, stage in stages.items() if not stage.done}
    if not has_jobs(left.values()):
        return
    queue, silent = None, ""
    try:
        queue = scheduler.queue()
    except SchedulerError as error:
        silent = f" as far as is known here ({error})"
    jobs = stage_jobs(left, queue)
    # What Slurm has forgotten has ended; where none answers, what was not seen to end may still be there.
    live = sorted(job.state.job for job in jobs.values() if not job.state.ended and job.cause != "unknown")
    if live:
        raise HeldError(
            f"jobs {', '.join(live)} are queued or running{silent}; cancel them first: scancel {' '.join(live)}"
        )


def removable(run_directory: RunDirectory, experiment: str | None) -> list[Path]:
    """Stages that no remaining plan names; with an experiment, its folder too."""
    experiments = run_directory.experiments()
    if experiment is not None and experiment not in experiments:
        ran = ", ".join(experiments) or "none"
        raise RecordError(f"{experiment} has not run in {run_directory.root} (ran: {ran})")
    kept = {
        stage for name in experiments if name != experiment for stage in read_json(run_directory.plan(name))["stages"]
    }
    if experiment is not None:
        own = set(read_json(run_directory.plan(experiment))["stages"]) - kept
        stages = [p for p in sorted(run_directory.stages.glob("*-*")) if p.name in own]
        return [*stages, run_directory.experiment(experiment)]
    return [p for p in sorted(run_directory.stages.glob("*-*")) if p.is_dir() and p.name not in kept]
