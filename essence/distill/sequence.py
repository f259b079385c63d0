"""Which tokens of a tokenised row are read, and which of them are supervised: the rules of the paper as NumPy.

A row is a whole rendered conversation of `L` tokens. A *span* keeps a share of it, *sections* choose the labels inside
what is kept. Nothing here needs a tokenizer or torch, so the host side uses the same rules for its estimates.

Source: "Distilling the Essence", sections on sequence truncation and on supervised sections; the numbered traps are the
rows of DEVIATIONS.md.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from essence.errors import InputError
from essence.settings import LSP, RowsSettings, Span, ViewSettings

Tokens = NDArray[np.int32]
Mask = NDArray[np.bool_]
Indices = NDArray[np.int64]


class SkipReason(StrEnum):
    """Why a row has no example under a view; counted by the stage that asked for it."""

    NO_MARKER = "no marker"
    """`<think>` or `</think>` is absent, so no section is known (trap 11: the released code gives NaN)."""
    MARKERS_OUT_OF_ORDER = "markers out of order"
    """The first `</think>` stands before the first `<think>`, for instance in the prompt."""
    NOTHING_SUPERVISED = "nothing supervised"
    """No token that is kept is also a label (trap 10: the section lies outside the span)."""


@dataclass(frozen=True)
class Example:
    """What a model reads of one row, and which of it is predicted."""

    row: int
    """Position of the row in its data set."""
    input_ids: Tokens
    """Tokens that are read, int32, shape (L,)."""
    supervised: Mask
    """bool, shape (L,): token i is a label, predicted from the tokens before i. Index 0 never is."""
    first: int = 0
    """Index in the whole row of the first token that is read."""


@dataclass(frozen=True)
class Examples:
    """The examples of some rows, and what was left out."""

    examples: list[Example]
    skipped: dict[str, int]
    """Reason -> number of rows."""

    @property
    def tokens(self) -> int:
        return sum(example.input_ids.size for example in self.examples)

    @property
    def supervised_tokens(self) -> int:
        return sum(int(np.count_nonzero(example.supervised)) for example in self.examples)


@dataclass(frozen=True)
class Selection:
    """Row indices (into the tokenised rows, not data set positions) that a cell uses, in order; int64."""

    train: Indices
    validation: Indices


def kept_length(length: int, lsp: LSP) -> int:
    """Tokens that a lead-span proportion keeps of `length`: `max(1, int(length * lsp))` in float64, as released.

    Exact arithmetic differs by one token at some lengths (lsp 0.7: 70 lengths up to 4,096), so floats it is.
    """
    return max(1, int(length * lsp))


def span_window(length: int, lsp: LSP, span: Span) -> tuple[int, int]:
    """Start and stop of the kept span in a row of `length` tokens; `middle` leaves the odd token on its right."""
    kept = kept_length(length, lsp)
    start = {"left": 0, "middle": (length - kept) // 2, "right": length - kept}[span]
    return start, start + kept


def section_mask(length: int, think_start: int, think_end: int, view: ViewSettings) -> Mask:
    """Tokens of the supervised sections in a whole row; bool, shape (length,).

    Prompt is what stands before `<think>` (index `think_start`), CoT is `<think>` to `</think>` (index `think_end`)
    with both markers, answer is what follows. With `view.cot_includes_next_token`, CoT and P+CoT take one token of the
    answer too (trap 9).
    """
    names = view.sections.split("+")
    mask = np.zeros(length, dtype=np.bool_)
    if "p" in names:
        mask[:think_start] = True
    if "cot" in names:
        mask[think_start : think_end + 1 + view.cot_includes_next_token] = True
    if "a" in names:
        mask[think_end + 1 :] = True
    return mask


def make_example(
    row: int, input_ids: Tokens, think_start: int, think_end: int, view: ViewSettings, eos_id: int
) -> Example | SkipReason:
    """What a view shows of one row, or why it shows nothing.

    Args:
        row: position of the row in its data set.
        input_ids: the whole rendered row, int32, shape (L,). Never copied, only sliced.
        think_start: index of the first `<think>` in `input_ids`, -1 where absent.
        think_end: index of the first `</think>`, -1 where absent.
        view: span, sections, and how the traps 3, 6 and 9 are handled.
        eos_id: token that is masked out of the labels unless `view.supervise_end_of_sequence`.

    Rows without markers are skipped under every span and section, so that all cells of a matrix train on the same rows.
    """
    if think_start < 0 or think_end < 0:
        return SkipReason.NO_MARKER
    if think_end < think_start:
        return SkipReason.MARKERS_OUT_OF_ORDER
    start, stop = span_window(input_ids.size, view.lsp, view.span)
    first_read = 0 if view.keep_context else start
    supervised = section_mask(input_ids.size, think_start, think_end, view)[first_read:stop]
    supervised[: start - first_read] = False
    supervised[0] = False  # nothing stands before it from which it could be predicted
    read = input_ids[first_read:stop]
    if not view.supervise_end_of_sequence:
        supervised &= read != eos_id
    if not supervised.any():
        return SkipReason.NOTHING_SUPERVISED
    return Example(row, read, supervised, first_read)


def collect(outcomes: Iterable[Example | SkipReason]) -> Examples:
    """Part examples from skipped rows, and count the latter by reason."""
    examples: list[Example] = []
    skipped: Counter[str] = Counter()
    for outcome in outcomes:
        if isinstance(outcome, Example):
            examples.append(outcome)
        else:
            skipped[outcome.value] += 1
    return Examples(examples, dict(sorted(skipped.items())))


def select_rows(lengths: ArrayLike, settings: RowsSettings) -> Selection:
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
    return Selection(order[settings.validation_rows : wanted], order[: settings.validation_rows])


def fingerprint(examples: Sequence[Example]) -> str:
    """Hex sha256 of exactly what is trained on; the same on every machine.

    The hashed bytes are, for each example in order: its length as int64, its token ids as int32, its label mask as one
    byte a token (0 or 1); integers little-endian. Row positions are not in it, so equal data gives equal hashes.
    """
    digest = hashlib.sha256()
    for example in examples:
        digest.update(np.array([example.input_ids.size], dtype="<i8").tobytes())
        digest.update(example.input_ids.astype("<i4", copy=False).tobytes())
        digest.update(example.supervised.tobytes())
    return digest.hexdigest()
