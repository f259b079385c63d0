"""Checks before a run writes anything: the folder belongs to the experiment, and no input was edited."""

import os
from pathlib import Path

from essence.engines.selected_run import Run
from essence.errors import ExperimentError
from essence.record.hash_cache import HashCache
from essence.record.input_checks import check_untouched
from essence.record.live_records import ResolvedExperiment, look_at


def check_beforehand(selection: Run) -> None:
    """ExperimentError where another file's experiment has this name here; InputError for an edited copy."""
    _check_same_experiment(selection)
    cache = HashCache()
    folders = [selection.run_directory.stage(identifier) for identifier in _built_on(selection)]
    check_untouched((folder for folder in folders if folder.done), cache.sha256)
    cache.save()


def whereabouts(selection: Run) -> dict[str, str]:
    """Where the experiment's file is, and from the run directory: both may be copied to another place together."""
    file, root = selection.loaded.file, selection.run_directory.root
    return {"path": str(file), "from_run_directory": Path(os.path.relpath(file, root.resolve())).as_posix()}


def _built_on(selection: Run) -> list[str]:
    """All that the stages that are left read, and what that was made of."""
    waiting = [identifier for stage in selection.left() for identifier in stage.inputs.values()]
    found: dict[str, None] = {}
    while waiting:
        if (identifier := waiting.pop()) not in found:
            found[identifier] = None
            waiting += selection.plan.stages[identifier].inputs.values()
    return list(found)


def _check_same_experiment(selection: Run) -> None:
    """An edited or a moved file is the same experiment; a second file beside it is another one.

    The name of an evaluation stands for its content, so two of one name are the same.
    """
    if selection.evaluated:
        return
    told = look_at(selection.run_directory.resolved(selection.name), ResolvedExperiment)
    if told is None or told.file is None:
        return
    before, now = told.file, whereabouts(selection)
    moved = before.path == now["path"] or before.from_run_directory == now["from_run_directory"]
    if moved or not Path(before.path).is_file():
        return
    loaded = selection.loaded
    catalogue = loaded.catalogue.model_dump(mode="json", exclude_none=True)
    if (told.experiment, told.catalogue) == (loaded.experiment.model_dump(mode="json"), catalogue):
        return
    raise ExperimentError(
        f"{loaded.file}: {selection.run_directory.root} holds the experiment '{selection.name}' of another file, "
        f"{before.path}",
        "rename one of the files, or name another run directory with --runs",
    )
