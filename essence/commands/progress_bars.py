"""Bars and estimates of what is left, for a run in this terminal and for one that is watched."""

from collections.abc import Iterable, Mapping, Sequence

from essence.record.live_records import ProgressRecord
from essence.text import duration


def seconds_of_rest(finished: Mapping[str, Sequence[float]], left: Iterable[str]) -> float | None:
    """Time that stages of these kinds will take one after the other, by the mean of the finished ones of each kind.

    finished: kind -> seconds of each. None while a kind has no finished stage.
    """
    means = {kind: sum(seconds) / len(seconds) for kind, seconds in finished.items() if seconds}
    kinds = list(left)
    return sum(means[kind] for kind in kinds) if all(kind in means for kind in kinds) else None


def left_words(record: ProgressRecord | None) -> str:
    """`, 3.0 min left`; nothing where the stage does not say."""
    known = record.seconds_left if record else None
    return f", {duration(known)} left" if known is not None else ""
