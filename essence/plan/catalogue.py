"""Models, data sets and benchmarks by short name: where each comes from, at which commit.

`experiments/pins.toml` and `experiments/benchmarks/` are the catalogue. An experiment, or a file given with
`--pins`, may replace the origin of an entry: a local path instead of a repository is all that an offline machine needs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, ValidationInfo, field_validator, model_validator

from essence.errors import ExperimentError, PinError, nearest
from essence.paths import fits, local_files, local_path, place
from essence.record.local_sources import LocalSources
from essence.settings import AnswerType, Count, Name, Option, Record, RowFormat, Source
from essence.settings.proving import ModelSizes
from essence.settings.toml import Layer, merge_tables, read_toml, shown, validate
from essence.stages.tiny.source_options import OPTIONS

CATALOGUE_TABLES = ("models", "datasets", "benchmarks")
ORIGINS = ("repository", "path", "builtin")
OF_AN_ORIGIN = (*ORIGINS, "commit", "files", "options", "architecture", "mean_row_tokens", "rows_wanted", "columns")
"""What is said of one origin, and does not hold for another."""
COMMIT_LENGTH = 40
MODEL_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "LICENSE*"]
ROW_FILES = ["*.parquet", "*.jsonl", "*.json", "*.jsonl.gz", "*.json.gz"]
"""Files of a repository that are fetched when its pin names none."""


class Pin(Record):
    """Where one thing comes from."""

    repository: str | None = None
    commit: str | None = None
    files: list[str] = Field(default_factory=list)
    """Patterns of the files that are needed; empty = weights and tokenizer of a model, rows of a data set; of a local
    folder, everything."""
    path: str | None = None
    builtin: str | None = None
    options: dict[str, Option] = Field(default_factory=dict)

    @model_validator(mode="after")
    def one_origin(self) -> "Pin":
        given = [origin for origin in ORIGINS if getattr(self, origin)]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of {', '.join(ORIGINS)}; found {', '.join(given) or 'none'}")
        return self

    @field_validator("options")
    @classmethod
    def known_options(cls, options: dict[str, Option], info: ValidationInfo) -> dict[str, Option]:
        """Those of a source that the kit makes; looked at before a stage begins to make it."""
        builtin = info.data.get("builtin")
        if builtin in OPTIONS:
            try:
                validate(OPTIONS[builtin], options, f"of '{builtin}'")
            except ExperimentError as error:
                raise ValueError(str(error)) from None
        return options

    @field_validator("commit")
    @classmethod
    def full_commit(cls, commit: str | None) -> str | None:
        """Empty = not looked up yet; a branch or a short commit is refused."""
        if commit and not (len(commit) == COMMIT_LENGTH and set(commit) <= set("0123456789abcdef")):
            raise ValueError("must be a full commit of 40 hexadecimal digits, or empty until `invoke pin` fills it")
        return commit


class ModelPin(Pin):
    architecture: ModelSizes | None = None
    """For estimates before the model is there."""


class DatasetPin(Pin):
    format: RowFormat
    mean_row_tokens: Count | None = None
    """For estimates before the rows are there."""
    rows_wanted: Count | None = None
    """Stream so many first rows of the repository instead of fetching its files whole."""
    columns: list[str] = Field(default_factory=list)
    """Columns of the Parquet files that are streamed; empty = all."""

    @model_validator(mode="after")
    def streams_a_repository(self) -> "DatasetPin":
        if self.rows_wanted and not self.repository:
            raise ValueError("rows_wanted says how much of a repository is streamed, and this entry has none")
        if self.columns and not self.rows_wanted:
            raise ValueError("columns are chosen where rows are streamed, so it needs rows_wanted")
        return self


class BenchmarkPin(Pin):
    problem_field: str
    answer_field: str
    answer_type: AnswerType
    prompt: str
    problems: Count | None = None
    """Number of problems, for estimates."""


class Catalogue(Record):
    """All that has a short name."""

    models: dict[Name, ModelPin] = Field(default_factory=dict)
    datasets: dict[Name, DatasetPin] = Field(default_factory=dict)
    benchmarks: dict[Name, BenchmarkPin] = Field(default_factory=dict)


Kind = Literal["model", "dataset", "benchmark"]
AnyPin = TypeVar("AnyPin", bound=Pin)


def merge_catalogues(base: Mapping[str, object], over: Mapping[str, object]) -> Mapping[str, object]:
    """`over` on top of `base`, as tables are; an entry that names an origin replaces the whole origin below it."""
    below = dict(base)
    for table in CATALOGUE_TABLES:
        entries, others = base.get(table), over.get(table)
        if isinstance(entries, dict) and isinstance(others, dict):
            below[table] = {name: _without_origin(entry, others.get(name)) for name, entry in entries.items()}
    return merge_tables(below, over)


def _without_origin(entry: object, over: object) -> object:
    if not (isinstance(entry, dict) and isinstance(over, dict) and any(origin in over for origin in ORIGINS)):
        return entry
    return {key: value for key, value in entry.items() if key not in OF_AN_ORIGIN}


def read_catalogue(layers: Sequence[Layer]) -> Catalogue:
    """Merge layers of (where, tables), lowest first; errors name the layer that brought them in."""
    merged: Mapping[str, object] = {}
    for _, tables in layers:
        merged = merge_catalogues(merged, tables)
    return validate(Catalogue, merged, layers[-1][0], layers)


def read_pins_file(path: Path) -> Layer:
    """A layer from a TOML file; relative paths in it are relative to the file."""
    tables = read_toml(path)
    return str(path), anchor_paths(tables, path)


def anchor_paths(tables: Mapping[str, object], file: Path) -> Mapping[str, object]:
    """The same tables with every local `path` of the catalogue made absolute, `~` and paths beside `file` included.

    Raises:
        ExperimentError: something that no file or folder of this machine can be called.
    """
    anchored = dict(tables)
    for table in CATALOGUE_TABLES:
        if isinstance(entries := tables.get(table), dict):
            anchored[table] = {name: _anchored(entry, f"{table}.{name}", file) for name, entry in entries.items()}
    return anchored


def _anchored(entry: object, key: str, file: Path) -> object:
    if not (isinstance(entry, dict) and isinstance(entry.get("path"), str)):
        return entry
    try:
        path = local_path(entry["path"], file.parent)
        if place(path) == "special":
            raise ValueError("a file or folder is wanted, found a device, a pipe or a socket")
    except ValueError as error:
        raise ExperimentError(f"{file}: {key}.path = {shown(entry['path'])}: {error}") from None
    return {**entry, "path": str(path)}


def find_pin(pins: dict[str, AnyPin], name: str, kind: Kind, where: str) -> AnyPin:
    """The entry of that name; PinError with the nearest known name."""
    if name not in pins:
        raise PinError(f"{where}: unknown {kind} '{name}'{nearest(name, pins)} (known: {', '.join(sorted(pins))})")
    return pins[name]


def to_source(kind: Kind, name: str, pin: Pin, local: LocalSources | None = None) -> Source:
    """The source as it is in the download stage's settings. A path need not exist yet: `missing` tells."""
    source = Source(
        kind=kind,
        name=name,
        repository=pin.repository,
        commit=pin.commit or None,
        files=pin.files or (_usual_files(kind) if pin.repository else []),
        rows_wanted=getattr(pin, "rows_wanted", None),
        columns=getattr(pin, "columns", []),
        path=pin.path,
        builtin=pin.builtin,
        options=pin.options,
    )
    if not pin.path:
        return source
    return source.model_copy(update={"path_state": (local or LocalSources()).content(source)})


def _usual_files(kind: Kind) -> list[str]:
    return MODEL_FILES if kind == "model" else ROW_FILES


def missing(source: Source) -> PinError | None:
    """Why the source cannot be brought in as it is; None when nothing is missing."""
    if source.repository and not source.commit:
        return PinError(
            f"the pin of {source.kind} '{source.name}' ({source.repository}) is empty",
            "run `invoke pin` on a machine with network, or give a local `path` for it with --pins FILE",
        )
    if source.path and (reason := _unfit(source, Path(source.path))):
        path = source.path if source.path.isprintable() else repr(source.path)  # a sentence is one line
        return PinError(
            f"{source.kind} '{source.name}': its local path {path} {reason}", "give another with --pins FILE"
        )
    return None


def _unfit(source: Source, path: Path) -> str | None:
    """Why a local path cannot be taken in."""
    found = place(path)
    if found == "nothing":
        return "does not exist"
    if found == "unreachable":
        return "cannot be looked at by this user"
    if found == "special":
        return "is a device, a pipe or a socket, wanted: a file or folder"
    if found == "file" and source.kind == "model":
        return "is a file, wanted: the folder of a model"
    if source.files and not local_files(path, source.files):
        return f"has no file that fits files = {source.files}"
    if found == "file" and source.files and not fits(path.name, source.files):
        return f"is a file that does not fit files = {source.files}"
    return None
