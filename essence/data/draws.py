"""Numbers drawn by (seed, row, token) alone: the same on every machine, at every proportion, in any order of the rows.

A hash takes the place of a generator, so nothing depends on what was drawn before. All of it is integers of 64 bits.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
LARGEST = (1 << 64) - 1


def mixed(numbers: NDArray[Any]) -> Hashes:
    """SplitMix64 of each number (Steele, Lea and Flood 2014; the constants of its published C text)."""
    z = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    found: Hashes = z ^ (z >> np.uint64(31))
    return found


def row_hashes(positions: NDArray[np.int64], seed: int) -> Hashes:
    """One number of 64 bits for each row, by its position in the data set and the seed."""
    return mixed(mixed(np.array([seed & LARGEST], np.uint64)) ^ positions.astype(np.uint64))


def drawn_starts(positions: NDArray[np.int64], seed: int, free: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where a part of each row begins that leaves `free` of its tokens out: 0 to `free`, each as likely.

    A row has one number at every proportion, so a longer part holds the shorter one.
    """
    high = mixed(row_hashes(positions, seed)) >> np.uint64(32)
    starts: NDArray[np.int64] = ((high * (free + 1).astype(np.uint64)) >> np.uint64(32)).astype(np.int64)
    return starts


def drawn_tokens(position: int, seed: int, candidates: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """So many of a row's tokens, in order: those of the smallest numbers, so a larger count holds the smaller one.

    Args:
        position: of the row in its data set.
        seed: of the draw.
        candidates: indices in the row, shape (n,), growing.
        count: at most n.
    """
    row = row_hashes(np.array([position], np.int64), seed)
    order = np.argsort(mixed(row + candidates.astype(np.uint64) + np.uint64(1)), kind="stable")
    chosen: NDArray[np.int64] = np.sort(candidates[order[:count]])
    return chosen


def least_sure(entropies: NDArray[np.float16], candidates: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """So many of a row's tokens, in order: those of the largest entropies, of equal ones the first.

    Nothing is drawn; a larger count holds the smaller one.

    Args:
        entropies: of each token of the row, shape (L,).
        candidates: indices in the row, shape (n,), growing.
        count: at most n.
    """
    order = np.argsort(-entropies[candidates], kind="stable")
    chosen: NDArray[np.int64] = np.sort(candidates[order[:count]])
    return chosen


def growing_lengths(kept: Sequence[int], lengths: Sequence[int], steps: Sequence[int], lsp: float) -> list[int]:
    """Tokens of each reading of a row where the proportion grows over the training up to 1.0, `lsp` on average.

    The proportion of a step is that of its middle, on a straight line from 2 * lsp - 1 to 1.0 over all tokens. The
    midpoint rule is exact on a line, and what is rounded off one reading goes to the next: the sum is that of `kept`.

    Args:
        kept: tokens of each reading under the constant proportion `lsp`, in the order of reading; 0 of one that is left
            out.
        lengths: tokens of its whole row.
        steps: number of its step.
        lsp: at least 0.5.
    """
    part, whole = lsp.as_integer_ratio()
    total, of_step = sum(kept), dict.fromkeys(steps, 0)
    for tokens, step in zip(kept, steps, strict=True):
        of_step[step] += tokens
    slopes, before = {}, 0
    for step, tokens in of_step.items():
        slopes[step] = (2 * part - whole) * 2 * total + 2 * (whole - part) * (2 * before + tokens)
        before += tokens
    found, exact, divisor = [], 0, 2 * total * part
    for tokens, length, step in zip(kept, lengths, steps, strict=True):
        further = exact + slopes[step] * tokens
        # At least one token, and no more than there are: the product in `kept` is rounded to float64.
        found.append(min(length, max(1, further // divisor - exact // divisor)) if tokens else 0)
        exact = further
    return found
