"""Which rows make an optimiser step, and which rank reads which of them. Plain Python.

What a step is depends on the settings alone. How it is shared out depends on the number of ranks, and changes only the
order in which the same terms are summed.
"""

from collections.abc import Sequence

from essence.distill import packing
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
        steps = packing.steps_of_tokens([lengths[index] for index in rows], settings.batch_tokens)
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
    return [[share[i] for i in part] for part in packing.micro_batches(own, packed, multiple, resources)]
