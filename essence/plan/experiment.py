"""Experiments as data: a TOML file to a list of cells, each with all of its settings.

    experiments/defaults.toml  <-  experiments/bespoke.toml  <-  command line (--lsp, --seed, ...)

`extends = "bespoke"` puts a file on top of another one, key by key. A cell is one student trained on one view of one
data set under one protocol with one seed; `cell_settings` turns it into the settings of its stages.
"""

import functools
import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from essence.errors import ExperimentError, nearest
from essence.paths import typed_path
from essence.plan.catalogue import (
    CATALOGUE_TABLES,
    Catalogue,
    anchor_paths,
    find_pin,
    merge_catalogues,
    read_catalogue,
    read_pins_file,
)
from essence.plan.on_policy import check_axes
from essence.plan.schema import AXES, OF_RESOURCES, OPTIONAL_AXES, ExperimentSchema, Matrix, TrainingSection
from essence.record.run_directory import is_reserved
from essence.settings import draws, is_whole, reads_answer, takes_proportion
from essence.settings.axes import CellAxes
from essence.settings.base import LONGEST_NAME
from essence.settings.protocol import PROTOCOLS
from essence.settings.toml import Layer, checked_name, read_toml, shown, validate

PROJECT = Path(__file__).resolve().parents[2]
EXPERIMENTS = PROJECT / "experiments"
DEFAULTS = "defaults"
NO_EXPERIMENTS = (DEFAULTS, "pins", "claims", "questions", "fingerprints")
"""Files of `experiments/` that hold other data."""
PIN_FILES = (EXPERIMENTS / "pins.toml", *sorted((EXPERIMENTS / "benchmarks").glob("*.toml")))
"""The catalogue: models and data sets, and a file for each benchmark."""


FULL = 1.0
LOWEST_OF_SCHEDULE = 0.5


class Cell(CellAxes):
    """One training of the matrix, and what its name is made of."""

    @property
    def pair(self) -> str:
        """`teacher_student`, as the matrix names it."""
        return f"{self.teacher}_{self.student}"

    @property
    def name(self) -> str:
        """`bespoke/qwen3-8b_qwen3-4b-base/lsp-0.50/p+cot+a/released/seed-42`."""
        part = "lsp" if self.span == "left" else self.span
        proportion = f"-{self.lsp:.2f}" if round(self.lsp, 2) == self.lsp else f"-{self.lsp!r}"
        rows = [f"rows-{self.train_rows}"] if self.train_rows else []
        rows += [f"tokens-{self.token_budget}"] if self.token_budget else []
        view = [part + (proportion if takes_proportion(self.span) else ""), self.sections]
        return "/".join([self.dataset, *rows, self.pair, *view, self.protocol, f"seed-{self.seed}"])


@dataclass(frozen=True)
class Experiment:
    """An experiment with the catalogue its names refer to."""

    name: str
    file: Path
    experiment: ExperimentSchema
    catalogue: Catalogue

    def cells(self) -> list[Cell]:
        return expand(self.experiment, self.catalogue.models, str(self.file))


def available() -> list[str]:
    """Names of the experiments that come with the kit."""
    return sorted(p.stem for p in EXPERIMENTS.glob("*.toml") if p.stem not in NO_EXPERIMENTS)


def find_file(name: str, beside: Path | None = None) -> Path:
    """An experiment by name or by path (`mine.toml`)."""
    if len(stem := Path(name).name.removesuffix(".toml")) > LONGEST_NAME:
        checked_name("experiment", stem, name[:LONGEST_NAME])
    if name.endswith(".toml"):
        path = typed_path("experiment", name, beside)
        if not path.is_file():
            raise ExperimentError(f"{path}: no such experiment file")
        return path
    known = available()
    if name not in (*known, DEFAULTS):
        raise ExperimentError(f"unknown experiment {shown(name)}{nearest(name, known)} (known: {', '.join(known)})")
    return EXPERIMENTS / f"{name}.toml"


def load(name: str, pins: Path | None = None) -> Experiment:
    """Read an experiment with all that it extends, and the catalogue it refers to."""
    file = find_file(name)
    check_experiment_name(file)
    own = _read_layers(file)
    entries = [(where, {key: tables[key] for key in CATALOGUE_TABLES if key in tables}) for where, tables in own]
    layers = [*map(read_pins_file, PIN_FILES), *entries]
    if pins is not None:
        layers.append(read_pins_file(pins))
    catalogue = read_catalogue(layers)
    _check_moved(own)
    merged = functools.reduce(merge_catalogues, (tables for _, tables in own))
    tables = {key: value for key, value in merged.items() if key not in CATALOGUE_TABLES}
    axes = tables.get("axes", {})
    blocks = tables.get("matrix", [])
    if isinstance(axes, dict) and isinstance(blocks, list):
        tables["matrix"] = [{**axes, **block} if isinstance(block, dict) else block for block in blocks]
    experiment = validate(ExperimentSchema, tables, str(file), own)
    loaded = Experiment(file.stem, file, experiment, catalogue)
    _check_names(loaded)
    _check_changes(loaded)
    _check_seeds(loaded)
    _check_processes(loaded)
    return loaded


def _check_moved(layers: Collection[Layer]) -> None:
    """ExperimentError for a key at its place of an earlier version, with its place now."""
    for where, tables in layers:
        training = tables.get("training")
        if isinstance(training, dict) and "activation_checkpointing" in training:
            raise ExperimentError(
                f"{where}: activation_checkpointing is in [resources] now, as it changes no result, not in [training]",
                'move it there, as "auto", "on" or "off", or leave it out: "auto" recomputes where memory asks for it',
            )


def check_experiment_name(file: Path) -> None:
    """ExperimentError for a file whose name cannot be that of a folder of its own in a run directory."""
    name = checked_name("experiment", file.stem, str(file))
    if is_reserved(name):
        raise ExperimentError(
            f"{file}: a run directory uses the name '{name}' for itself, so no experiment may have it",
            "rename the file",
        )


def _read_layers(file: Path, seen: tuple[Path, ...] = ()) -> list[Layer]:
    """(where, tables) of the file and of all that it extends, the lowest first."""
    if file in seen:
        raise ExperimentError(f"{file}: extends itself through {', '.join(p.name for p in seen)}")
    tables = anchor_paths(read_toml(file), file)
    if file == EXPERIMENTS / f"{DEFAULTS}.toml":
        fingerprints = EXPERIMENTS / "fingerprints.toml"
        return [(str(fingerprints), read_toml(fingerprints)), (str(file), tables)]
    return [*_read_layers(_extended(tables, file), (*seen, file)), (str(file), tables)]


def _extended(tables: Mapping[str, object], file: Path) -> Path:
    """The file that another one extends; ExperimentError names the one that says so."""
    name = tables.get("extends", DEFAULTS)
    try:
        if not isinstance(name, str):
            raise ExperimentError("must be the name of an experiment or the path of a TOML file, in quotes")
        return find_file(name, file.parent)
    except ExperimentError as error:
        raise ExperimentError(f"{file}: extends = {shown(name)}: {error}") from None


def _check_names(loaded: Experiment) -> None:
    """Every name in the matrix and the evaluation is in the catalogue, every data set has its rows section."""
    where = str(loaded.file)
    for block in loaded.experiment.matrix:
        for dataset in block.dataset:
            find_pin(loaded.catalogue.datasets, dataset, "dataset", where)
            if dataset not in loaded.experiment.data:
                raise ExperimentError(f"{where}: data set '{dataset}' has no section [data.{dataset}]")
        for pair in block.pair:
            for model in split_pair(pair, loaded.catalogue.models, where):
                find_pin(loaded.catalogue.models, model, "model", where)
    for benchmark in (*loaded.experiment.evaluation.benchmarks, *loaded.experiment.decontamination.benchmarks):
        find_pin(loaded.catalogue.benchmarks, benchmark, "benchmark", where)


def _check_changes(loaded: Experiment) -> None:
    """What is changed for one pair or model: a pair of the catalogue, settings that go together, GPUs that divide."""
    experiment, where, models = loaded.experiment, str(loaded.file), loaded.catalogue.models
    training = experiment.training.model_dump()
    for pair, section in experiment.by_pair.items():
        for model in split_pair(pair, models, where):
            find_pin(models, model, "model", where)
        changes = section.model_dump(exclude_none=True, exclude=OF_RESOURCES)
        validate(TrainingSection, {**training, **changes}, f"{where}: [by_pair.{pair}] in [training]")
    gpus = experiment.resources.gpus
    for model, changed in experiment.by_model.items():
        find_pin(models, model, "model", where)
        if gpus % changed.tensor_parallel:
            raise ExperimentError(
                f"{where}: [by_model.{model}] tensor_parallel = {changed.tensor_parallel} does not divide [resources] "
                f"gpus = {gpus}",
                "choose a divisor, or change gpus",
            )


def _check_seeds(loaded: Experiment) -> None:
    """Seeds of one arm are trainings that differ: by their rows, the order of these, or their adapters."""
    experiment, where = loaded.experiment, str(loaded.file)
    if experiment.training.lora.rank:
        return  # adapters start at random
    arms: dict[Cell, set[int]] = {}
    models = loaded.catalogue.models
    for cell in (
        cell for block in experiment.matrix for cell in _expand_block(block, experiment.training, models, where)
    ):
        arms.setdefault(cell.model_copy(update={"seed": 0}), set()).add(cell.seed)
    for arm, seeds in arms.items():
        rule = experiment.data[arm.dataset].split_seed
        if len(seeds) > 1 and not draws(arm.span) and "cell" not in (rule, PROTOCOLS[arm.protocol].order_seed):
            raise ExperimentError(
                f"{where}: seed = {sorted(seeds)} gives {len(seeds)} times the same training: [data.{arm.dataset}] has "
                f"split_seed = {rule}, and nothing but the rows is random under protocol {arm.protocol}",
                'let them differ with split_seed = "cell" there and seed = "cell" in [evaluation]',
            )


def _check_processes(loaded: Experiment) -> None:
    """Every process of a training has a GPU of its own, where GPUs are asked for, and machines have as many of them."""
    processes, resources = loaded.experiment.training.processes, loaded.experiment.resources
    gpus = resources.gpus * resources.nodes
    if gpus and processes > gpus:
        raise ExperimentError(
            f"{loaded.file}: processes = {processes} in [training] need as many GPUs, but [resources] has gpus = "
            f"{resources.gpus} on nodes = {resources.nodes}",
            "lower processes, or raise gpus",
        )
    if processes % resources.nodes:
        raise ExperimentError(
            f"{loaded.file}: processes = {processes} in [training] cannot be shared out evenly to nodes = "
            f"{resources.nodes} in [resources]",
            "let it be a multiple",
        )


def split_pair(pair: str, models: Collection[str], where: str) -> tuple[str, str]:
    """`teacher_student` to (teacher, student), whose names may have underscores, too: both are names of `models`."""
    words = pair.split("_")
    halves = [("_".join(words[:place]), "_".join(words[place:])) for place in range(1, len(words))]
    whole = [(teacher, student) for teacher, student in halves if teacher and student]
    if not whole:
        raise ExperimentError(f"{where}: pair = '{pair}': must read teacher_student, as in qwen3-8b_qwen3-4b-base")
    known = [names for names in whole if set(names) <= set(models)]
    if len(known) > 1:
        meant = " or ".join(f"'{teacher}' and '{student}'" for teacher, student in known)
        raise ExperimentError(f"{where}: pair = '{pair}' may mean {meant}: give one of these models another name")
    # Of a name that is not known, say which: where one half is, the other is meant.
    return (known or [names for names in whole if set(names) & set(models)] or whole)[0]


def expand(experiment: ExperimentSchema, models: Collection[str], where: str) -> list[Cell]:
    """The cells of all blocks in order; an empty matrix or two equal cells are errors."""
    blocks = experiment.matrix
    cells = [cell for block in blocks for cell in _expand_block(block, experiment.training, models, where)]
    if not cells:
        raise _empty(blocks, where)
    seen: set[str] = set()
    for name in (cell.name for block in blocks for cell in _product(block, models, where)):
        if name in seen:
            raise ExperimentError(f"{where}: the matrix names the cell {name} twice")
        seen.add(name)
    return list({cell.name: cell for cell in cells}.values())


def _expand_block(block: Matrix, training: TrainingSection, models: Collection[str], where: str) -> list[Cell]:
    """The cells of a block; one that sees whole rows under whatever span is the cell of the whole rows, once."""
    cells = _product(block, models, where)
    for cell in cells:
        _check_cell(cell, training, where)
    return list({cell.name: cell for cell in map(as_whole_rows, cells)}.values())


def as_whole_rows(cell: Cell) -> Cell:
    """The cell of the whole rows where this one sees them under whatever span; else itself."""
    return cell.model_copy(update={"span": "left"}) if is_whole(cell.lsp, cell.span) else cell


def _empty(blocks: list[Matrix], where: str) -> ExperimentError:
    empty = next(axis for axis in AXES if axis not in OPTIONAL_AXES and not all(getattr(b, axis) for b in blocks))
    return ExperimentError(f"{where}: the matrix is empty: axis '{empty}' has no values")


def _product(block: Matrix, models: Collection[str], where: str) -> list[Cell]:
    axes = [getattr(block, axis) for axis in AXES if axis not in OPTIONAL_AXES]
    rows: list[int | None] = list(block.train_rows) or [None]
    budgets: list[int | None] = list(block.token_budget) or [None]
    names = [axis for axis in AXES if axis not in OPTIONAL_AXES]
    cells = []
    for train_rows, budget in itertools.product(rows, budgets):
        for values in itertools.product(*axes):
            told = dict(zip(names, values, strict=True))
            teacher, student = split_pair(told.pop("pair"), models, where)
            cells.append(Cell(teacher=teacher, student=student, train_rows=train_rows, token_budget=budget, **told))
    return cells


def _check_cell(cell: Cell, training: TrainingSection, where: str) -> None:
    """ExperimentError for a cell that contradicts itself or the training."""
    _check_view(cell, where)
    if is_whole(cell.lsp, cell.span):
        return
    if cell.span == "schedule" and training.batch_tokens:
        raise ExperimentError(
            f"{where}: batch_tokens = {training.batch_tokens} in [training] chooses the rows of a step by their "
            "tokens, and span 'schedule' lets a row have as many tokens as its step says",
            "leave one of them out",
        )
    if cell.span == "teacher-entropy" and (training.teacher != "cached" or training.kd_weight == 0.0):
        found = "kd_weight = 0.0" if training.kd_weight == 0.0 else f"teacher = '{training.teacher}'"
        raise ExperimentError(
            f"{where}: span 'teacher-entropy' chooses labels by what a teacher has stored of every row, but {found} in "
            "[training] stores nothing",
            "set teacher = 'cached' and a kd_weight above 0 there, or choose another span",
        )


def _check_view(cell: Cell, where: str) -> None:
    """ExperimentError for a span that its proportion, its sections or its budget contradict."""
    check_axes(cell, cell.name, where)
    if cell.sections == "a" and not reads_answer(cell.span):
        raise ExperimentError(
            f"{where}: the cell {cell.name} would supervise nothing: span '{cell.span}' never reads the answer, so "
            "give it other sections than 'a'"
        )
    if cell.lsp != FULL and not takes_proportion(cell.span):
        raise ExperimentError(
            f"{where}: span '{cell.span}' takes no proportion of a row, so lsp = {cell.lsp:g} says nothing about it",
            "give it lsp = [1.0] in a block of its own",
        )
    if cell.span == "schedule" and cell.lsp < LOWEST_OF_SCHEDULE:
        raise ExperimentError(
            f"{where}: span 'schedule' grows to whole rows, so it reads at least half of the tokens, and those of "
            f"lsp = {cell.lsp:g} do not add up",
            "raise lsp to 0.5 or above; 0.625 grows from 0.25",
        )
    if cell.span == "schedule" and cell.token_budget:
        raise ExperimentError(
            f"{where}: span 'schedule' reads another part of a row in every epoch, so token_budget = "
            f"{cell.token_budget} names no rows",
            "leave token_budget out: all its readings together have as many tokens as span 'left' at the same lsp",
        )


class Chosen(NamedTuple):
    """The cells that a command line asks for."""

    cells: list[Cell]
    left_out: list[str]
    """Why cells of the changed matrix are none: a sentence for each contradiction."""


def choose(loaded: Experiment, wanted: Mapping[str, float | str]) -> Chosen:
    """The cells that the command line asks for: axis -> value.

    A value that the matrix has picks its cells; one that it does not have takes the place of the axis, so that
    `--lsp 0.35` runs a cell beside the published ones. A cell that this makes contradict itself is left out (a span
    that takes no proportion has none at 0.35). ExperimentError where no cell is left.
    """
    blocks, models, where = loaded.experiment.matrix, loaded.catalogue.models, str(loaded.file)
    for axis, value in wanted.items():
        having = [block for block in blocks if value in getattr(block, axis)]
        tables = [{**block.model_dump(), axis: [value]} for block in having or blocks]
        blocks = [validate(Matrix, table, f"--{axis}") for table in tables]
    changed = Experiment(
        loaded.name, loaded.file, loaded.experiment.model_copy(update={"matrix": blocks}), loaded.catalogue
    )
    _check_names(changed)
    found: dict[str, Cell] = {}
    refused: dict[str, ExperimentError] = {}
    for cell in (cell for block in blocks for cell in _product(block, models, where)):
        try:
            _check_cell(cell, loaded.experiment.training, where)
        except ExperimentError as error:
            refused.setdefault(error.problem, error)
        else:
            kept = as_whole_rows(cell)
            found.setdefault(kept.name, kept)
    if not found:
        raise next(iter(refused.values())) if refused else _empty(blocks, where)
    return Chosen(list(found.values()), list(refused))
