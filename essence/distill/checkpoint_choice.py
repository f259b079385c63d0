"""Which validation's weights are kept, from the losses alone. Plain Python.

The released code reduces nothing over its four GPUs: each watches the mean loss of its own validation rows, and
Lightning's ModelCheckpoint writes only where all of them are below what each had when it last wrote (executed:
Lightning 2.6.0, four processes). So the weights that are kept need not be those of the lowest mean. With one rank the
rule is just that: the lowest mean, of equal ones the first.
"""

import math
from collections.abc import Mapping, Sequence

from essence.data.truncation import Places
from essence.sizes.step_rows import filled


def validation_parts(rows: int, ranks: int) -> list[list[int]]:
    """Places of the validation rows that each rank watches: r, r + ranks, ...; filled up from the first where they do
    not divide."""
    places = filled(list(range(rows)), ranks)
    return [places[rank::ranks] for rank in range(ranks)]


def watched(places: Places, ranks: int) -> dict[tuple[int, ...], list[int]]:
    """Indices of the validation examples by the ranks that watch them; only rows that fill up have several."""
    of_place: dict[int, list[int]] = {}
    for rank, part in enumerate(validation_parts(places.rows, ranks)):
        for place in part:
            of_place.setdefault(place, []).append(rank)
    found: dict[tuple[int, ...], list[int]] = {}
    for index, place in enumerate(places.places):
        found.setdefault(tuple(of_place[place]), []).append(index)
    return found


def rank_means(sums: Mapping[tuple[int, ...], tuple[float, int]], ranks: int) -> list[float]:
    """Mean loss of each rank, from sum and number of the rows by the ranks that watch them.

    A rank all of whose rows were left out has none, and no say. In the released code such a row makes its rank's loss
    NaN at every validation, and the first checkpoint is the last.
    """
    of_rank = [[found for watchers, found in sums.items() if rank in watchers] for rank in range(ranks)]
    return [sum(loss for loss, _ in own) / sum(rows for _, rows in own) for own in of_rank if own]


def improves(losses: Sequence[float], kept: Sequence[float] | None) -> bool:
    """True when a validation's weights are to be kept.

    Args:
        losses: mean loss of each rank; one that is not a number is below nothing.
        kept: those of the validation whose weights are kept, as `remembered` has them; None = no validation so far,
            the first is kept whatever its losses.
    """
    return kept is None or all(new < old for new, old in zip(losses, kept, strict=True))


def remembered(losses: Sequence[float]) -> list[float]:
    """Losses as later ones are compared with them: NaN counts as infinity."""
    return [math.inf if math.isnan(loss) else loss for loss in losses]


def choose(curve: Sequence[Sequence[float]]) -> int | None:
    """Index of the validation whose weights are kept at the end of a training; None where there was none.

    Args:
        curve: losses of each rank, one entry per validation.
    """
    found: int | None = None
    kept: list[float] | None = None
    for index, losses in enumerate(curve):
        if improves(losses, kept):
            found, kept = index, remembered(losses)
    return found
