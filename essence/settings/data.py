"""Settings of download and tokenize, and of the view that a training has of tokenised rows."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from essence.settings.base import LARGEST_COUNT, Count, CountOrZero, Record, Seed, Share

LARGEST_TOKENS = 10**15
"""Of a budget."""
TokenBudget = Annotated[int, Field(gt=0, le=LARGEST_TOKENS)]

LSP = Share
"""Lead-span proportion: the share of a row's tokens that is kept, 0 < p <= 1."""

SPANS = (
    *("left", "middle", "right", "right-with-context", "cot-lead", "random-span", "random-tokens", "lead+answer"),
    *("to-first-answer", "schedule", "teacher-entropy"),
)
"""The spans that have a name of their own; docs/arms.md tells what each reads, is taught, and isolates."""
FIRST_TOKENS = re.compile(r"first-([1-9][0-9]{0,9})")
ROLLOUT = re.compile(r"rollout-([1-9][0-9]{0,9})")
NO_PROPORTION = "to-first-answer"


def first_tokens(span: str) -> int | None:
    """The k of `first-k`: so many tokens of the chain of thought, `<think>` among them; None of any other span."""
    found = FIRST_TOKENS.fullmatch(span)
    return int(found[1]) if found else None


def rollout_tokens(span: str) -> int | None:
    """The k of `rollout-k`: the student's own words after a row's prompt, at most so many tokens; None of any other."""
    found = ROLLOUT.fullmatch(span)
    return int(found[1]) if found else None


def takes_proportion(span: str) -> bool:
    """True when `lsp` says how much of a row a span keeps; where it does not, `lsp` is 1.0."""
    return span != NO_PROPORTION and first_tokens(span) is None and rollout_tokens(span) is None


def is_whole(lsp: float, span: str) -> bool:
    """True when this part of a row is all of it; a `cot-lead` of 1.0 lacks the answer."""
    return lsp == 1.0 and span != "cot-lead" and takes_proportion(span)


def reads_answer(span: str) -> bool:
    """True when a span can reach the answer of a row."""
    return span != "cot-lead" and first_tokens(span) is None


def draws(span: str) -> bool:
    """True when what a span takes of a row is drawn, by the row and the seed of the cell."""
    return span in ("random-span", "random-tokens") or rollout_tokens(span) is not None


def _known_span(span: str) -> str:
    if span not in SPANS and (first_tokens(span) or rollout_tokens(span) or LARGEST_COUNT + 1) > LARGEST_COUNT:
        named = ", ".join(f"'{name}'" for name in SPANS)
        raise ValueError(f"should be {named}, or 'first-k' or 'rollout-k' with a number of tokens, as in 'first-512'")
    return span


Span = Annotated[str, AfterValidator(_known_span)]
"""Which tokens of a row are read and can be labels: one of `SPANS`, or `first-k` with a number in the place of k; or
`rollout-k`, where the row gives the prompt alone and the student continues it."""

Sections = Literal["a", "p+a", "cot", "cot+a", "p+cot", "p+cot+a"]
"""The sections whose tokens are supervised: prompt (p), chain of thought (cot), answer (a)."""

RowFormat = Literal["conversations", "synthetic1", "nemotron", "messages"]
"""How a data set's rows are read: `conversations` is Bespoke-Stratos, OpenThoughts and Sky-T1; `messages` anybody's."""


Option = Annotated[int, Field(ge=-LARGEST_TOKENS, le=LARGEST_TOKENS)] | Annotated[float, Field(ge=-1e15, le=1e15)] | str
"""Value of one option of a source that the kit makes; `essence/stages/tiny/source_options.py` has its bounds."""


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
    """Patterns of the files that are fetched from a repository, or taken from a local folder (empty = all of it)."""
    rows_wanted: Count | None = None
    """So many first rows of a data set's repository are streamed; None = its files are fetched whole."""
    columns: list[str] = Field(default_factory=list)
    """Columns of streamed Parquet files that are fetched; empty = all."""
    path: str | None = None
    """Local folder or file instead of a repository; where it lies is in no key."""
    path_state: str | None = None
    """Hash over the names and contents of the files under `path` (`essence/record/content.py`): what was taken in."""
    builtin: str | None = None
    """Name of a source made by the kit (`essence/stages/tiny`)."""
    options: dict[str, Option] = Field(default_factory=dict)
    """Options of a built-in source."""


class DownloadSettings(Record):
    """Bring one source into the run directory."""

    source: Source


class DecontaminationSettings(Record):
    """Which evaluation problems are looked for among the questions, and what becomes of the rows found."""

    problem_fields: dict[str, str]
    """Benchmark -> field of its rows that holds the problem; the problems are the input `problems-<benchmark>`."""
    overlap_words: Count
    """So many words in a row in common make an overlap."""
    remove: bool
    """True when rows found are left out; they are counted in any case."""


class TokenizeSettings(Record):
    """Render and tokenise every row of a data set once; spans and sections are views on the result."""

    format: RowFormat
    keep_generation_header: bool
    """Released: a stray `<|im_start|>assistant` header ends every full row (trap 5)."""
    markers: Literal["exact", "lenient"]
    """Released: the data sets' markers are replaced as exact strings, newlines included, and others are left (18)."""
    faulty_rows: Literal["keep", "reject"]
    """Released: rows that the chat template garbles, that lack a part or that repeat another are trained on (19)."""
    max_row_characters: Count
    """Rows whose question and answer have more characters are rejected, before anything is made of them."""
    max_rejected_share: Annotated[float, Field(ge=0.0, le=1.0)]
    """Share of rejected rows above which the stage fails; rows that are not wanted do not count."""
    decontamination: DecontaminationSettings


class PositionsRecord(Record):
    """A list of row positions in a data set, told by what can be checked without the list itself."""

    rows: CountOrZero
    smallest: CountOrZero | None = None
    largest: CountOrZero | None = None
    sum: Seed | None = None
    first: list[CountOrZero] = Field(default_factory=list)
    """The first few, in order."""
    sha256: str
    """Of the positions in order, in decimal digits, joined by commas."""


class PublishedRows(Record):
    """Fingerprints of the rows that the released code kept, trained on and validated on, and of their order."""

    kept: PositionsRecord
    train: PositionsRecord
    validation: PositionsRecord
    orders: list[PositionsRecord] = Field(default_factory=list)
    """The training rows in the order of each epoch; empty where none is published."""


class RowsSettings(Record):
    """Which rows a cell trains on and is validated on: length filter, split, and how many."""

    max_row_tokens: Count
    """Rows of this many tokens or more are left out."""
    train_rows: Count
    """Rows trained on; with a token budget, the most that may be."""
    validation_rows: Count
    split_seed: Seed
    token_budget: TokenBudget | None = None
    """Train on the first rows, in order, whose tokens read add up to at most this many; None = on all `train_rows`."""
    published: PublishedRows | Literal["not read"] | None = None
    """What the selected positions are compared with in the record; "not read" where a list is published whose content
    the kit does not have; None where nothing is published."""


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
    """Corrected: middle and right spans keep everything before them, with the loss on the span only (trap 3). All other
    spans read the same with and without."""
    left_pad_multiple: Annotated[int, Field(ge=0)]
    """Released: rows are padded on the left to a multiple of this, and where there is a pad the first token read is a
    label, predicted from the pad (trap 23). 0 = the first token is never a label."""
    misordered_markers: Literal["train", "skip"]
    """Released: rows whose first `</think>` comes before their first `<think>` are trained on (trap 24)."""
    draw_seed: Seed = 0
    """Of the spans that draw: the seed of the cell. 0 for all others, of which it tells no two trainings apart."""


EVERY_TOKEN = ViewSettings(
    lsp=1.0,
    span="left",
    sections="p+cot+a",
    cot_includes_next_token=False,
    supervise_end_of_sequence=True,
    keep_context=True,
    left_pad_multiple=0,
    misordered_markers="skip",
)
"""Every token is read, and every one but a row's first is a label: for rows that the kit makes itself."""
