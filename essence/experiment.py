"""Experiments as data: a TOML file to a list of cells, each with all of its settings.

    experiments/defaults.toml  <-  experiments/bespoke.toml  <-  command line (--lsp, --seed, ...)

`extends = "bespoke"` puts a file on top of another one, key by key. A cell is one student trained on one view of one
data set under one protocol with one seed; `cell_settings` turns it into the settings of its stages.
"""

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from essence.errors import ExperimentError, nearest
from essence.pins import (
    CATALOGUE_TABLES,
    Catalogue,
    anchor_paths,
    find_pin,
    merge_catalogues,
    read_catalogue,
    read_pins_file,
)
from essence.sections import AXES, OPTIONAL_AXES, Experiment, Matrix
from essence.settings import (
    ProtocolName,
    Sections,
    Span,
)
from essence.store import is_reserved
from essence.validation import LONGEST_NAME, checked_name, merge_tables, read_toml, validate

PROJECT = Path(__file__).resolve().parent.parent
EXPERIMENTS = PROJECT / "experiments"
NO_EXPERIMENTS = ("defaults", "pins", "claims", "fingerprints")
"""Files of `experiments/` that hold other data."""
PIN_FILES = (EXPERIMENTS / "pins.toml", *sorted((EXPERIMENTS / "benchmarks").glob("*.toml")))
"""The catalogue: models and data sets, and a file for each benchmark."""


@dataclass(frozen=True)
class Cell:
    """One training of the matrix, and what its name is made of."""

    dataset: str
    teacher: str
    student: str
    lsp: float
    span: Span
    sections: Sections
    protocol: ProtocolName
    seed: int
    train_rows: int | None
    token_budget: int | None

    @property
    def name(self) -> str:
        """`bespoke/qwen3-8b_qwen3-4b-base/lsp-0.50/p+cot+a/released/seed-42`."""
        part = "lsp" if self.span == "left" else self.span
        proportion = f"{self.lsp:.2f}" if round(self.lsp, 2) == self.lsp else repr(self.lsp)
        rows = [f"rows-{self.train_rows}"] if self.train_rows else []
        rows += [f"tokens-{self.token_budget}"] if self.token_budget else []
        pair = f"{self.teacher}_{self.student}"
        view = [f"{part}-{proportion}", self.sections]
        return "/".join([self.dataset, *rows, pair, *view, self.protocol, f"seed-{self.seed}"])


@dataclass(frozen=True)
class LoadedExperiment:
    """An experiment with the catalogue its names refer to."""

    name: str
    file: Path
    experiment: Experiment
    catalogue: Catalogue

    def cells(self) -> list[Cell]:
        return expand(self.experiment.matrix, str(self.file))


def available() -> list[str]:
    """Names of the experiments that come with the kit."""
    return sorted(p.stem for p in EXPERIMENTS.glob("*.toml") if p.stem not in NO_EXPERIMENTS)


def find_file(name: str, beside: Path | None = None) -> Path:
    """An experiment by name or by path (`mine.toml`)."""
    if len(stem := Path(name).name.removesuffix(".toml")) > LONGEST_NAME:
        checked_name("experiment", stem, name[:LONGEST_NAME])
    if name.endswith(".toml"):
        path = (beside or Path()) / Path(name).expanduser()
        if not path.is_file():
            raise ExperimentError(f"{path}: no such experiment file")
        return path.resolve()
    path = EXPERIMENTS / f"{name}.toml"
    if not path.is_file():
        known = available()
        raise ExperimentError(f"unknown experiment '{name}'{nearest(name, known)} (known: {', '.join(known)})")
    return path


def load(name: str, pins: Path | None = None) -> LoadedExperiment:
    """Read an experiment with all that it extends, and the catalogue it refers to."""
    file = find_file(name)
    check_experiment_name(file)
    tables = _read_layers(file)
    layers = [read_pins_file(file) for file in PIN_FILES]
    layers.append((str(file), {key: tables.pop(key) for key in CATALOGUE_TABLES if key in tables}))
    if pins is not None:
        layers.append(read_pins_file(pins))
    catalogue = read_catalogue(layers)
    axes = tables.get("axes", {})
    blocks = tables.get("matrix", [])
    if isinstance(axes, dict) and isinstance(blocks, list):
        tables["matrix"] = [{**axes, **block} if isinstance(block, dict) else block for block in blocks]
    experiment = validate(Experiment, tables, str(file))
    loaded = LoadedExperiment(file.stem, file, experiment, catalogue)
    _check_names(loaded)
    _check_seeds(loaded)
    _check_processes(loaded)
    return loaded


def check_experiment_name(file: Path) -> None:
    """ExperimentError for a file whose name cannot be that of a folder of its own in a run directory."""
    name = checked_name("experiment", file.stem, str(file))
    if is_reserved(name):
        raise ExperimentError(
            f"{file}: a run directory uses the name '{name}' for itself, so no experiment may have it; rename the file"
        )


def _read_layers(file: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    if file in seen:
        raise ExperimentError(f"{file}: extends itself through {', '.join(p.name for p in seen)}")
    tables = anchor_paths(read_toml(file), file.parent)
    parent = tables.get("extends")
    if file.stem == "defaults" and file.parent == EXPERIMENTS:
        return merge_tables(read_toml(EXPERIMENTS / "fingerprints.toml"), tables)
    below = find_file(str(parent), file.parent) if parent else EXPERIMENTS / "defaults.toml"
    return merge_catalogues(_read_layers(below, (*seen, file)), tables)


def _check_names(loaded: LoadedExperiment) -> None:
    """Every name in the matrix and the evaluation is in the catalogue, every data set has its rows section."""
    where = str(loaded.file)
    for block in loaded.experiment.matrix:
        for dataset in block.dataset:
            find_pin(loaded.catalogue.datasets, dataset, "dataset", where)
            if dataset not in loaded.experiment.data:
                raise ExperimentError(f"{where}: data set '{dataset}' has no section [data.{dataset}]")
        for pair in block.pair:
            for model in split_pair(pair, where):
                find_pin(loaded.catalogue.models, model, "model", where)
    for benchmark in (*loaded.experiment.evaluation.benchmarks, *loaded.experiment.decontamination.benchmarks):
        find_pin(loaded.catalogue.benchmarks, benchmark, "benchmark", where)


def _check_seeds(loaded: LoadedExperiment) -> None:
    """Seeds of one arm are trainings that differ; a fixed selection and order of rows would make them one."""
    experiment, where = loaded.experiment, str(loaded.file)
    if experiment.training.lora.rank:
        return  # adapters start at random
    arms: dict[Cell, set[int]] = {}
    for cell in (cell for block in experiment.matrix for cell in _expand_block(block, where)):
        arms.setdefault(replace(cell, seed=0), set()).add(cell.seed)
    for arm, seeds in arms.items():
        rule = experiment.data[arm.dataset].split_seed
        if len(seeds) > 1 and rule != "cell":
            raise ExperimentError(
                f"{where}: seed = {sorted(seeds)} gives {len(seeds)} times the same training: [data.{arm.dataset}] has "
                f"split_seed = {rule}, and nothing but rows and their order is random; let them differ with "
                'split_seed = "cell" there and seed = "cell" in [evaluation]'
            )


def _check_processes(loaded: LoadedExperiment) -> None:
    """Every process of a training has a GPU of its own, where GPUs are asked for, and machines have as many of them."""
    processes, resources = loaded.experiment.training.processes, loaded.experiment.resources
    gpus = resources.gpus * resources.nodes
    if gpus and processes > gpus:
        raise ExperimentError(
            f"{loaded.file}: processes = {processes} in [training] need as many GPUs, but [resources] has gpus = "
            f"{resources.gpus} on nodes = {resources.nodes}; lower processes, or raise gpus"
        )
    if processes % resources.nodes:
        raise ExperimentError(
            f"{loaded.file}: processes = {processes} in [training] cannot be shared out evenly to nodes = "
            f"{resources.nodes} in [resources]; let it be a multiple"
        )


def split_pair(pair: str, where: str) -> tuple[str, str]:
    """`teacher_student` to (teacher, student)."""
    teacher, separator, student = pair.partition("_")
    if not (teacher and separator and student):
        raise ExperimentError(f"{where}: pair = '{pair}': must read teacher_student, as in qwen3-8b_qwen3-4b-base")
    return teacher, student


def expand(blocks: list[Matrix], where: str) -> list[Cell]:
    """The cells of all blocks in order; an empty matrix or two equal cells are errors."""
    cells = [cell for block in blocks for cell in _expand_block(block, where)]
    if not cells:
        empty = next(axis for axis in AXES if axis not in OPTIONAL_AXES and not all(getattr(b, axis) for b in blocks))
        raise ExperimentError(f"{where}: the matrix is empty: axis '{empty}' has no values")
    seen: set[str] = set()
    for cell in cells:
        if cell.name in seen:
            raise ExperimentError(f"{where}: the matrix names the cell {cell.name} twice")
        seen.add(cell.name)
    return cells


def _expand_block(block: Matrix, where: str) -> list[Cell]:
    axes = [getattr(block, axis) for axis in AXES if axis not in OPTIONAL_AXES]
    rows: list[int | None] = list(block.train_rows) or [None]
    budgets: list[int | None] = list(block.token_budget) or [None]
    cells = [
        Cell(dataset, *split_pair(pair, where), lsp, span, sections, protocol, seed, train_rows, budget)
        for train_rows, budget in itertools.product(rows, budgets)
        for dataset, pair, lsp, span, sections, protocol, seed in itertools.product(*axes)
    ]
    for cell in cells:
        if cell.span == "cot-lead" and cell.sections == "a":
            raise ExperimentError(
                f"{where}: the cell {cell.name} would supervise nothing: span 'cot-lead' never reads the answer, so "
                "give it other sections than 'a'"
            )
    return cells


def choose(loaded: LoadedExperiment, wanted: dict[str, Any]) -> list[Cell]:
    """The cells that the command line asks for: axis -> value.

    A value that the matrix has picks its cells; one that it does not have takes the place of the axis, so that
    `--lsp 0.35` runs a cell beside the published ones.
    """
    blocks = loaded.experiment.matrix
    for axis, value in wanted.items():
        having = [block for block in blocks if value in getattr(block, axis)]
        tables = [{**block.model_dump(), axis: [value]} for block in having or blocks]
        blocks = [validate(Matrix, table, f"--{axis}") for table in tables]
    changed = LoadedExperiment(
        loaded.name, loaded.file, loaded.experiment.model_copy(update={"matrix": blocks}), loaded.catalogue
    )
    _check_names(changed)
    unique = {cell.name: cell for block in blocks for cell in _expand_block(block, str(loaded.file))}
    if not unique:
        return expand(blocks, str(loaded.file))
    return list(unique.values())
