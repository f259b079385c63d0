"""Models, data sets and benchmarks by short name: where each comes from, at which commit.

`experiments/pins.toml` and `experiments/benchmarks/` are the catalogue. An experiment, or a file given with
`--pins`, may replace the origin of an entry: a local path instead of a repository is all that an offline machine needs.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from essence.distill.cost import Architecture
from essence.errors import PinError, nearest
from essence.settings import AnswerType, Record, RowFormat, Source
from essence.taken_in import LocalSources
from essence.validation import merge_tables, read_toml, validate

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
    """Patterns of the files that are needed; empty = weights and tokenizer of a model, rows of a data set."""
    path: str | None = None
    builtin: str | None = None
    options: dict[str, int | float | str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def one_origin(self) -> "Pin":
        given = [origin for origin in ORIGINS if getattr(self, origin)]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of {', '.join(ORIGINS)}; found {', '.join(given) or 'none'}")
        return self

    @field_validator("commit")
    @classmethod
    def full_commit(cls, commit: str | None) -> str | None:
        """Empty = not looked up yet; a branch or a short commit is refused."""
        if commit and not (len(commit) == COMMIT_LENGTH and set(commit) <= set("0123456789abcdef")):
            raise ValueError("must be a full commit of 40 hexadecimal digits, or empty until `invoke pin` fills it")
        return commit


class ModelPin(Pin):
    architecture: Architecture | None = None
    """For estimates before the model is there."""


class DatasetPin(Pin):
    format: RowFormat
    mean_row_tokens: int | None = None
    """For estimates before the rows are there."""
    rows_wanted: Annotated[int, Field(gt=0)] | None = None
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
    problems: int | None = None
    """Number of problems, for estimates."""


class Catalogue(Record):
    """All that has a short name."""

    models: dict[str, ModelPin] = Field(default_factory=dict)
    datasets: dict[str, DatasetPin] = Field(default_factory=dict)
    benchmarks: dict[str, BenchmarkPin] = Field(default_factory=dict)


Kind = Literal["model", "dataset", "benchmark"]
AnyPin = TypeVar("AnyPin", bound=Pin)


def merge_catalogues(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, as tables are; an entry that names an origin replaces the whole origin below it."""
    below = dict(base)
    for table in CATALOGUE_TABLES:
        if isinstance(base.get(table), dict) and isinstance(over.get(table), dict):
            entries = base[table].items()
            below[table] = {name: _without_origin(entry, over[table].get(name)) for name, entry in entries}
    return merge_tables(below, over)


def _without_origin(entry: Any, over: Any) -> Any:
    if not (isinstance(entry, dict) and isinstance(over, dict) and any(origin in over for origin in ORIGINS)):
        return entry
    return {key: value for key, value in entry.items() if key not in OF_AN_ORIGIN}


def read_catalogue(layers: list[tuple[str, dict[str, Any]]]) -> Catalogue:
    """Merge layers of (where, tables), lowest first; errors name the layer that brought them in."""
    merged: dict[str, Any] = {}
    catalogue = Catalogue()
    for where, tables in layers:
        merged = merge_catalogues(merged, tables)
        catalogue = validate(Catalogue, merged, where)
    return catalogue


def read_pins_file(path: Path) -> tuple[str, dict[str, Any]]:
    """A layer from a TOML file; relative paths in it are relative to the file."""
    tables = read_toml(path)
    return str(path), anchor_paths(tables, path.parent)


def anchor_paths(tables: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same tables with every local `path` made absolute, `~` and relative ones included."""
    anchored: dict[str, Any] = {}
    for table, entries in tables.items():
        anchored[table] = entries
        if isinstance(entries, dict):
            anchored[table] = {
                name: {**entry, "path": str((folder / Path(entry["path"]).expanduser()).resolve())}
                if isinstance(entry, dict) and isinstance(entry.get("path"), str)
                else entry
                for name, entry in entries.items()
            }
    return anchored


def find_pin(pins: dict[str, AnyPin], name: str, kind: Kind, where: str) -> AnyPin:
    """The entry of that name; PinError with the nearest known name."""
    if name not in pins:
        raise PinError(f"{where}: unknown {kind} '{name}'{nearest(name, pins)} (known: {', '.join(sorted(pins))})")
    return pins[name]


def to_source(kind: Kind, name: str, pin: Pin, local: LocalSources | None = None) -> Source:
    """The source as it stands in the download stage's settings. A path need not exist yet: `missing` tells."""
    source = Source(
        kind=kind,
        name=name,
        repository=pin.repository,
        commit=pin.commit or None,
        files=(pin.files or (MODEL_FILES if kind == "model" else ROW_FILES)) if pin.repository else [],
        rows_wanted=getattr(pin, "rows_wanted", None),
        columns=getattr(pin, "columns", []),
        path=pin.path,
        builtin=pin.builtin,
        options=pin.options,
    )
    if not pin.path:
        return source
    return source.model_copy(update={"path_state": (local or LocalSources()).content(source)})


def missing(source: Source) -> str | None:
    """Why the source cannot be brought in as it stands, in one sentence; None when nothing is missing."""
    if source.repository and not source.commit:
        return (
            f"the pin of {source.kind} '{source.name}' ({source.repository}) is empty; "
            "run `invoke pin` on a machine with network, or give a local `path` for it with --pins FILE"
        )
    if source.path and not Path(source.path).exists():
        return (
            f"{source.kind} '{source.name}': its local path {source.path} does not exist; give another with --pins FILE"
        )
    return None
