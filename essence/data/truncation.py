"""Which tokens of a tokenised row are read, and which of them are supervised: the rules of the paper as NumPy.

A row is a whole rendered conversation of `L` tokens. A *span* keeps a share of it, *sections* choose the labels inside
what is kept; docs/data.md has both as tables. All rows of a data set are cut at once, as arrays. Nothing here needs a
tokenizer or torch, so the host side uses the same rules for its estimates.

Source: "Distilling the Essence", sections on sequence truncation and on supervised sections; the numbered traps are the
rows of DEVIATIONS.md.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from essence.errors import InputError
from essence.settings import LSP, TrainSettings, ViewSettings

Tokens = NDArray[np.int32]
Mask = NDArray[np.bool_]
Indices = NDArray[np.int64]


class SkipReason(StrEnum):
    """Why a row has no example under a view; counted by the stage that asked for it."""

    NO_MARKER = "no marker"
    """`<think>` or `</think>` is absent, so no section is known (trap 11: the released code gives NaN)."""
    MARKERS_OUT_OF_ORDER = "markers out of order"
    """The first `</think>` comes before the first `<think>`, for instance in the prompt, and the view does not train
    on such rows."""
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
    """bool, shape (L,): token i is a label, predicted from the tokens before i. Index 0 is one only beside `pad`."""
    first: int = 0
    """Index in the whole row of the first token that is read."""
    pad: int | None = None
    """Id of the padding token from which token 0 is predicted; None where token 0 is no label (trap 23)."""

    @property
    def positions(self) -> int:
        """Positions that a forward pass gives the row: its tokens, and one for the pad."""
        return self.input_ids.size + (self.pad is not None)


@dataclass(frozen=True)
class Places:
    """Where some examples stand among the rows they were drawn from, of which others may have been left out."""

    places: Sequence[int]
    rows: int
    """Rows there were."""

    @classmethod
    def of(cls, examples: Sequence[Example]) -> "Places":
        """Of rows none of which was left out."""
        return cls(range(len(examples)), len(examples))


@dataclass(frozen=True)
class Examples:
    """The examples of some rows, and what was left out."""

    examples: list[Example]
    skipped: dict[str, int]
    """Reason -> number of rows."""
    places: Places

    @property
    def tokens(self) -> int:
        return sum(example.input_ids.size for example in self.examples)

    @property
    def supervised_tokens(self) -> int:
        return sum(int(np.count_nonzero(example.supervised)) for example in self.examples)


@dataclass(frozen=True)
class SectionBounds:
    """Where the sections of some rows lie; int64, shape (rows,) each."""

    lengths: Indices
    """Tokens of each whole rendered row."""
    think_start: Indices
    """Index of the first `<think>`, -1 where absent."""
    think_end: Indices
    """Index of the first `</think>`, -1 where absent."""

    @classmethod
    def of(cls, lengths: ArrayLike, think_start: ArrayLike, think_end: ArrayLike) -> "SectionBounds":
        """From any integers, one or many."""
        return cls(*(np.atleast_1d(np.asarray(values, np.int64)) for values in (lengths, think_start, think_end)))


@dataclass(frozen=True)
class SpanWindows:
    """What a span keeps of some rows, as indices into each row; int64, shape (rows,) each."""

    first_read: Indices
    first_label: Indices
    """Tokens from `first_read` up to here are context: read, never a label."""
    stop: Indices
    """Nothing from here on is read."""


def kept_length(length: int, lsp: LSP) -> int:
    """Tokens that a lead-span proportion keeps of `length`: `max(1, int(length * lsp))` in float64, as released.

    Exact arithmetic differs by one token at some lengths (lsp 0.7: 70 lengths up to 4,096), so floats it is.
    """
    return int(kept_lengths(np.array([length]), lsp)[0])


def kept_lengths(lengths: Indices, lsp: LSP) -> Indices:
    """`kept_length` of many rows at once; a product of float64 rounds the same here and in plain Python."""
    return np.maximum(1, (lengths * float(lsp)).astype(np.int64))


def span_windows(bounds: SectionBounds, view: ViewSettings) -> SpanWindows:
    """What a span keeps; rows without markers get windows too, which mean nothing under `cot-lead`.

    `middle` leaves the odd token on its right. `right-with-context` reads the whole row and `cot-lead` the whole prompt
    with the first tokens of the chain of thought, markers included; neither reads more at `view.keep_context`.
    """
    kept, start = kept_lengths(bounds.lengths, view.lsp), np.zeros_like(bounds.lengths)
    if view.span == "cot-lead":
        thought = bounds.think_end - bounds.think_start + 1
        return SpanWindows(start, start, bounds.think_start + kept_lengths(thought, view.lsp))
    if view.span == "middle":
        start = (bounds.lengths - kept) // 2
    elif view.span in ("right", "right-with-context"):
        start = bounds.lengths - kept
    has_context = view.keep_context or view.span == "right-with-context"
    return SpanWindows(np.zeros_like(start) if has_context else start, start, start + kept)


def reads_prefix(view: ViewSettings) -> bool:
    """True when a view reads every row from its first token on, whatever it supervises.

    Then, since models are causal, the states of what it reads are those of the whole row.
    """
    return view.keep_context or view.lsp == 1.0 or view.span in ("left", "right-with-context", "cot-lead")


def validation_view(settings: TrainSettings) -> ViewSettings:
    """The training view, or with `validation_view = "full"` the same sections of whole rows (trap 8)."""
    if settings.validation_view == "same":
        return settings.view
    return settings.view.model_copy(update={"lsp": 1.0, "span": "left"})


def section_intervals(bounds: SectionBounds, view: ViewSettings) -> list[tuple[Indices, Indices]]:
    """(start, stop) of the supervised sections in whole rows, as one or two intervals.

    Prompt is what comes before `<think>` (index `think_start`), CoT is `<think>` to `</think>` (index `think_end`)
    with both markers, answer is what follows. With `view.cot_includes_next_token`, CoT and P+CoT take one token of the
    answer too (trap 9).
    """
    row_start, answer = np.zeros_like(bounds.lengths), bounds.think_end + 1
    cot_stop = np.minimum(answer + view.cot_includes_next_token, bounds.lengths)
    intervals = {
        "a": [(answer, bounds.lengths)],
        "p+a": [(row_start, bounds.think_start), (answer, bounds.lengths)],
        "cot": [(bounds.think_start, cot_stop)],
        "cot+a": [(bounds.think_start, bounds.lengths)],
        "p+cot": [(row_start, cot_stop)],
        "p+cot+a": [(row_start, bounds.lengths)],
    }
    return intervals[view.sections]


def make_examples(
    positions: Indices, rows: Iterable[Tokens], bounds: SectionBounds, view: ViewSettings, eos_id: int
) -> Iterator[Example | SkipReason]:
    """What a view shows of each row, or why it shows nothing.

    Args:
        positions: of the rows in their data set, int64, shape (rows,).
        rows: the whole rendered rows, int32, shape (L,) each. Never copied, only sliced.
        bounds: where their sections are.
        view: span, sections, and how the traps 3, 6, 9, 23 and 24 are handled.
        eos_id: token that is masked out of the labels unless `view.supervise_end_of_sequence`, and the pad.

    Rows without markers are skipped under every span and section, so that all cells of a matrix train on the same rows.
    """
    windows, no_marker = span_windows(bounds, view), (bounds.think_start < 0) | (bounds.think_end < 0)
    misplaced = bounds.think_end < bounds.think_start
    first_label = first_labels(windows, view)
    labels = [
        ((np.maximum(start, first_label) - windows.first_read), (np.minimum(stop, windows.stop) - windows.first_read))
        for start, stop in section_intervals(bounds, view)
    ]
    plain = zip(*(array.tolist() for interval in labels for array in interval), strict=True)
    numbers = (array.tolist() for array in (positions, no_marker, misplaced, windows.first_read, windows.stop))
    for place, (input_ids, ends, (position, lacking, out_of_order, first_read, stop)) in enumerate(
        zip(rows, plain, zip(*numbers, strict=True), strict=True)
    ):
        if lacking or (out_of_order and not trains_misordered(view)):
            yield SkipReason.NO_MARKER if lacking else SkipReason.MARKERS_OUT_OF_ORDER
            continue
        read = input_ids[first_read:stop]
        if out_of_order:
            markers = int(input_ids[bounds.think_start[place]]), int(input_ids[bounds.think_end[place]])
            ends = misordered_labels(read, markers, int(first_label[place]) - first_read, view) or ends
        yield _example(position, first_read, read, ends, view, eos_id)


def first_labels(windows: SpanWindows, view: ViewSettings) -> Indices:
    """Index in each row of the first token that can be a label.

    Nothing comes before the first token that is read, unless it is a pad on the left (trap 23): that is so where the
    number of tokens read is no multiple of `view.left_pad_multiple`.
    """
    if not view.left_pad_multiple:
        return np.maximum(windows.first_label, windows.first_read + 1)
    padded = (windows.stop - windows.first_read) % view.left_pad_multiple != 0
    first: Indices = np.maximum(windows.first_label, windows.first_read + ~padded)
    return first


def trains_misordered(view: ViewSettings) -> bool:
    """True when rows with `</think>` before `<think>` are trained on; under `cot-lead` they have no thought to lead."""
    return view.misordered_markers == "train" and view.span != "cot-lead"


def misordered_labels(
    read: Tokens, markers: tuple[int, int], first_label: int, view: ViewSettings
) -> tuple[int, ...] | None:
    """Ends of the labels of a row with `</think>` before `<think>`, as released: by the first markers in what is read.

    Args:
        read: the tokens that are read.
        markers: ids of `<think>` and `</think>`.
        first_label: index in `read` of the first token that can be a label.
        view: names the sections. Without `<think>` the prompt is empty.

    Returns:
        Start and stop of each interval; None where the sections cannot be computed so, since a marker that they need is
        not read (the released code crashes, or ignores every label): then the positions in the whole row hold.
    """
    start, end = (int(found[0]) if (found := np.flatnonzero(read == marker)).size else None for marker in markers)
    needs_start, needs_end = view.sections in ("cot", "cot+a"), view.sections not in ("cot+a", "p+cot+a")
    if (needs_start and start is None) or (needs_end and end is None):
        return None
    bounds = SectionBounds.of(read.size, start or 0, end or 0)
    ends = (edge for interval in section_intervals(bounds, view) for edge in interval)
    return tuple(max(int(edge[0]), first_label) for edge in ends)


def _example(
    position: int, first_read: int, read: Tokens, ends: Sequence[int], view: ViewSettings, eos_id: int
) -> Example | SkipReason:
    """`ends`: start and stop of each interval of labels in what is read; a stop before its start is an empty one."""
    supervised = np.zeros(read.size, dtype=np.bool_)
    for start, stop in zip(ends[::2], ends[1::2], strict=True):
        supervised[start : max(start, stop)] = True
    if not view.supervise_end_of_sequence:
        supervised &= read != eos_id
    if not supervised.any():
        return SkipReason.NOTHING_SUPERVISED
    return Example(position, read, supervised, first_read, eos_id if supervised[0] else None)


def within_budget(outcomes: Iterable[Example | SkipReason], budget: int) -> Iterator[Example | SkipReason]:
    """The first outcomes, in order, whose tokens read add up to at most `budget`; no row is cut for it.

    Raises:
        InputError: the first row alone has more, or all rows together have fewer, so that two arms of equal budget
            would not have read the same number of tokens.
    """
    tokens = 0
    for outcome in outcomes:
        size = outcome.input_ids.size if isinstance(outcome, Example) else 0
        if tokens + size > budget:
            if tokens == 0:
                raise InputError(f"token_budget = {budget}, but the first row alone has {size} tokens: raise it")
            return
        tokens += size
        yield outcome
    if tokens < budget:
        raise InputError(
            f"token_budget = {budget}, but all the rows that train_rows lets in have only {tokens} tokens under this "
            "span: lower token_budget or raise train_rows"
        )


def collect(outcomes: Iterable[Example | SkipReason]) -> Examples:
    """Part examples from skipped rows, and count the latter by reason."""
    examples: list[Example] = []
    places: list[int] = []
    skipped: Counter[str] = Counter()
    for place, outcome in enumerate(outcomes):
        if isinstance(outcome, Example):
            examples.append(outcome)
            places.append(place)
        else:
            skipped[outcome.value] += 1
    left_out = dict(sorted(skipped.items()))
    return Examples(examples, left_out, Places(places, len(examples) + sum(left_out.values())))


def fingerprint(examples: Sequence[Example]) -> str:
    """Hex sha256 of exactly what is trained on; the same on every machine.

    The hashed bytes are, for each example in order: its length as int64, its token ids as int32, its label mask as one
    byte a token (0 or 1), and where it has a pad its id as int32; integers little-endian. Row positions are not in it,
    so equal data gives equal hashes.
    """
    digest = hashlib.sha256()
    for example in examples:
        digest.update(np.array([example.input_ids.size], dtype="<i8").tobytes())
        digest.update(example.input_ids.astype("<i4", copy=False).tobytes())
        digest.update(example.supervised.tobytes())
        if example.pad is not None:
            digest.update(np.array([example.pad], dtype="<i4").tobytes())
    return digest.hexdigest()
