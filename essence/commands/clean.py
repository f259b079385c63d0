"""`invoke clean`: remove stages that no experiment needs, or one experiment with the stages that only it needs."""

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Console

from essence.engines.slurm import queue
from essence.engines.slurm.jobs import has_jobs, stage_jobs
from essence.errors import HeldError, RecordError, SchedulerError, disk_error
from essence.files import GIB
from essence.record.live_records import read_spec
from essence.record.removal import (
    OF_AN_EXPERIMENT,
    REMOVING,
    Removable,
    kept_by_others,
    leftovers,
    removable,
    unused_compilations,
)
from essence.record.run_directory import RunDirectory, StageFolder, describe_holder, hold, holder_alive

COMMAND = "invoke clean"


def clean(
    run_directory: RunDirectory, experiment: str | None, confirmed: bool, console: Console, earlier: bool = False
) -> int:
    """Remove stale stages, or an experiment; without `confirmed` only say what would go, and why.

    earlier: finished stages of earlier code too.
    """
    found = removable(run_directory, experiment, earlier)
    left = dict.fromkeys(leftovers(run_directory), "left by a removal that was stopped")
    left |= dict.fromkeys(unused_compilations(run_directory), "compiled in an environment that no stage here has")
    folders = [*found.stages, *([found.experiment] if found.experiment else [])]
    for folder in folders:
        if holder_alive(folder):
            raise HeldError(f"{folder} is held by {describe_holder(folder)}", "stop it first")
    _check_no_jobs(run_directory, list(found.stages))
    size = sum(_size(folder) for folder in [*folders, *left])
    for line in _lines(found, left):
        console.print(("removing " if confirmed else "would remove ") + line, highlight=False, soft_wrap=True)
    if found.shared:
        console.print(f"{len(found.shared)} stages stay, other plans or reports name them", highlight=False)
    if found.earlier:
        stay = f"{len(found.earlier)} stage{'s' if len(found.earlier) > 1 else ''} finished under earlier code"
        console.print(f"{stay} stay; to remove them too, add --earlier", highlight=False)
    if not (folders or left):
        console.print(f"{run_directory.root}: nothing to remove")
    elif not confirmed:
        count = len(folders) + len(left)
        console.print(f"{count} folders, {size / GIB:.3f} GiB; to remove them, add --yes", highlight=False)
    else:
        _remove_all(run_directory, experiment, found, left, console)
    return 0


def _lines(found: Removable, left: Mapping[Path, str]) -> Iterator[str]:
    for folder, why in found.stages.items():
        yield f"{folder}: {_title(folder)}{why}{_of_link(folder)}"
    if found.experiment:
        yield f"{found.experiment}: plan, settings, report and cards{_of_link(found.experiment)}"
    for folder, why in left.items():
        yield f"{folder}: {why}"


def _title(folder: Path) -> str:
    with contextlib.suppress(RecordError):
        if title := read_spec(folder / "spec.json").title:
            return f"{title}; "
    return ""


def _of_link(folder: Path) -> str:
    return " (a link: what it leads to stays)" if folder.is_symlink() else ""


def _size(folder: Path) -> int:
    if folder.is_symlink():
        return 0
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _remove_all(
    run_directory: RunDirectory, experiment: str | None, found: Removable, left: Mapping[Path, str], console: Console
) -> None:
    """One folder after the other; a kill in between is made good by the same command."""
    try:
        with contextlib.ExitStack() as held:
            # No jobs are queued meanwhile, and no one else cleans here.
            held.enter_context(hold(run_directory.queueing, f"run directory {run_directory.root}", COMMAND))
            if found.experiment and not found.experiment.is_symlink():
                held.enter_context(hold(found.experiment, str(found.experiment), COMMAND))
            for folder in left:
                _remove(folder)
            for folder in found.stages:
                _remove_stage(run_directory, experiment, folder)
            if found.experiment:
                _remove_experiment(found.experiment, console)
    except OSError as error:
        raise disk_error(error, run_directory.root) or error from None


def _remove_stage(run_directory: RunDirectory, experiment: str | None, folder: Path) -> None:
    """Under its lock, and only when nothing that was started in the meantime names it."""
    if folder.is_symlink():
        folder.unlink()
        return
    if not folder.exists():
        return
    with hold(folder, str(folder), COMMAND):
        if folder.name in kept_by_others(run_directory, experiment):
            return
        going = folder.rename(folder.with_name(f"{REMOVING}{folder.name}"))
    _remove(going)


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path)


def _remove_experiment(folder: Path, console: Console) -> None:
    """What the kit wrote there; files of anybody else stay, and are named."""
    if folder.is_symlink():
        folder.unlink()
        return
    for path in [path for pattern in OF_AN_EXPERIMENT for path in folder.glob(pattern)]:
        _remove(path)
    if others := sorted(path.name for path in folder.iterdir()):
        console.print(f"{folder} stays: not of this kit are {', '.join(others)}", highlight=False, soft_wrap=True)
    else:
        folder.rmdir()


def _check_no_jobs(run_directory: RunDirectory, folders: list[Path]) -> None:
    """HeldError when jobs of a scheduler work in these folders or wait to, or when no one says that they do not."""
    stages = {path.name: StageFolder(path) for path in folders if path.parent == run_directory.stages}
    left = {identifier: stage for identifier, stage in stages.items() if not stage.done}
    if not has_jobs(left.values()):
        return
    jobs_queued, silent = None, ""
    try:
        jobs_queued = queue.queue()
    except SchedulerError as error:
        silent = f" as far as is known here ({error})"
    jobs = stage_jobs(left, jobs_queued)
    # What Slurm has forgotten has ended; where none answers, what was not seen to end may still be there.
    live = sorted(job.state.job for job in jobs.values() if not job.state.ended and job.cause != "unknown")
    if live:
        raise HeldError(
            f"jobs {', '.join(live)} are queued or running{silent}", f"cancel them first: scancel {' '.join(live)}"
        )
