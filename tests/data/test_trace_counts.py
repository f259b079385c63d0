"""Counts in worked answers: by rule, and on real traces."""

import json
from pathlib import Path

import pytest

from essence.data.markers import replace_exactly
from essence.data.readers import READERS
from essence.data.reasons import Exchange
from essence.data.trace_counts import by_tenth, cue_places, final_answer, first_written, worked


@pytest.mark.parametrize(
    ("text", "answer", "place"),
    [
        ("15 and 5.3 and 1,5, then 5.", "5", 25),
        ("so x = 12 here", "1 2", 7),
        ("so x = 1 2 here", "12", 7),
        ("\\frac{1}{2}", "\\frac{1}{2}", 0),
        ("half: \\frac {1} {2}", "\\frac{1}{2}", 6),
        ("a 5% rate", "5\\%", -1),
        ("x5", "5", -1),
        ("5x", "5", -1),
        ("nothing", "42", -1),
        ("Привет, 42!", "42", 8),
    ],
)
def test_an_answer_appears_as_a_whole(text: str, answer: str, place: int) -> None:
    assert first_written(text, answer) == place


def test_cues_are_whole_words_and_fall_into_tenths() -> None:
    trace = "Wait, awaiting nothing. Hmmm. Let me check: double-checking. LET ME VERIFY. That's not right, waiter."
    places = cue_places(trace)
    assert [trace[place : place + 4].lower() for place in places] == ["wait", "hmmm", "let ", "doub", "let ", "that"]
    counts = by_tenth(trace, places)
    assert sum(counts) == 6 and counts[0] == 1 and len(counts) == 10
    assert by_tenth("wait", [0, 3]) == [1, 0, 0, 0, 0, 0, 0, 1, 0, 0]


@pytest.mark.parametrize(
    ("section", "answer"),
    [
        ("\\boxed{1} then \\boxed{ \\frac{1}{2} }", "\\frac{1}{2}"),
        ("\\boxed{\\boxed{7}}", "7"),
        ("\\boxed{3} \\boxed{}", "3"),
        ("no box", None),
        ("\\boxed{never closed", None),
    ],
)
def test_the_final_answer_is_the_last_box(section: str, answer: str | None) -> None:
    assert final_answer(section) == answer


def test_a_row_without_both_markers_has_no_trace() -> None:
    assert worked(Exchange("q", "<think>\na\n</think>\n\n\\boxed{1}")) is not None
    for text in ("a </think> b <think>", "<think> a", "a", "<think>\n\n</think> b"):
        assert worked(Exchange("q", text)) is None


def test_real_traces_state_their_answer_once_they_are_under_way(assets: Path) -> None:
    places = []
    for line in (assets / "traces/bespoke_stratos_17k.real2.jsonl").read_text(encoding="utf-8").splitlines():
        exchange = READERS["conversations"](json.loads(line))
        assert isinstance(exchange, Exchange)
        row = worked(Exchange(exchange.user, replace_exactly(exchange.assistant)))
        assert row and cue_places(row.trace)
        if row.answer:
            places.append(first_written(row.trace, row.answer) / len(row.trace))
    assert places and all(0.0 < place < 1.0 for place in places)
