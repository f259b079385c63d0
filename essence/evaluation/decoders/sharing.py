"""Requests shared out among copies of a model while they decode: who has few left takes from what nobody has begun.

A copy reports after every `ROUND_STEPS` steps of its engine, or as soon as it has nothing to do, how many of its
requests wait. What it is handed then follows from what all copies reported a round before, and from nothing else: the
clock has no say, so the same requests are decoded in the same company each time. A copy may be a round ahead of the
slowest one; where nothing is left to hand out, copies no longer report.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from essence.evaluation.requests import Request

ROUND_STEPS = 16
"""Steps of an engine between two reports: of some 20 ms each on a GPU, so that asking costs nothing."""
OPENING_PART = 4
"""A copy begins with its share of the first of so many parts."""
AHEAD_PART = 32
"""As many wait at a copy as this part of the sequences that it may decode together, ..."""
ROUNDS_AHEAD = 2
"""... and as it began in so many rounds: an answer comes a round late."""


class Handed(NamedTuple):
    """What a copy is given."""

    requests: list[Request]
    last: bool
    """True when nothing will follow."""


class SharedRequests:
    """Deals requests out; plain arithmetic, without processes."""

    def __init__(self, requests: Sequence[Request], copies: int, batch_sequences: int) -> None:
        self.copies = copies
        self.ahead = max(1, batch_sequences // AHEAD_PART)
        opened = max(len(requests) // OPENING_PART, copies * self.ahead)
        self._opening = [list(requests[copy:opened:copies]) for copy in range(copies)]
        self._left = deque(requests[opened:])
        self._held = list(map(len, self._opening))
        """Requests that had not begun at a copy when it had its last answer."""
        self._reports: list[list[int | None]] = []
        """Round -> copy -> requests that wait; None = not reported yet."""
        self._dealt: list[list[list[Request]]] = [[[] for _ in range(copies)]]
        """Round -> copy -> what it is handed in answer to its report of that round."""
        self._next = [0] * copies
        """The round that a copy reports next."""
        self._last_round = 0 if not self._left else None
        self._unanswered: set[int] = set()

    def opening(self, copy: int) -> Handed:
        """What a copy begins with."""
        return Handed(self._opening[copy], not self._left)

    def report(self, copy: int, waiting: int) -> Iterator[tuple[int, Handed]]:
        """Take the report of a copy in; answers, each for a copy, to all reports that can be answered now."""
        number = self._next[copy]
        while len(self._reports) <= number:
            self._reports.append([None] * self.copies)
        self._reports[number][copy] = waiting
        self._next[copy] += 1
        self._unanswered.add(copy)
        while self._last_round is None and len(self._dealt) <= len(self._reports):
            if not self._deal():
                break
        for other in sorted(self._unanswered):
            of = self._next[other] - 1
            if of < len(self._dealt):
                self._unanswered.remove(other)
                yield other, Handed(self._dealt[of][other], of == self._last_round)

    def _deal(self) -> bool:
        """Deal for the answers of the next round; False where a copy has not reported of the one before."""
        number = len(self._dealt)
        waiting = [count for count in self._reports[number - 1] if count is not None]
        if len(waiting) < self.copies:
            return False
        coming = list(map(len, self._dealt[number - 1]))
        begun = [had - waits for had, waits in zip(self._held, waiting, strict=True)]
        self._held = [waits + comes for waits, comes in zip(waiting, coming, strict=True)]
        wanted = [
            self.ahead + ROUNDS_AHEAD * max(0, begins) - held for begins, held in zip(begun, self._held, strict=True)
        ]
        dealt: list[list[Request]] = [[] for _ in range(self.copies)]
        while self._left and max(wanted) > 0:
            for copy in range(self.copies):
                if self._left and wanted[copy] > 0:
                    dealt[copy].append(self._left.popleft())
                    wanted[copy] -= 1
        self._dealt.append(dealt)
        if not self._left:
            self._last_round = number
        return True
