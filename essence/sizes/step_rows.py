"""Which rows make an optimiser step, and which rank reads which of them. Plain Python.

What a step is depends on the settings alone. How it is shared out depends on the number of ranks, and changes only the
order in which the same terms are summed.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from essence.settings import OptimizerSettings, Resources

Step = list[int]
"""Indices of the rows of one optimiser step."""


def filled(places: Sequence[int], multiple: int) -> list[int]:
    """Places filled up to a multiple by those they start with, over and over where they are few.

    As torch's DistributedSampler does without `drop_last`, so that every rank has equally many; executed under
    Lightning 2.6.0, which leaves it that way for training and validation.
    """
    missing = -len(places) % multiple if places else 0
    return [*places, *(places[index % len(places)] for index in range(missing))]


def steps_of_epoch(order: Sequence[int | None], lengths: Sequence[int], settings: OptimizerSettings) -> list[Step]:
    """Rows of each step: `batch_rows` places of the order, or the rows that `batch_tokens` tokens hold.

    The last step of an epoch may have fewer, and so may one with places of rows that were left out; one without any row
    is no step.

    Args:
        order: index of the row at each place, in the order of the epoch; None where it was left out.
        lengths: tokens read of each row.
        settings: the effective batch.
    """
    if settings.batch_tokens:
        rows = [index for index in order if index is not None]
        steps = steps_of_tokens([lengths[index] for index in rows], settings.batch_tokens)
        return [rows[step.start : step.stop] for step in steps]
    places = range(0, len(order), settings.batch_rows)
    chunks = (order[first : first + settings.batch_rows] for first in places)
    return [step for chunk in chunks if (step := [index for index in chunk if index is not None])]


def deal(
    lengths: Sequence[int], processes: int, packed: bool, multiple: int, resources: Resources
) -> list[list[list[int]]]:
    """Forward passes of every rank: indices into `lengths`, each once.

    Rows go from the longest to the shortest, each to the rank with the fewest tokens. All ranks have equally many
    passes, since they meet in each of them: one that has nothing left to read has an empty pass.
    """
    shares: list[list[int]] = [[] for _ in range(processes)]
    if processes == 1:
        shares = [list(range(len(lengths)))]
    else:
        for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
            min(shares, key=lambda share: sum(lengths[i] for i in share)).append(index)
    passes = [_passes(lengths, share, packed, multiple, resources) for share in shares]
    most = max(map(len, passes))
    return [[*own, *([[]] * (most - len(own)))] for own in passes]


def _passes(
    lengths: Sequence[int], share: Sequence[int], packed: bool, multiple: int, resources: Resources
) -> list[list[int]]:
    own = [lengths[index] for index in share]
    return [[share[i] for i in part] for part in micro_batches(own, packed, multiple, resources)]


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
