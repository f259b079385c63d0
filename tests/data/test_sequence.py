"""Spans, sections, split and fingerprint against independent statements of the same rules."""

import dataclasses
import hashlib
import struct
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from essence.data.selection import SectionBounds, kept_length, kept_lengths, select
from essence.data.truncation import Example, SkipReason, fingerprint, make_examples, within_budget
from essence.errors import InputError
from essence.settings import ViewSettings
from support.some_resources import some_view

THINK, END, EOS = 1, 2, 3
SECTIONS = ("a", "p+a", "cot", "cot+a", "p+cot", "p+cot+a")
SPANS = ("left", "middle", "right", "right-with-context", "cot-lead")


def row(prompt: int, thought: int, answer: int) -> np.ndarray:
    """Tokens 100.. in the prompt, 200.. in the thought, 300.. in the answer, which ends with EOS."""
    ids = [
        *range(100, 100 + prompt), THINK, *range(200, 200 + thought), END, *range(300, 300 + answer), EOS,
    ]  # fmt: skip
    return np.array(ids, dtype=np.int32)


def make(ids: np.ndarray, settings: ViewSettings) -> Example | SkipReason:
    listed = ids.tolist()
    return one(ids, listed.index(THINK), listed.index(END), settings)


def one(ids: np.ndarray, think_start: int, think_end: int, settings: ViewSettings) -> Example | SkipReason:
    bounds = SectionBounds.of(ids.size, think_start, think_end)
    return next(make_examples(np.array([7]), [ids], bounds, settings, EOS))


def plain(ids: Sequence[int], settings: ViewSettings) -> list[tuple[int, bool]]:
    """The rules once more, token by token: (token, is a label) of what is read."""
    length = len(ids)
    kept = int(length * settings.lsp)
    if kept == 0:
        kept = 1
    if settings.span == "left":
        inside = range(kept)
    elif settings.span.startswith("right"):
        inside = range(length - kept, length)
    elif settings.span == "cot-lead":
        thought = list(ids).index(END) - list(ids).index(THINK) + 1
        inside = range(list(ids).index(THINK) + max(1, int(thought * settings.lsp)))
    else:
        inside = range((length - kept) // 2, (length - kept) // 2 + kept)
    section, section_before, result = "p", "p", []
    for i, token in enumerate(ids):
        if token == THINK and section == "p":
            section = "cot"
        wanted = section in settings.sections.split("+")
        first_of_answer = i > 0 and section == "a" and section_before == "cot"
        if settings.cot_includes_next_token and settings.sections in ("cot", "p+cot") and first_of_answer:
            wanted = True
        if not settings.supervise_end_of_sequence and token == EOS:
            wanted = False
        section_before = section
        if token == END and section == "cot":
            section = "a"
        before = (settings.keep_context or settings.span == "right-with-context") and i < inside.start
        if before or i in inside:
            result.append((token, wanted and not before and len(result) > 0))
    return result


@pytest.mark.parametrize("lsp", [round(0.1 * k, 1) for k in range(1, 11)])
@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("sections", SECTIONS)
def test_equals_plain_reimplementation(lsp: float, span: str, sections: str) -> None:
    for ids in (row(5, 20, 7), row(0, 0, 0), row(1, 3, 50), row(40, 1, 0)):
        for flags in range(8):
            settings = some_view(
                lsp=lsp,
                span=span,
                sections=sections,
                cot_includes_next_token=bool(flags & 1),
                supervise_end_of_sequence=bool(flags & 2),
                keep_context=bool(flags & 4),
            )
            expected = plain(ids.tolist(), settings)
            found = make(ids, settings)
            if not any(label for _, label in expected):
                assert found is SkipReason.NOTHING_SUPERVISED
            else:
                assert isinstance(found, Example)
                assert found.input_ids.tolist() == [token for token, _ in expected]
                assert found.supervised.tolist() == [label for _, label in expected]


def test_float_multiplication_at_0_7() -> None:
    """Exact arithmetic differs by one token at 70 lengths up to 4,096 (PAPER: lead-span proportion)."""
    differing = [n for n in range(1, 4097) if kept_length(n, 0.7) != max(1, n * 7 // 10)]
    assert len(differing) == 70


@given(st.lists(st.integers(0, 200_000), min_size=1), st.floats(0.0, 1.0, exclude_min=True))
def test_many_lengths_at_once_are_plain_python_floats(lengths: list[int], lsp: float) -> None:
    assert kept_lengths(np.array(lengths), lsp).tolist() == [max(1, int(n * lsp)) for n in lengths]


def test_left_half_is_lsp_one_half_and_halves_meet() -> None:
    bounds, found = SectionBounds.of(11, 2, 6), {}
    for span in SPANS:
        windows = select(bounds, some_view(lsp=0.5, span=span))
        found[span] = (windows.first_read[0], windows.first_label[0], windows.stop[0])
    assert found == {
        "left": (0, 0, 5),
        "middle": (3, 3, 8),
        "right": (6, 6, 11),
        "right-with-context": (0, 6, 11),
        "cot-lead": (0, 0, 4),
    }


def test_off_by_one_of_the_released_sections() -> None:
    exact, released = make(row(3, 4, 5), some_view(sections="cot")), None
    released = make(row(3, 4, 5), some_view(sections="cot", cot_includes_next_token=True))
    assert isinstance(exact, Example)
    assert isinstance(released, Example)
    assert set(np.flatnonzero(released.supervised)) - set(np.flatnonzero(exact.supervised)) == {9}
    assert exact.input_ids[8] == END


def test_missing_and_misplaced_markers_are_named() -> None:
    ids = row(3, 4, 5)
    for span in SPANS:
        assert one(ids, -1, 8, some_view(span=span)) is SkipReason.NO_MARKER
        assert one(ids, 3, -1, some_view(span=span)) is SkipReason.NO_MARKER
        assert one(ids, 8, 3, some_view(span=span)) is SkipReason.MARKERS_OUT_OF_ORDER
    assert make(ids, some_view(lsp=0.3, sections="a")) is SkipReason.NOTHING_SUPERVISED


rows = st.builds(row, st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
proportions = st.floats(0.001, 1.0)
views = st.builds(
    lambda lsp, span, sections, next_token, eos, context: some_view(
        lsp=lsp,
        span=span,
        sections=sections,
        cot_includes_next_token=next_token,
        supervise_end_of_sequence=eos,
        keep_context=context,
    ),
    proportions,
    st.sampled_from(SPANS),
    st.sampled_from(SECTIONS),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)


@given(rows, views)
def test_labels_lie_inside_span_and_section(ids: np.ndarray, settings: ViewSettings) -> None:
    found = make(ids, settings)
    if not isinstance(found, Example):
        return
    thought = ids.tolist().index(END) - ids.tolist().index(THINK) + 1
    kept = kept_length(ids.size, settings.lsp)
    if settings.span == "cot-lead":
        kept = ids.tolist().index(THINK) + kept_length(thought, settings.lsp)
    assert 1 <= kept <= ids.size
    assert found.input_ids.size == found.supervised.size
    assert found.input_ids.size == kept or settings.keep_context or settings.span == "right-with-context"
    assert found.input_ids.size <= ids.size
    assert not found.supervised[0]
    assert found.supervised.any()
    assert np.count_nonzero(found.supervised) <= kept
    labels = set(found.input_ids[found.supervised].tolist())
    if "p" not in settings.sections.split("+"):
        assert not labels & set(range(100, 200))
    if "cot" not in settings.sections.split("+"):
        assert not labels & {THINK, END, *range(200, 300)}
    if "a" not in settings.sections.split("+"):
        assert len(labels & {EOS, *range(300, 400)}) <= settings.cot_includes_next_token
    if not settings.supervise_end_of_sequence:
        assert EOS not in labels


@given(rows, proportions, proportions, st.sampled_from(["left", "cot-lead"]), st.sampled_from(SECTIONS))
def test_prefix_property(ids: np.ndarray, one: float, other: float, span: str, sections: str) -> None:
    small, large = sorted((one, other))
    first, second = (make(ids, some_view(lsp=p, span=span, sections=sections)) for p in (small, large))
    if isinstance(first, Example) and isinstance(second, Example):
        assert np.array_equal(first.input_ids, second.input_ids[: first.input_ids.size])
        assert np.array_equal(first.supervised, second.supervised[: first.input_ids.size])


def test_a_token_budget_takes_whole_rows_in_order() -> None:
    examples = [make(row(3, thought, 5), some_view()) for thought in (2, 4, 6)]
    sizes = [e.input_ids.size for e in examples if isinstance(e, Example)]
    assert sizes == [13, 15, 17]
    outcomes = [SkipReason.NO_MARKER, *examples]
    assert list(within_budget(outcomes, 45)) == outcomes
    assert list(within_budget(outcomes, 44)) == list(within_budget(outcomes, 28)) == outcomes[:3]
    assert list(within_budget(outcomes, 27)) == outcomes[:2]
    with pytest.raises(InputError, match="token_budget = 12, but the first row alone has 13 tokens"):
        list(within_budget(outcomes, 12))
    with pytest.raises(InputError, match=r"token_budget = 46, .* have only 45 tokens .* raise train_rows"):
        list(within_budget(outcomes, 46))


def test_fingerprint_is_of_the_documented_bytes() -> None:
    example = Example(4, np.array([5, 70000], np.int32), np.array([False, True]))
    documented = struct.pack("<q2i2?", 2, 5, 70000, False, True)
    assert fingerprint([example, example]) == hashlib.sha256(documented * 2).hexdigest()
    assert fingerprint([dataclasses.replace(example, row=9)]) == fingerprint([example])
    from_pad = dataclasses.replace(example, supervised=np.array([True, True]), pad=151643)
    documented_pad = struct.pack("<q2i2?i", 2, 5, 70000, True, True, 151643)
    assert fingerprint([from_pad]) == hashlib.sha256(documented_pad).hexdigest()
    assert fingerprint([dataclasses.replace(example, supervised=np.array([False, False]))]) != fingerprint([example])
    big_endian = dataclasses.replace(example, input_ids=example.input_ids.astype(">i4"))
    assert fingerprint([big_endian]) == fingerprint([example])
