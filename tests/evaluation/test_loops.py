"""Loops: what counts as one, where it is complete, and that a cut does not depend on when anybody looked."""

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from essence.evaluation.loops import LoopRule, ends_in_loop, loop_end
from essence.record.evaluation_records import CountAndShare
from essence.stages import generate
from support.sampling import context, make_inputs, samples, settings

RULE = LoopRule(tokens=12, repeats=3, cut=True)


def plainly(ids: list[int], rule: LoopRule) -> int | None:
    """The rule word for word: the first end of `tokens` tokens that repeat with a block of at most tokens / repeats."""
    for end in range(rule.tokens, len(ids) + 1):
        window = ids[end - rule.tokens : end]
        for block in range(1, rule.tokens // rule.repeats + 1):
            if all(window[i] == window[i - block] for i in range(block, rule.tokens)):
                return end
    return None


@given(
    before=st.lists(st.integers(0, 3), max_size=12),
    block=st.lists(st.integers(0, 3), min_size=1, max_size=6),
    times=st.integers(1, 14),
    after=st.lists(st.integers(0, 3), max_size=12),
)
def test_the_rule_word_for_word(before: list[int], block: list[int], times: int, after: list[int]) -> None:
    ids = before + block * times + after
    assert loop_end(ids, RULE) == plainly(ids, RULE)
    assert ends_in_loop(ids, RULE) == (plainly(ids[-RULE.tokens :], RULE) is not None)


@pytest.mark.parametrize(
    ("ids", "end"),
    [
        ([1] * 11, None),
        ([1] * 12, 12),
        ([9, 9, 9] + [1, 2, 3, 4] * 3 + [5], 15),
        ([1, 2, 3, 4, 5] * 4, None),  # the block is longer than a third of 12
        (list(range(100)), None),
        ([], None),
    ],
)
def test_known_cases(ids: list[int], end: int | None) -> None:
    assert loop_end(ids, RULE) == end


def test_text_without_loops_has_none() -> None:
    generator = random.Random(1)
    assert loop_end([generator.randrange(50) for _ in range(20_000)], LoopRule(tokens=64, repeats=4, cut=True)) is None


def looping(**changes: Any) -> Any:
    """Greedy decoding of a small random model soon goes round in circles."""
    return settings(samples=1, temperature=0.0, max_new_tokens=200, stop_at_turn_end=False, **changes)


def test_loops_are_counted_and_cut_where_the_settings_say_so(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path)
    whole = generate.run(looping(), context(tmp_path / "whole", inputs))
    cut = generate.run(looping(stop_loops=True), context(tmp_path / "cut", inputs))
    loops = whole.results.loops.count
    assert loops > 0 and whole.results.loops == CountAndShare(count=loops, share=loops / 5, cut=0)
    assert cut.results.loops == CountAndShare(count=loops, share=loops / 5, cut=loops)
    assert cut.results.finish_reasons["loop"] == loops and whole.results.finish_reasons["loop"] == 0
    for before, after in zip(samples(tmp_path / "whole"), samples(tmp_path / "cut"), strict=True):
        assert after["loop_at"] == before["loop_at"]
        assert after["tokens"] == (before["loop_at"] or before["tokens"])
        assert before["completion"].startswith(after["completion"].rstrip("\ufffd"))
