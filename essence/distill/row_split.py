"""The training and validation rows of a cell, their order, and their comparison with the published ones.

The released code chose rows by lists of positions and split them with the `datasets` library. The kit filters by its
own stated rule, splits the same way, and says in one word if the outcome equals what is published
(experiments/fingerprints.toml), with the numbers that differ.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from essence.data.draws import growing_lengths
from essence.data.selection import Indices, kept_lengths, validation_view
from essence.data.token_table import TokenTable
from essence.data.truncation import Entropies, Examples, collect, has_sections, within_budget
from essence.distill.order import epoch_order
from essence.errors import InputError
from essence.settings import PositionsRecord, PublishedRows, Record, RowsSettings, TrainSettings

FIRST_POSITIONS = 5
Verdict = Literal["equal", "different", "published, not read by the kit", "not published"]
Value = int | str | list[int] | None
"""A number of a `PositionsRecord`."""
Differences = dict[str, tuple[Value, Value]]
"""Number that differs -> ours, published."""


class SelectionRecord(Record):
    """What was selected, before rows without labels are skipped and before a token budget; is it what is published?"""

    published: Verdict
    kept: PositionsRecord
    train: PositionsRecord
    validation: PositionsRecord
    differs: dict[str, Differences]
    """By part."""


class OrderRecord(Record):
    """The order of the training rows: those drawn, with those that fill an epoch up; a token budget draws fewer."""

    published: Verdict
    epochs: list[PositionsRecord]
    """Before rows without labels are skipped."""
    differs: dict[str, Differences | tuple[int, int]]
    """By epoch; under `epochs` how many there are, where that differs."""


class PositionsFound(SelectionRecord):
    """A cell's rows and their order, for its record."""

    order: OrderRecord


@dataclass(frozen=True)
class RowSplit:
    """Row indices (into the tokenised rows, not data set positions) that a cell uses, in order; int64."""

    kept: Indices
    """All rows that the length filter lets through."""
    train: Indices
    validation: Indices


@dataclass(frozen=True)
class CellRows:
    """What a cell trains on and is validated on."""

    training: Examples
    validation: Examples
    positions: PositionsFound


EntropiesOf = Callable[[Iterable[int]], Iterable[Entropies]]
"""Of rows by their positions in the data set, what a teacher stage has stored (`StoredRows.entropies`)."""


def load_cell_rows(
    path: Path, settings: TrainSettings, eos_id: int, entropies_of: EntropiesOf | None = None
) -> CellRows:
    """The rows of `tokens.arrow` as a cell sees them; `entropies_of` serves the span `teacher-entropy`.

    Raises:
        InputError: the file is missing or damaged, too few rows, no row with a label, a token budget that is not met,
            no token to pad with.
    """
    if settings.view.left_pad_multiple and eos_id < 0:
        raise InputError(
            "the student's tokenizer has no eos_token, with which protocol 'released' pads rows: set eos_token in its "
            "tokenizer_config.json, or use protocol 'corrected'"
        )
    table = TokenTable(path)
    selection, budget = select_rows(table.lengths, settings.rows), settings.rows.token_budget
    if settings.view.span == "schedule":
        training = growing_examples(table, selection.train, settings, eos_id)
    else:
        entropies = entropies_of(table.positions[selection.train].tolist()) if entropies_of else None
        outcomes = table.examples(selection.train, settings.view, eos_id, entropies=entropies)
        training = collect(outcomes if budget is None else within_budget(outcomes, budget))
    validation = collect(table.examples(selection.validation, validation_view(settings), eos_id))
    for name, part in (("training", training), ("validation", validation)):
        if not part.examples:
            raise InputError(f"no {name} row has a supervised token under this span and sections: {part.skipped}")
    positions, published = table.positions, settings.rows.published
    selected = describe_selection(positions, selection, published)
    order = describe_order(positions[selection.train[: training.places.rows]], settings, published)
    return CellRows(training, validation, PositionsFound(**dict(selected), order=order))


def growing_examples(table: TokenTable, drawn: Indices, settings: TrainSettings, eos_id: int) -> Examples:
    """Every reading of every row, in the order of reading, where the proportion grows over the training.

    All rows of a step keep the same share, and all readings together have the tokens that `left` at this `lsp` reads.
    """
    orders = [epoch_order(drawn.size, settings.order, epoch) for epoch in range(settings.optimizer.epochs)]
    batch = settings.optimizer.batch_rows
    a_step = [(epoch, slot // batch) for epoch, order in enumerate(orders) for slot in range(len(order))]
    numbers = {step: number for number, step in enumerate(dict.fromkeys(a_step))}
    indices = drawn[np.concatenate(orders)]
    bounds = table.bounds.at(indices)
    even = np.where(has_sections(bounds, settings.view), kept_lengths(bounds.lengths, settings.view.lsp), 0)
    kept = growing_lengths(
        even.tolist(), bounds.lengths.tolist(), [numbers[step] for step in a_step], settings.view.lsp
    )
    found = collect(table.examples(indices, settings.view, eos_id, np.array(kept, np.int64)))
    return replace(found, places=replace(found.places, readings=True))


def select_rows(lengths: ArrayLike, settings: RowsSettings) -> RowSplit:
    """Length filter and split, equal to `select(kept).train_test_split(test_size, seed)` of the `datasets` library.

    Args:
        lengths: tokens of each whole rendered row, in data set order.
        settings: rows of `max_row_tokens` or more are left out; the test part is validation, the first `train_rows` of
            the train part are trained on.

    Raises:
        InputError: fewer rows are left than `train_rows + validation_rows`.
    """
    kept = np.flatnonzero(np.asarray(lengths) < settings.max_row_tokens)
    wanted = settings.train_rows + settings.validation_rows
    if kept.size < wanted:
        raise InputError(
            f"{kept.size} rows have under max_row_tokens = {settings.max_row_tokens} tokens, but train_rows = "
            f"{settings.train_rows} and validation_rows = {settings.validation_rows} need {wanted}: lower train_rows "
            "or validation_rows, or raise max_row_tokens"
        )
    order = kept[np.random.default_rng(settings.split_seed).permutation(kept.size)]
    return RowSplit(kept, order[settings.validation_rows : wanted], order[: settings.validation_rows])


def describe_selection(
    positions: Indices, selection: RowSplit, published: PublishedRows | Literal["not read"] | None
) -> SelectionRecord:
    """A selection, compared with the published one where there is one."""
    kept, train, validation = (
        describe_positions(positions[part]) for part in (selection.kept, selection.train, selection.validation)
    )
    differs: dict[str, Differences] = {}
    verdict: Verdict = "not published" if published is None else "published, not read by the kit"
    if isinstance(published, PublishedRows):
        compared = {
            "kept": _differences(kept, published.kept),
            "train": _differences(train, published.train),
            "validation": _differences(validation, published.validation),
        }
        differs = {part: found for part, found in compared.items() if found}
        verdict = "different" if differs else "equal"
    return SelectionRecord(published=verdict, kept=kept, train=train, validation=validation, differs=differs)


def describe_order(
    drawn: Indices, settings: TrainSettings, published: PublishedRows | Literal["not read"] | None
) -> OrderRecord:
    """The order of the rows drawn in every epoch, compared with the published one where there is one."""
    epochs = range(settings.optimizer.epochs)
    ours = [describe_positions(drawn[epoch_order(drawn.size, settings.order, epoch)]) for epoch in epochs]
    known = published.orders if isinstance(published, PublishedRows) else []
    found = {str(epoch): _differences(*pair) for epoch, pair in enumerate(zip(ours, known, strict=False))}
    differs: dict[str, Differences | tuple[int, int]] = {epoch: numbers for epoch, numbers in found.items() if numbers}
    if len(ours) != len(known):
        differs["epochs"] = (len(ours), len(known))
    verdict: Verdict = "different" if differs else "equal"
    if not known:
        verdict = "published, not read by the kit" if published == "not read" else "not published"
    return OrderRecord(published=verdict, epochs=ours, differs=differs if known else {})


def describe_positions(positions: Indices) -> PositionsRecord:
    """A list of row positions by its count, its ends, its sum, its first members and the hash of all."""
    listed = positions.tolist()
    return PositionsRecord(
        rows=len(listed),
        smallest=min(listed, default=None),
        largest=max(listed, default=None),
        sum=sum(listed),
        first=listed[:FIRST_POSITIONS],
        sha256=hashlib.sha256(",".join(map(str, listed)).encode("ascii")).hexdigest(),
    )


def _differences(ours: PositionsRecord, published: PositionsRecord) -> Differences:
    """What is published and not equal; numbers that are not published are not compared."""
    pairs: Differences = {name: (getattr(ours, name), value) for name, value in published if value not in (None, [])}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
