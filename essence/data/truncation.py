"""From rows to examples: the tokens of a selection, its labels as a mask, and what is said of rows that have none.

All rows of a data set are cut at once, as arrays. Nothing here needs a tokenizer or torch.

Source: "Distilling the Essence", sections on sequence truncation and on supervised sections; the numbered traps are the
rows of DEVIATIONS.md.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from essence.data.draws import drawn_tokens, least_sure
from essence.data.selection import Indices, SectionBounds, Selection, kept_length, section_intervals, select
from essence.errors import InputError
from essence.settings import ViewSettings, first_tokens

Tokens = NDArray[np.int32]
Mask = NDArray[np.bool_]
Entropies = NDArray[np.float16]
"""Of a teacher's distribution for each token of a whole row, in nats; shape (L,)."""


class SkipReason(StrEnum):
    """Why a row has no example under a view; counted by the stage that asked for it."""

    NO_MARKER = "no marker"
    """`<think>` or `</think>` is absent, so no section is known (trap 11: the released code gives NaN)."""
    MARKERS_OUT_OF_ORDER = "markers out of order"
    """The first `</think>` comes before the first `<think>`, for instance in the prompt, and the view does not train
    on such rows."""
    NOTHING_SUPERVISED = "nothing supervised"
    """No token that is kept is also a label (trap 10: the section lies outside the span)."""


class Note(StrEnum):
    """What is said of a row that is trained on all the same; counted by the stage that asked for it."""

    SHORT_THOUGHT = "chain of thought shorter than k, kept whole"
    NO_ANSWER = "no final answer found, kept whole"
    EMPTY_THOUGHT = "nothing between the markers"


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
    note: Note | None = None

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
    readings: bool = False
    """True when the examples are readings of rows, which differ: places are then counted through the orders of all
    epochs."""

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
    def noted(self) -> dict[str, int]:
        """What is said of examples that are there -> of how many."""
        return dict(sorted(Counter(example.note.value for example in self.examples if example.note).items()))

    @property
    def tokens(self) -> int:
        return sum(example.input_ids.size for example in self.examples)

    @property
    def supervised_tokens(self) -> int:
        return sum(int(np.count_nonzero(example.supervised)) for example in self.examples)


def make_examples(
    positions: Indices,
    rows: Iterable[Tokens],
    bounds: SectionBounds,
    view: ViewSettings,
    eos_id: int,
    kept: Indices | None = None,
    entropies: Iterable[Entropies] | None = None,
) -> Iterator[Example | SkipReason]:
    """What a view shows of each row, or why it shows nothing.

    Args:
        positions: of the rows in their data set, int64, shape (rows,).
        rows: the whole rendered rows, int32, shape (L,) each. Sliced, and copied only where slices are put together.
        bounds: where their sections are.
        view: span, sections, and how the traps 3, 6, 9, 23 and 24 are handled.
        eos_id: token that is masked out of the labels unless `view.supervise_end_of_sequence`, and the pad.
        kept: as in `select`.
        entropies: of each row, which `teacher-entropy` below 1.0 chooses labels by; each as long as its row.

    Rows without markers are skipped under every span and section, so that all cells of a matrix train on the same rows.
    """
    chosen, no_marker = select(bounds, view, positions, kept), (bounds.think_start < 0) | (bounds.think_end < 0)
    misplaced = bounds.think_end < bounds.think_start
    first_label, notes = first_labels(chosen, bounds, view), _notes(bounds, view)
    slices = chosen.slices(bounds.lengths)
    cuts = zip(*(array.tolist() for one in slices for array in one), strict=True)
    ends = zip(*(array.tolist() for one in _label_intervals(slices, first_label, bounds, view) for array in one),
               strict=True)  # fmt: skip
    numbers = (array.tolist() for array in (positions, no_marker, misplaced, first_label))
    rankings: Iterable[Entropies | None] = [None] * positions.size if entropies is None else entropies
    for place, (input_ids, ranking, cut, labels, note, (position, lacking, out_of_order, first)) in enumerate(
        zip(rows, rankings, cuts, ends, notes, zip(*numbers, strict=True), strict=True)
    ):
        if lacking or (out_of_order and not trains_misordered(view)):
            yield SkipReason.NO_MARKER if lacking else SkipReason.MARKERS_OUT_OF_ORDER
            continue
        read = input_ids[cut[0] : cut[1]]
        if len(cut) > 2:
            read = np.concatenate([read, input_ids[cut[2] : cut[3]]])
        if out_of_order:
            markers = int(input_ids[bounds.think_start[place]]), int(input_ids[bounds.think_end[place]])
            labels = misordered_labels(read, markers, first - cut[0], view) or labels
        yield _example(position, cut[0], read, labels, view, eos_id, note, ranking)


def _label_intervals(
    slices: Sequence[tuple[Indices, Indices]], first_label: Indices, bounds: SectionBounds, view: ViewSettings
) -> Iterator[tuple[Indices, Indices]]:
    """(start, stop) of the supervised sections in what is read of each row; a stop before its start is an empty one."""
    behind = np.zeros_like(bounds.lengths)
    for first, last in slices:
        for start, stop in section_intervals(bounds, view):
            begins = np.maximum(np.maximum(start, first_label), first)
            yield begins - first + behind, np.minimum(stop, last) - first + behind
        behind = behind + last - first


def _notes(bounds: SectionBounds, view: ViewSettings) -> list[Note | None]:
    """What is to be said of each row under this span."""
    thought, said, note = bounds.think_end - bounds.think_start + 1, np.zeros(bounds.lengths.size, np.bool_), None
    if most := first_tokens(view.span):
        said, note = thought < most, Note.SHORT_THOUGHT
    elif view.span == "to-first-answer":
        said, note = bounds.found_answers() < 0, Note.NO_ANSWER
    elif view.span == "lead+answer":
        said, note = thought <= 2, Note.EMPTY_THOUGHT
    return [note if one else None for one in said.tolist()]


def first_labels(chosen: Selection, bounds: SectionBounds, view: ViewSettings) -> Indices:
    """Index in each row of the first token that can be a label.

    Nothing comes before the first token that is read, unless it is a pad on the left (trap 23): that is so where the
    number of tokens read is no multiple of `view.left_pad_multiple`.
    """
    if not view.left_pad_multiple:
        return np.maximum(chosen.first_label, chosen.first_read + 1)
    padded = chosen.tokens(bounds.lengths) % view.left_pad_multiple != 0
    first: Indices = np.maximum(chosen.first_label, chosen.first_read + ~padded)
    return first


def has_sections(bounds: SectionBounds, view: ViewSettings) -> Mask:
    """Which rows are looked at for labels at all; the others are skipped."""
    in_order = bounds.think_end >= bounds.think_start
    known: Mask = (bounds.think_start >= 0) & (bounds.think_end >= 0) & (in_order | trains_misordered(view))
    return known


def trains_misordered(view: ViewSettings) -> bool:
    """True when rows with `</think>` before `<think>` are trained on; they have no thought to lead."""
    leads = view.span in ("cot-lead", "lead+answer") or first_tokens(view.span) is not None
    return view.misordered_markers == "train" and not leads


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
    position: int,
    first_read: int,
    read: Tokens,
    ends: Sequence[int],
    view: ViewSettings,
    eos_id: int,
    note: Note | None,
    entropies: Entropies | None,
) -> Example | SkipReason:
    """`ends`: start and stop of each interval of labels in what is read; a stop before its start is an empty one."""
    supervised = np.zeros(read.size, dtype=np.bool_)
    for start, stop in zip(ends[::2], ends[1::2], strict=True):
        supervised[start : max(start, stop)] = True
    if not view.supervise_end_of_sequence:
        supervised &= read != eos_id
    if not supervised.any():
        return SkipReason.NOTHING_SUPERVISED
    if view.lsp < 1.0 and view.span in ("random-tokens", "teacher-entropy"):
        labels = np.flatnonzero(supervised)
        supervised = np.zeros_like(supervised)
        supervised[_chosen_labels(position, labels, view, entropies)] = True
    return Example(position, read, supervised, first_read, eos_id if supervised[0] else None, note)


def _chosen_labels(position: int, labels: Indices, view: ViewSettings, entropies: Entropies | None) -> Indices:
    """The share of a row's labels that a span leaves, which are indices in the whole row."""
    # As `left` keeps of a row whose first token is no label: one of them is the first that is kept.
    count = max(1, kept_length(labels.size + 1, view.lsp) - 1)
    if view.span == "random-tokens":
        return drawn_tokens(position, view.draw_seed, labels, count)
    if entropies is None:
        raise ValueError("span 'teacher-entropy' without the teacher's entropies")
    return least_sure(entropies, labels, count)


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
