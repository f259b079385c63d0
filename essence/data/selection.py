"""Which tokens of a tokenised row are read, and which of them can be labels: the rules of the paper as NumPy.

A row is a whole rendered conversation of `L` tokens. A *span* is a selection of it: which slices are read, from where
on their tokens may be labels, and for some spans which of these are drawn; *sections* choose the labels inside it.
docs/data.md and docs/arms.md have both as tables. Nothing here needs a tokenizer or torch, so the host side uses the
same rules for its estimates.

Source: "Distilling the Essence", sections on sequence truncation and on supervised sections; the numbered traps are the
rows of DEVIATIONS.md.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from essence.data.draws import drawn_starts
from essence.settings import LSP, TrainSettings, ViewSettings, first_tokens

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class SectionBounds:
    """Where the sections of some rows lie; int64, shape (rows,) each."""

    lengths: Indices
    """Tokens of each whole rendered row."""
    think_start: Indices
    """Index of the first `<think>`, -1 where absent."""
    think_end: Indices
    """Index of the first `</think>`, -1 where absent."""
    answers: Indices | None = None
    """Index of the token with which the final answer is first stated, -1 where none is found; None = not looked for."""

    @classmethod
    def of(
        cls, lengths: ArrayLike, think_start: ArrayLike, think_end: ArrayLike, answers: ArrayLike = -1
    ) -> "SectionBounds":
        """From any integers, one or many."""
        given = (lengths, think_start, think_end, answers)
        return cls(*np.broadcast_arrays(*(np.atleast_1d(np.asarray(values, np.int64)) for values in given)))

    def at(self, indices: Indices) -> "SectionBounds":
        """Of some of the rows."""
        answers = None if self.answers is None else self.answers[indices]
        return SectionBounds(self.lengths[indices], self.think_start[indices], self.think_end[indices], answers)

    def found_answers(self) -> Indices:
        """`answers`, -1 where they were not looked for."""
        return np.full_like(self.lengths, -1) if self.answers is None else self.answers

    def answer_stops(self) -> Indices:
        """Index behind the first statement of the final answer; of the whole row where none is found."""
        answers = self.found_answers()
        return np.where(answers < 0, self.lengths, answers + 1)


@dataclass(frozen=True)
class Selection:
    """What a span takes of some rows, as indices into each row; int64, shape (rows,) each."""

    first_read: Indices
    first_label: Indices
    """Tokens from `first_read` up to here are context: read, never a label."""
    stop: Indices
    """Nothing from here on is read, or up to `resume`."""
    resume: Indices | None = None
    """Where a second slice begins, which goes to the end of the row; None = what is read is one slice."""

    def slices(self, lengths: Indices) -> list[tuple[Indices, Indices]]:
        """(start, stop) of what is read, one behind the other."""
        first = (self.first_read, self.stop)
        return [first] if self.resume is None else [first, (self.resume, lengths)]

    def tokens(self, lengths: Indices) -> Indices:
        """Tokens read of each row."""
        read: Indices = sum((stop - start for start, stop in self.slices(lengths)), np.zeros_like(lengths))
        return read


def kept_length(length: int, lsp: LSP) -> int:
    """Tokens that a lead-span proportion keeps of `length`: `max(1, int(length * lsp))` in float64, as released.

    Exact arithmetic differs by one token at some lengths (lsp 0.7: 70 lengths up to 4,096), so floats it is.
    """
    return int(kept_lengths(np.array([length]), lsp)[0])


def kept_lengths(lengths: Indices, lsp: LSP) -> Indices:
    """`kept_length` of many rows at once; a product of float64 rounds the same here and in plain Python."""
    return np.maximum(1, (lengths * float(lsp)).astype(np.int64))


def select(
    bounds: SectionBounds, view: ViewSettings, positions: Indices | None = None, kept: Indices | None = None
) -> Selection:
    """What a span takes of some rows; those without markers get a selection too, which may mean nothing.

    `middle` leaves the odd token on its right. `right-with-context`, `random-span` and `random-tokens` read all that
    comes before their labels; `cot-lead`, `first-k` and `lead+answer` the whole prompt. None reads more at
    `view.keep_context`.

    Args:
        bounds: where their sections are.
        view: the span, its proportion and the seed of its draw.
        positions: of the rows in their data set, by which is drawn; None = the middle of all draws, for estimates.
        kept: tokens of each row that stand in the place of a proportion of it (`schedule`).
    """
    kept = kept_lengths(bounds.lengths, view.lsp) if kept is None else kept
    zero, has_context = np.zeros_like(bounds.lengths), view.keep_context
    if (led := _lead_of_thought(bounds, view)) is not None:
        return led
    start, stop = zero, kept
    if view.span == "to-first-answer":
        stop = bounds.answer_stops()
    elif view.span in ("random-tokens", "teacher-entropy"):
        stop = bounds.lengths
    elif view.span == "middle":
        start = (bounds.lengths - kept) // 2
    elif view.span in ("right", "right-with-context"):
        start, has_context = bounds.lengths - kept, has_context or view.span == "right-with-context"
    elif view.span == "random-span":
        free, has_context = bounds.lengths - kept, True
        start = free // 2 if positions is None else drawn_starts(positions, view.draw_seed, free)
    stop = start + kept if stop is kept else stop
    # As of `left`, the first token of a drawn part is no label: so both have as many.
    first_label = start + 1 if view.span == "random-span" and view.lsp < 1.0 else start
    return Selection(zero if has_context else start, first_label, stop)


def _lead_of_thought(bounds: SectionBounds, view: ViewSettings) -> Selection | None:
    """Of the spans that read the prompt and then the first tokens of the chain of thought; None of the others."""
    zero, thought = np.zeros_like(bounds.lengths), bounds.think_end - bounds.think_start + 1
    if most := first_tokens(view.span):
        return Selection(zero, zero, bounds.think_start + np.minimum(most, thought))
    if view.span == "cot-lead":
        return Selection(zero, zero, bounds.think_start + kept_lengths(thought, view.lsp))
    if view.span == "lead+answer":
        lead = kept_lengths(thought - 1, view.lsp)
        return Selection(zero, zero, bounds.think_start + lead, bounds.think_end)
    return None


def reads_prefix(view: ViewSettings) -> bool:
    """True when a view reads every row from its first token on, without a gap, whatever it supervises.

    Then, since models are causal, the states of what it reads are those of the whole row.
    """
    if view.span == "lead+answer":
        return view.lsp == 1.0
    return view.keep_context or view.lsp == 1.0 or view.span not in ("middle", "right")


def validation_view(settings: TrainSettings) -> ViewSettings:
    """The training view, or with `validation_view = "full"` the same sections of whole rows (trap 8).

    A schedule has no one view; its validation rows keep the mean proportion. The teacher reads no validation rows, so
    under `teacher-entropy` as many of their labels are drawn.
    """
    stands_for = {"schedule": "left", "teacher-entropy": "random-tokens"}.get(settings.view.span)
    if settings.validation_view == "same" and stands_for:
        return settings.view.model_copy(update={"span": stands_for})
    if settings.validation_view == "same":
        return settings.view
    return settings.view.model_copy(update={"lsp": 1.0, "span": "left", "draw_seed": 0})


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
