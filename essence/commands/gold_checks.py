"""Try golds on the host, if the problems of a benchmark and its grader are there before a run starts."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from essence.engines.requirement import Requirement, asked
from essence.engines.selected_run import Run
from essence.evaluation.benchmarks import read_problems
from essence.evaluation.golds import check_golds, golds_of
from essence.evaluation.graders_apart import is_installed
from essence.settings import DownloadSettings, GradeSettings


def require_readable_golds(selection: Run) -> None:
    """InputError that names every gold that its grader cannot read, of the benchmarks that are still to be graded.

    Elsewhere, in an image say, the generate stage tries them at its start.
    """
    for settings, folder in _at_hand(selection).values():
        _try_golds(settings, folder)


def gold_checks(selection: Run) -> Iterator[Requirement]:
    """The same as things that a run needs, one for each benchmark and grader."""
    for settings, folder in _at_hand(selection).values():
        name = f"golds of {settings.benchmark.name}"
        yield asked(name, partial(_try_golds, settings, folder), f"all can be read by {settings.grader}")


def _try_golds(settings: GradeSettings, folder: Path) -> None:
    golds = golds_of(settings.benchmark.name, read_problems(folder, settings.benchmark))
    check_golds(golds, {settings.grader: settings.timeout_s}, 1)


def _at_hand(selection: Run) -> dict[tuple[str, str], tuple[GradeSettings, Path]]:
    """(benchmark, grader) -> settings, and the folder of its problems."""
    found: dict[tuple[str, str], tuple[GradeSettings, Path]] = {}
    for stage in selection.left():
        if not isinstance(stage.settings, GradeSettings) or not is_installed(stage.settings.grader):
            continue
        folder = _problems(selection, stage.inputs["problems"])
        if folder is not None:
            found[stage.settings.benchmark.name, stage.settings.grader] = stage.settings, folder
    return found


def _problems(selection: Run, download: str) -> Path | None:
    """Where the problems are: as downloaded, or the local folder that they will be copied from."""
    folder = selection.run_directory.stage(download)
    if folder.done:
        return folder.output / "problems"
    settings = selection.plan.stages[download].settings
    if isinstance(settings, DownloadSettings) and settings.source.path and Path(settings.source.path).exists():
        return Path(settings.source.path)
    return None
