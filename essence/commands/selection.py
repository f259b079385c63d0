"""From the words of a command line to the cells and stages that are meant."""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from essence.atomic import read_json
from essence.engines import ENGINES, FLAVOURS, SLURM, STARTING
from essence.engines.contract import StartingEngine
from essence.errors import ExperimentError, RecordError, nearest
from essence.experiment import PROJECT, Cell, LoadedExperiment, choose, load
from essence.local_files import check_folder, typed_path
from essence.plan import ONLY, Plan, PlannedStage, make_plan
from essence.store import RunDirectory
from essence.taken_in import LocalSources

DEFAULT_EXPERIMENT = "bespoke"
NUMBERS: dict[str, type] = {"lsp": float, "seed": int}


@dataclass(frozen=True)
class Words:
    """What was typed; None = not given."""

    experiment: str | None = None
    lsp: str | None = None
    dataset: str | None = None
    pair: str | None = None
    span: str | None = None
    sections: str | None = None
    protocol: str | None = None
    seed: str | None = None
    only: str | None = None
    engine: str = "local"
    flavour: str | None = None
    pins: str | None = None
    runs: str | None = None
    site: str | None = None
    """The cluster, with `engine` slurm."""

    def axes(self) -> dict[str, Any]:
        """Axis -> value, numbers as numbers."""
        given = {
            axis: getattr(self, axis) for axis in ("dataset", "pair", "lsp", "span", "sections", "protocol", "seed")
        }
        return {axis: _number(axis, value) for axis, value in given.items() if value is not None}

    def typed(self, whole: bool, command: str = "run") -> str:
        """The command as it was typed, to be repeated in a message; or another one with the same words."""
        names = ["dataset", "pair", "lsp", "span", "sections", "protocol", "seed", "only", "pins", "runs"]
        start = ["invoke", "reproduce", str(self.experiment)] if whole else ["invoke", command]
        for name in names if whole else ["experiment", *names]:
            if (value := getattr(self, name)) is not None:
                start += [f"--{name}", value]
        if self.engine != "local":
            start += ["--engine", self.engine, *(["--flavour", self.flavour] if self.flavour else [])]
        if self.site:
            start += ["--site", self.site]
        return shlex.join(start)

    def fetching(self) -> str:
        """The command that brings in what the words need from a network; jobs have none, so it runs here."""
        words = replace(self, only=None, site=None)
        if words.engine == SLURM:
            words = replace(words, engine="local", flavour=None)
        return words.typed(whole=False, command="download")


def _number(axis: str, text: str) -> Any:
    if axis not in NUMBERS:
        return text
    try:
        value = NUMBERS[axis](text)
    except ValueError:
        value = None
    if axis == "lsp" and not (value is not None and 0.0 < value <= 1.0):
        raise ExperimentError(
            f"--lsp {text}: must be a number greater than 0 and at most 1, the share of tokens kept (half is 0.5)"
        )
    if value is None:
        raise ExperimentError(f"--{axis} {text}: must be an integer")
    return value


@dataclass(frozen=True)
class Selection:
    """The chosen cells with their plan, and where it runs."""

    words: Words
    engine: StartingEngine
    run_directory: RunDirectory
    loaded: LoadedExperiment
    plan: Plan
    wanted: list[PlannedStage]
    local: LocalSources
    evaluated: bool = False
    """Whether it is of `invoke evaluate`, whose model no other command knows of."""

    @property
    def name(self) -> str:
        return self.loaded.name

    @property
    def flavour(self) -> str:
        """Of the images, where there are any."""
        return _flavour(self.words, self.loaded)

    @property
    def contained(self) -> bool:
        """Whether stages run in images."""
        return self.words.engine != "local"

    def left(self) -> list[PlannedStage]:
        return [stage for stage in self.wanted if not self.run_directory.stage(stage.id).done]


def run_directory(runs: str | None) -> RunDirectory:
    """The run directory: `--runs`, or `runs/` beside the experiments."""
    path = typed_path("--runs", runs) if runs is not None else PROJECT / "runs"
    check_folder(path / "stages", "--runs")
    return RunDirectory(path)


def select(words: Words, baselines: bool) -> Selection:
    """Load the experiment and plan the cells that the words ask for."""
    check_word("--engine", "engine", words.engine, ENGINES)
    check_word("--flavour", "flavour", words.flavour, FLAVOURS)
    check_word("--only", "stage", words.only, ONLY)
    loaded = load(words.experiment or DEFAULT_EXPERIMENT, typed_path("--pins", words.pins) if words.pins else None)
    axes = words.axes()
    cells = choose(loaded, axes) if axes else loaded.cells()
    # The same image has the same identity under every container engine, and so have the stages that run in it.
    engine = STARTING["docker" if words.engine == SLURM else words.engine](_flavour(words, loaded))
    root = run_directory(words.runs)
    local = LocalSources(root)
    plan = make_plan(loaded, cells, engine.environment, baselines, local)
    return Selection(words, engine, root, loaded, plan, plan.wanted(words.only), local)


def _flavour(words: Words, loaded: LoadedExperiment) -> str:
    """What asks for no GPU runs in the images without CUDA."""
    return words.flavour or ("cuda" if loaded.experiment.resources.gpus else "cpu")


def check_word(option: str, what: str, word: str | None, known: Iterable[str]) -> None:
    """ExperimentError for a word that is not known, with the nearest one that is."""
    if word is not None and word not in known:
        raise ExperimentError(f"{option} {word}: unknown {what}{nearest(word, known)} (known: {', '.join(known)})")


def whole_plan(selection: Selection) -> Plan:
    """The plan that is written down: the whole matrix, the chosen cells, and cells chosen in earlier runs."""
    cells = {cell.name: cell for cell in selection.loaded.cells()}
    cells.update({plan.cell.name: plan.cell for plan in selection.plan.cells})
    for cell in _earlier_cells(selection):
        cells.setdefault(cell.name, cell)
    return make_plan(selection.loaded, list(cells.values()), selection.engine.environment, True, selection.local)


def _earlier_cells(selection: Selection) -> list[Cell]:
    try:
        plan = read_json(selection.run_directory.plan(selection.name))
    except RecordError:
        return []
    names = Cell.__dataclass_fields__
    cells = [Cell(**{name: entry[name] for name in names}) for entry in plan["cells"]]
    known = selection.loaded.experiment.data.keys()
    return [cell for cell in cells if cell.dataset in known]
