"""Which rows make an optimiser step, and which rank reads which of them. Plain Python.

What a step is depends on the settings alone. How it is shared out depends on the number of ranks, and changes only the
order in which the same terms are summed.
"""

from collections.abc import Sequence

from essence.distill import packing
from essence.settings import OptimizerSettings, Resources


def steps_of_epoch(lengths: Sequence[int], settings: OptimizerSettings) -> list[range]:
    """Indices of the rows of each step, in order: `batch_rows` rows, or the rows that `batch_tokens` tokens hold.

    The last step of an epoch may have fewer.
    """
    if settings.batch_tokens:
        return packing.steps_of_tokens(lengths, settings.batch_tokens)
    rows = len(lengths)
    return [range(first, min(first + settings.batch_rows, rows)) for first in range(0, rows, settings.batch_rows)]


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
