"""Completions that go round in circles: students of truncated traces may never stop, and each costs the cap.

A completion loops where `tokens` tokens in a row are one block of tokens repeated at least `repeats` times over (the
block has at most `tokens / repeats` tokens, the last repetition may be cut short). The rule looks at token ids alone,
so what it finds does not depend on who decoded or how often anybody looked.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LOOK_EVERY_TOKENS = 64
"""How often a decoder looks at the tail of what it is generating; no result depends on it."""


@dataclass(frozen=True)
class LoopRule:
    """When a completion counts as looping, and whether it is then cut."""

    tokens: int
    repeats: int
    cut: bool

    @property
    def longest_block(self) -> int:
        return self.tokens // self.repeats


def loop_end(token_ids: Sequence[int], rule: LoopRule) -> int | None:
    """Number of leading tokens at which the first loop is complete; None without one."""
    ids = np.asarray(token_ids, dtype=np.int64)
    ends = [end for block in range(1, rule.longest_block + 1) if (end := _first_end(ids, block, rule.tokens))]
    return min(ends, default=None)


def ends_in_loop(token_ids: Sequence[int], rule: LoopRule) -> bool:
    """True when the last `rule.tokens` tokens are a loop; cheap, for a look while a completion grows."""
    if len(token_ids) < rule.tokens:
        return False
    tail = np.asarray(token_ids[-rule.tokens :], dtype=np.int64)
    backwards = tail[::-1]
    blocks = np.flatnonzero(backwards[1 : rule.longest_block + 1] == tail[-1]) + 1
    return any(bool(np.array_equal(tail[block:], tail[:-block])) for block in blocks.tolist())


def _first_end(ids: np.ndarray[tuple[int], np.dtype[np.int64]], block: int, tokens: int) -> int:
    """Where `tokens` tokens in a row first repeat with this block length; 0 = nowhere."""
    wanted = tokens - block
    if len(ids) < tokens:
        return 0
    breaks = np.flatnonzero(ids[block:] != ids[:-block])
    starts = np.concatenate(([0], breaks + 1))
    lengths = np.concatenate((breaks, [len(ids) - block])) - starts
    long = np.flatnonzero(lengths >= wanted)
    return int(starts[long[0]]) + tokens if len(long) else 0
