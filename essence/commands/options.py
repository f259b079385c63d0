"""From the options of a command line to cells and stages."""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

from essence.engines import ENGINES, FLAVOURS, make_engine
from essence.engines.choice import choose as choose_engine
from essence.engines.choice import site_of
from essence.engines.selected_run import Options, Run, flavour_of
from essence.errors import ExperimentError, RecordError, nearest
from essence.paths import check_folder, typed_path
from essence.plan.experiment import PROJECT, Cell, available, choose, load
from essence.plan.gpu_count import with_gpus
from essence.plan.stage_plan import ONLY, Plan, make_plan
from essence.record.live_records import LastRun, ResolvedFile, look_at
from essence.record.local_sources import LocalSources
from essence.record.plan_record import plan_of
from essence.record.run_directory import EVALUATION, RunDirectory

DEFAULT_EXPERIMENT = "bespoke"


def run_directory(runs: str | None) -> RunDirectory:
    """The run directory: `--runs`, or `runs/` beside the experiments."""
    path = typed_path("--runs", runs) if runs is not None else PROJECT / "runs"
    check_folder(path / "stages", "--runs")
    return RunDirectory(path)


def to_plan(given: Mapping[str, Any]) -> Options:
    """The options of a task that plans or runs, from its arguments; where no experiment was typed, the one meant."""
    words = Options(**{field.name: given[field.name] for field in fields(Options) if field.name in given})
    if words.experiment is not None:
        return words
    name, why = _meant(root := run_directory(words.runs))
    if name is None:
        return words
    _say_meant(name, why)
    return replace(words, experiment=_loadable(root, name))


def recorded(runs: str | None, experiment: str | None) -> tuple[RunDirectory, str]:
    """The run directory, and the experiment in it that was typed or is meant."""
    root = run_directory(runs)
    if experiment is not None:
        return root, experiment
    name, why = _meant(root)
    if name is not None:
        _say_meant(name, why)
    return root, name or DEFAULT_EXPERIMENT


def _meant(root: RunDirectory) -> tuple[str | None, str]:
    """The experiment that a command without --experiment means, and why; None where the run directory has none.

    Of a single model that was evaluated only where there is nothing else.
    """
    here = root.experiments()
    here = [name for name in here if not name.startswith(EVALUATION)] or here
    if len(here) == 1:
        return here[0], f"the only one in {root.root}"
    last = look_at(root.last_run, LastRun)
    return (last.experiment, f"the last one run in {root.root}") if last and last.experiment in here else (None, "")


def _say_meant(name: str, why: str) -> None:
    sys.stderr.write(f"experiment {name}: {why}\n")


def _loadable(root: RunDirectory, name: str) -> str:
    """What names an experiment of a run directory to the planner: its name, or the file that it was read from."""
    if name in available():
        return name
    resolved = look_at(root.resolved(name), ResolvedFile)
    return resolved.file.path if resolved else name


def select(words: Options, baselines: bool) -> Run:
    """Load the experiment and plan the cells that the words ask for."""
    check_word("--engine", "engine", words.engine, ENGINES)
    check_word("--flavour", "flavour", words.flavour, FLAVOURS)
    check_word("--only", "stage", words.only, ONLY)
    loaded = load(words.experiment or DEFAULT_EXPERIMENT, typed_path("--pins", words.pins) if words.pins else None)
    loaded = with_gpus(loaded, words.gpus)
    axes = words.axes()
    cells, left_out = choose(loaded, axes) if axes else (loaded.cells(), [])
    for sentence in left_out:
        sys.stderr.write(f"left out: {sentence}\n")
    gpus, fetches = loaded.experiment.resources.gpus > 0, words.only == "download"
    chosen = choose_engine(words.engine, gpus, ENGINES, fetches)
    engine = make_engine(chosen.name, flavour_of(words, loaded), site_of(words.site, chosen.name), words.of_the_site())
    root = run_directory(words.runs)
    local = LocalSources(root)
    plan = make_plan(loaded, cells, engine.environment, baselines, local, words.accept_earlier)
    return Run(words, engine, root, loaded, plan, plan.wanted(words.only), local, chosen.reason)


def check_word(option: str, what: str, word: str | None, known: Iterable[str]) -> None:
    """ExperimentError for a word that is not known, with the nearest one that is."""
    if word is not None and word not in known:
        raise ExperimentError(f"{option} {word}: unknown {what}{nearest(word, known)} (known: {', '.join(known)})")


def whole_plan(selection: Run) -> Plan:
    """The plan that is written down: the whole matrix, the chosen cells, and cells chosen in earlier runs."""
    cells = {cell.name: cell for cell in selection.loaded.cells()}
    cells.update({plan.cell.name: plan.cell for plan in selection.plan.cells})
    for cell in _earlier_cells(selection):
        cells.setdefault(cell.name, cell)
    environment, accept_earlier = selection.engine.environment, selection.words.accept_earlier
    return make_plan(selection.loaded, list(cells.values()), environment, True, selection.local, accept_earlier)


def _earlier_cells(selection: Run) -> list[Cell]:
    try:
        plan = plan_of(selection.run_directory, selection.name)
    except RecordError:
        return []
    cells = [Cell.model_validate(cell.axes()) for cell in plan.cells]
    known = selection.loaded.experiment.data.keys()
    return [cell for cell in cells if cell.dataset in known]
