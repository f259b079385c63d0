"""Settings of download and tokenize, and of the view that a training has of tokenised rows."""

from typing import Annotated, Literal

from pydantic import Field

from essence.settings.base import Record

LSP = Annotated[float, Field(gt=0.0, le=1.0)]
"""Lead-span proportion: the share of a row's tokens that is kept, 0 < p <= 1."""

Span = Literal["left", "middle", "right", "right-with-context", "cot-lead"]
"""Which tokens a proportion keeps: the first, the middle or the last ones of the row, the last ones with all that
stands before them as context, or the first ones of the chain of thought behind the whole prompt."""

Sections = Literal["a", "p+a", "cot", "cot+a", "p+cot", "p+cot+a"]
"""The sections whose tokens are supervised: prompt (p), chain of thought (cot), answer (a)."""

RowFormat = Literal["conversations", "synthetic1", "nemotron", "messages"]
"""How a data set's rows are read: `conversations` is Bespoke-Stratos, OpenThoughts and Sky-T1; `messages` anybody's."""


class Source(Record):
    """Where a model, data set or benchmark comes from: a hub repository at a commit, a local path, the kit itself."""

    kind: Literal["model", "dataset", "benchmark"]
    name: str
    """Short name used in cell names: `qwen3-8b`, `bespoke`, `aime25`."""
    repository: str | None = None
    """Hub repository, `owner/name`."""
    commit: str | None = None
    """Full commit of the repository; never a branch."""
    files: list[str] = Field(default_factory=list)
    """Patterns of the files of a repository that are fetched."""
    rows_wanted: Annotated[int, Field(gt=0)] | None = None
    """So many first rows of a data set's repository are streamed; None = its files are fetched whole."""
    columns: list[str] = Field(default_factory=list)
    """Columns of streamed Parquet files that are fetched; empty = all."""
    path: str | None = None
    """Local folder or file instead of a repository; where it lies is in no key."""
    path_state: str | None = None
    """Hash over the names and contents of the files under `path` (`essence/content.py`): what was taken in."""
    builtin: str | None = None
    """Name of a source made by the kit (`essence/tiny`)."""
    options: dict[str, int | float | str] = Field(default_factory=dict)
    """Options of a built-in source."""


class DownloadSettings(Record):
    """Bring one source into the run directory."""

    source: Source


class DecontaminationSettings(Record):
    """Which evaluation problems are looked for among the questions, and what becomes of the rows found."""

    problem_fields: dict[str, str]
    """Benchmark -> field of its rows that holds the problem; the problems are the input `problems-<benchmark>`."""
    overlap_words: Annotated[int, Field(gt=0)]
    """So many words in a row in common make an overlap."""
    remove: bool
    """Whether rows found are left out; they are counted in any case."""


class TokenizeSettings(Record):
    """Render and tokenise every row of a data set once; spans and sections are views on the result."""

    format: RowFormat
    keep_generation_header: bool
    """Released: a stray `<|im_start|>assistant` header ends every full row (trap 5)."""
    markers: Literal["exact", "lenient"]
    """Released: the data sets' markers are replaced as exact strings, newlines included, and others are left (18)."""
    faulty_rows: Literal["keep", "reject"]
    """Released: rows that the chat template garbles, that lack a part or that repeat another are trained on (19)."""
    max_row_characters: Annotated[int, Field(gt=0)]
    """Rows whose question and answer have more characters are rejected, before anything is made of them."""
    max_rejected_share: Annotated[float, Field(ge=0.0, le=1.0)]
    """Share of rejected rows above which the stage fails; rows that are not wanted do not count."""
    decontamination: DecontaminationSettings


class PositionsRecord(Record):
    """A list of row positions in a data set, told by what can be checked without the list itself."""

    rows: Annotated[int, Field(ge=0)]
    smallest: int | None = None
    largest: int | None = None
    sum: int | None = None
    first: list[int] = Field(default_factory=list)
    """The first few, in order."""
    sha256: str
    """Of the positions in order, in decimal digits, joined by commas."""


class PublishedRows(Record):
    """Fingerprints of the rows that the released code kept, trained on and validated on."""

    kept: PositionsRecord
    train: PositionsRecord
    validation: PositionsRecord


class RowsSettings(Record):
    """Which rows a cell trains on and is validated on: length filter, split, and how many."""

    max_row_tokens: Annotated[int, Field(gt=0)]
    """Rows of this many tokens or more are left out."""
    train_rows: Annotated[int, Field(gt=0)]
    """Rows trained on; with a token budget, the most that may be."""
    validation_rows: Annotated[int, Field(gt=0)]
    split_seed: Annotated[int, Field(ge=0)]
    token_budget: Annotated[int, Field(gt=0)] | None
    """Train on the first rows, in order, whose tokens read add up to at most this many; None = on all `train_rows`."""
    published: PublishedRows | None
    """What the selected positions are compared with in the record; None where nothing is published."""


class ViewSettings(Record):
    """Which tokens of a row are read and which are supervised."""

    lsp: LSP
    span: Span
    sections: Sections
    cot_includes_next_token: bool
    """Released: CoT and P+CoT supervise one token of the answer too (trap 9)."""
    supervise_end_of_sequence: bool
    """Released: padding is the eos token, so true eos tokens are masked out of the labels (trap 6)."""
    keep_context: bool
    """Corrected: middle and right spans keep everything before them, with the loss on the span only (trap 3). The spans
    `left`, `right-with-context` and `cot-lead` read the same with and without."""
