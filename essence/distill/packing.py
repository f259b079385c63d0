"""Which rows of an optimiser step go through the model together. Plain Python; the host uses it for its estimates.

The rows of a step, and so its loss and gradient, are given by the settings; here they are only shared out among forward
passes. Two ways, both of which sort the rows of one step and never move a row to another step:

- *packed*: rows lie one after the other in one sequence of at most `micro_batch_tokens` tokens, first-fit decreasing.
  Each row keeps its own positions and sees itself alone (`essence/distill/attention.py`);
- *length-grouped*: rows of similar length are stacked and padded to the longest, at most `micro_batch_rows` rows and
  `micro_batch_tokens` tokens with padding.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from essence.settings import Resources


class Shape(NamedTuple):
    """What one forward pass reads."""

    rows: int
    tokens: int
    """Of the rows themselves, with the pad that a first token is predicted from."""
    positions: int
    """Tokens and padding."""


def micro_batches(lengths: Sequence[int], packing: bool, multiple: int, resources: Resources) -> list[list[int]]:
    """Indices into `lengths` for each forward pass of one step; every index once, the longest rows first.

    Args:
        lengths: positions of each row of the step.
        packing: packed, or else length-grouped.
        multiple: sequence lengths are padded to a multiple of this.
        resources: `micro_batch_tokens` bounds a forward pass; a row that is longer has one for itself.
            `micro_batch_rows` bounds length-grouped batches only.
    """
    if packing:
        return first_fit_decreasing(lengths, resources.micro_batch_tokens)
    return length_grouped(lengths, resources.micro_batch_rows, resources.micro_batch_tokens, multiple)


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Share rows out among sequences of at most `capacity` tokens, in at most 11/9 of the fewest possible (plus one).

    Rows go from the longest to the shortest, each into the first sequence that still has room; a row longer than
    `capacity` has a sequence for itself.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for index in _longest_first(lengths):
        place = next((i for i, left in enumerate(room) if lengths[index] <= left), None)
        if place is None:
            bins.append([index])
            room.append(capacity - lengths[index])
        else:
            bins[place].append(index)
            room[place] -= lengths[index]
    return bins


def length_grouped(lengths: Sequence[int], most_rows: int, most_tokens: int, multiple: int) -> list[list[int]]:
    """Cut the rows, sorted by length, into batches of at most `most_rows` rows and `most_tokens` padded tokens."""
    batches: list[list[int]] = []
    for index in _longest_first(lengths):
        width = padded(lengths[batches[-1][0]], multiple) if batches else 0
        if batches and len(batches[-1]) < most_rows and width * (len(batches[-1]) + 1) <= most_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def shape(lengths: Sequence[int], batch: Sequence[int], packing: bool, multiple: int) -> Shape:
    """What the forward pass of one batch of `micro_batches` reads."""
    tokens = [lengths[index] for index in batch]
    positions = padded(sum(tokens), multiple) if packing else padded(max(tokens), multiple) * len(tokens)
    return Shape(len(batch), sum(tokens), positions)


def fill(shapes: Iterable[Shape]) -> float:
    """Share of the positions read that are tokens of a row; the rest is padding. 1.0 where nothing was read."""
    read = list(shapes)
    return sum(one.tokens for one in read) / max(1, sum(one.positions for one in read))


def steps_of_tokens(lengths: Sequence[int], most_tokens: int) -> list[range]:
    """Consecutive rows of each optimiser step where the effective batch is stated in tokens.

    A step ends before the row that would take it over `most_tokens`; it has at least one row.
    """
    steps: list[range] = []
    first, tokens = 0, 0
    for index, length in enumerate(lengths):
        if index > first and tokens + length > most_tokens:
            steps.append(range(first, index))
            first, tokens = index, 0
        tokens += length
    return [*steps, range(first, len(lengths))] if len(lengths) else []


def padded(tokens: int, multiple: int) -> int:
    """The next multiple of `multiple` from `tokens` on."""
    return -(-tokens // multiple) * multiple


def _longest_first(lengths: Sequence[int]) -> list[int]:
    """Equal lengths keep their order, so that the same step is shared out alike on every machine."""
    return sorted(range(len(lengths)), key=lambda index: -lengths[index])
