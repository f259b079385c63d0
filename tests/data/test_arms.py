"""The control arms: each against a plain restatement of its rule, on any and on real rows, and what it promises."""

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from essence.data.draws import drawn_starts, drawn_tokens, growing_lengths, mixed
from essence.data.final_answer import first_stated_as_result
from essence.data.selection import SectionBounds, kept_length, reads_prefix, select
from essence.data.truncation import Example, Note, SkipReason, collect, fingerprint, make_examples
from essence.settings import ViewSettings
from support.some_resources import some_view

THINK, END, EOS = 1, 2, 3
SECTIONS = ("a", "p+a", "cot", "cot+a", "p+cot", "p+cot+a")
ARMS = (
    "first-1",
    "first-7",
    "first-1000",
    "random-span",
    "random-tokens",
    "lead+answer",
    "to-first-answer",
    "schedule",
    "teacher-entropy",
)
RELEASED = {"cot_includes_next_token": True, "supervise_end_of_sequence": False, "left_pad_multiple": 16}


def view(span: str, lsp: float = 1.0, **changes: object) -> ViewSettings:
    whole = span.startswith("first-") or span == "to-first-answer"
    return some_view(span=span, lsp=1.0 if whole else lsp, draw_seed=11, **changes)


def row(prompt: int, thought: int, answer: int) -> list[int]:
    return [*range(100, 100 + prompt), THINK, *range(200, 200 + thought), END, *range(300, 300 + answer), EOS]


def make(ids: Sequence[int], asked: ViewSettings, position: int = 7, answer: int = -1) -> Example | SkipReason:
    bounds = SectionBounds.of(len(ids), list(ids).index(THINK), list(ids).index(END), answer)
    stored = [np.array(entropies(len(ids), position), np.float16)]
    return next(make_examples(np.array([position]), [np.array(ids, np.int32)], bounds, asked, EOS, entropies=stored))


def entropies(length: int, position: int) -> list[float]:
    """Some for each token of a row, with equal ones among them."""
    return [0.0, *((mix(position + i) % 97) / 8 for i in range(1, length))]


def mix(number: int) -> int:
    """SplitMix64 in the integers of Python."""
    z = (number + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def plain(
    ids: Sequence[int], asked: ViewSettings, position: int, answer: int, eos: int, think: int, end: int
) -> list[tuple[int, bool]]:
    """The rules once more, token by token: (token, is a label) of what is read."""
    length, opened, closed = len(ids), list(ids).index(think), list(ids).index(end)
    kept = max(1, int(length * asked.lsp))
    read, may = set(range(length)), set(range(length))
    if asked.span.startswith("first-"):
        may = read = {i for i in range(length) if i < opened + int(asked.span[6:]) and i <= closed}
    elif asked.span == "random-span":
        start = ((mix(mix(mix(11) ^ position)) >> 32) * (length - kept + 1)) >> 32
        read, may = set(range(start + kept)), set(range(start + (asked.lsp < 1.0), start + kept))
    elif asked.span == "lead+answer":
        lead = max(1, int((closed - opened) * asked.lsp))
        may = read = {i for i in range(length) if i < opened + lead or i >= closed}
    elif asked.span == "to-first-answer" and answer >= 0:
        may = read = set(range(answer + 1))
    elif asked.span == "schedule":
        may = read = set(range(kept))
    padded = asked.left_pad_multiple and len(read) % asked.left_pad_multiple
    names, labels = asked.sections.split("+"), []
    for i in sorted(may):
        section = "p" if i < opened else "cot" if i <= closed else "a"
        wanted = section in names
        if asked.cot_includes_next_token and asked.sections in ("cot", "p+cot") and i == closed + 1:
            wanted = True
        if wanted and (i > 0 or padded) and (asked.supervise_end_of_sequence or ids[i] != eos):
            labels.append(i)
    if asked.span == "random-tokens":
        hashes = {i: mix(mix(mix(11) ^ position) + i + 1 & 2**64 - 1) for i in labels}
        labels = sorted(labels, key=lambda i: hashes[i])[: max(1, int((len(labels) + 1) * asked.lsp) - 1)]
    elif asked.span == "teacher-entropy":
        sure = entropies(length, position)
        labels = sorted(labels, key=lambda i: (-sure[i], i))[: max(1, int((len(labels) + 1) * asked.lsp) - 1)]
    return [(ids[i], i in labels) for i in sorted(read)]


def agrees(found: Example | SkipReason, expected: list[tuple[int, bool]]) -> None:
    if not any(label for _, label in expected):
        assert found is SkipReason.NOTHING_SUPERVISED
        return
    assert isinstance(found, Example)
    assert found.input_ids.tolist() == [token for token, _ in expected]
    assert found.supervised.tolist() == [label for _, label in expected]
    assert (found.pad is not None) == found.supervised[0]


rows = st.builds(row, st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
proportions = st.floats(0.001, 1.0)
positions = st.integers(0, 2**31 - 1)


@settings(max_examples=300)
@given(rows, st.sampled_from(ARMS), st.sampled_from(SECTIONS), proportions, positions, st.booleans(), st.data())
def test_every_arm_equals_its_plain_restatement(
    ids: list[int], span: str, sections: str, lsp: float, position: int, released: bool, data: st.DataObject
) -> None:
    asked = view(span, lsp, sections=sections, **(RELEASED if released else {"keep_context": data.draw(st.booleans())}))
    answer = data.draw(st.integers(-1, len(ids) - 1))
    agrees(make(ids, asked, position, answer), plain(ids, asked, position, answer, EOS, THINK, END))


@given(rows, st.sampled_from(ARMS), st.sampled_from(SECTIONS), proportions, positions)
def test_labels_lie_inside_what_is_read_and_a_prefix_is_one(
    ids: list[int], span: str, sections: str, lsp: float, position: int
) -> None:
    asked = view(span, lsp, sections=sections)
    found = make(ids, asked, position, len(ids) // 2)
    if isinstance(found, SkipReason):
        return
    assert found.input_ids.size == found.supervised.size <= len(ids) and found.supervised.any()
    assert not found.supervised[0] and found.first == 0
    if reads_prefix(asked):
        assert found.input_ids.tolist() == ids[: found.input_ids.size]


@given(rows, proportions, proportions, positions, st.sampled_from(["random-span", "random-tokens", "teacher-entropy"]))
def test_a_draw_is_the_same_at_every_proportion(
    ids: list[int], one: float, other: float, position: int, span: str
) -> None:
    small, large = (make(ids, view(span, p), position) for p in sorted((one, other)))
    labels = [set(np.flatnonzero(e.supervised).tolist()) if isinstance(e, Example) else set() for e in (small, large)]
    assert labels[0] <= labels[1]


@given(rows, st.integers(1, 80), st.integers(1, 80), proportions, proportions)
def test_the_prefix_property_of_first_k_and_lead_and_answer(
    ids: list[int], one: int, other: int, p: float, q: float
) -> None:
    small, large = (make(ids, view(f"first-{k}")) for k in sorted((one, other)))
    if isinstance(small, Example) and isinstance(large, Example):
        assert small.input_ids.tolist() == large.input_ids[: small.input_ids.size].tolist()
    small, large = (make(ids, view("lead+answer", share)) for share in sorted((p, q)))
    assert isinstance(small, Example) and isinstance(large, Example)
    tail = len(ids) - ids.index(END)
    assert small.input_ids[-tail:].tolist() == large.input_ids[-tail:].tolist() == ids[-tail:]
    assert small.input_ids[:-tail].tolist() == large.input_ids[: small.input_ids.size - tail].tolist()


@given(rows, proportions, positions)
def test_equal_labels_and_whole_rows_at_one(ids: list[int], lsp: float, position: int) -> None:
    """Arms of as many labels as left, to the token; where left has none, those that choose tokens have one."""
    spans = ("left", "random-span", "random-tokens", "teacher-entropy")
    found = [make(ids, view(span, lsp), position) for span in spans]
    counts = [np.count_nonzero(e.supervised) if isinstance(e, Example) else 0 for e in found]
    assert counts[1] == counts[0] and counts[2] == counts[3] == max(1, counts[0])
    whole = make(ids, view("left"))
    for span in ("random-span", "random-tokens", "teacher-entropy", "lead+answer"):
        same = make(ids, view(span, 1.0), position)
        assert isinstance(same, Example) and isinstance(whole, Example)
        assert fingerprint([same]) == fingerprint([whole])


def test_draws_are_the_published_numbers_and_even() -> None:
    # The first outputs of SplitMix64 from state 1234567, as its authors' C text prints them.
    states = np.array([1234567 + k * 0x9E3779B97F4A7C15 & 2**64 - 1 for k in range(3)], np.uint64)
    assert mixed(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    many = np.arange(20_000)
    starts = drawn_starts(many, 5, np.full(many.size, 9))
    assert np.bincount(starts, minlength=10).tolist() == pytest.approx([2000] * 10, rel=0.1)
    assert drawn_starts(many[::-1], 5, np.full(many.size, 9)).tolist() == starts[::-1].tolist()
    assert (drawn_starts(many, 6, np.full(many.size, 9)) != starts).mean() > 0.8
    assert drawn_tokens(3, 1, np.arange(5), 5).tolist() == [0, 1, 2, 3, 4]


@given(st.lists(st.tuples(st.integers(1, 400), st.booleans()), min_size=1, max_size=60), st.floats(0.5, 0.999))
def test_a_schedule_reads_as_many_tokens_as_the_constant_proportion(read: list[tuple[int, bool]], lsp: float) -> None:
    lengths = [length for length, _ in read]
    kept = [kept_length(length, lsp) if there else 0 for length, there in read]
    steps = [place // 4 for place in range(len(read))]
    found = growing_lengths(kept, lengths, steps, lsp)
    raised = sum(1 for tokens, k in zip(found, kept, strict=True) if k and tokens == 1)
    assert abs(sum(found) - sum(kept)) <= 1 + raised
    assert all(tokens <= length for tokens, length in zip(found, lengths, strict=True))
    # The rule in floats, row by row.
    total, before = sum(kept), 0
    for step in range(steps[-1] + 1):
        mine = [i for i, number in enumerate(steps) if number == step]
        middle = (before + sum(kept[i] for i in mine) / 2) / max(1, total)
        share = 2 * lsp - 1 + (2 - 2 * lsp) * middle
        before += sum(kept[i] for i in mine)
        assert all(abs(found[i] - share / lsp * kept[i]) <= 1.001 for i in mine)


def test_what_is_said_of_rows_is_counted() -> None:
    examples = [make(row(3, 4, 2), view("first-6")), make(row(3, 4, 2), view("first-7"))]
    found = collect([*examples, make(row(3, 4, 2), view("to-first-answer"))])
    assert found.noted == {Note.SHORT_THOUGHT.value: 1, Note.NO_ANSWER.value: 1}
    assert collect([make(row(3, 0, 2), view("lead+answer", 0.5))]).noted == {Note.EMPTY_THOUGHT.value: 1}
    for span in ("first-7", "lead+answer"):
        bounds = SectionBounds.of(9, 6, 2)
        asked = view(span, 0.5, misordered_markers="train")
        outcome = next(make_examples(np.array([0]), [np.arange(10, 19, dtype=np.int32)], bounds, asked, EOS))
        assert outcome is SkipReason.MARKERS_OUT_OF_ORDER


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("q 5 <think>\n2 apples and 5 pears.\nSo 2+5 = 7, check: 7.</think>\n\\boxed{7}", "So 2+5 = 7"),
        ("<think> x = 70, x = 0.7, x = 7.5, so x = 7.</think> \\boxed{7}", "so x = 7"),
        ("<think>no</think> The sum is \\boxed{ 12 }.", "The sum is \\boxed{ 12"),
        ("<think>the answer is **\\frac{1}{2}**</think>\\boxed{\\frac{1}{2}}", "answer is **\\frac{1}{2}"),
        ("<think>7 and 7, I get $7$</think>\\boxed{3} and then \\boxed{7}", "I get $7"),
        ("<think>it is 7</think> no box", None),
        ("no marker, is 7 \\boxed{7}", None),
        ("<think>\\boxed{}</think>\\boxed{ }", None),
    ],
)
def test_where_the_final_answer_is_first_stated(text: str, found: str | None) -> None:
    place = first_stated_as_result(text, text.find("<think>"))
    assert place == (-1 if found is None else text.index(found) + len(found) - 1)


@given(st.lists(st.text() | st.sampled_from(["<think>", "\\boxed{", "}", "is 1", "=", "1"]), max_size=12).map("".join))
def test_any_text_has_a_place_inside_it_or_none(text: str) -> None:
    start = text.find("<think>")
    place = first_stated_as_result(text, start)
    assert place == -1 or start < place < len(text)


@pytest.mark.assets
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(ARMS), st.sampled_from(SECTIONS), proportions, st.booleans())
def test_real_rows_token_by_token(assets: Path, span: str, sections: str, lsp: float, released: bool) -> None:
    asked = view(span, lsp, sections=sections, **(RELEASED if released else {}))
    for position, (ids, opened, closed, answer) in enumerate(real_rows(assets)):
        bounds = SectionBounds.of(len(ids), opened, closed, answer)
        stored = [np.array(entropies(len(ids), position), np.float16)]
        rows = [np.array(ids, np.int32)]
        found = next(make_examples(np.array([position]), rows, bounds, asked, 151643, entropies=stored))
        agrees(found, plain(ids, asked, position, answer, 151643, ids[opened], ids[closed]))


REAL: list[tuple[list[int], int, int, int]] = []


def real_rows(assets: Path) -> list[tuple[list[int], int, int, int]]:
    """(tokens, think_start, think_end, answer) of the Bespoke-Stratos rows, as the tokenize stage makes them."""
    if REAL:
        return REAL
    from essence.data.reasons import Exchange
    from essence.stages.tokenize import Renderer

    lines = (assets / "traces" / "bespoke_stratos_17k.real2.jsonl").read_text(encoding="utf-8").splitlines()
    folder = assets / "tokenizer"
    tokenizer = tokenizer_folder(folder)
    with closing(Renderer(tokenizer, True, 1)) as renderer:
        for place, line in enumerate(lines):
            user, assistant = (turn["value"] for turn in json.loads(line)["conversations"])
            thought = assistant.replace("<|begin_of_thought|>", "<think>").replace("<|end_of_thought|>", "</think>")
            made = next(renderer.tokenised(iter([(place, Exchange(user, thought))])))[0]
            REAL.append((made.input_ids.tolist(), made.think_start, made.think_end, made.answer))
    assert any(answer >= 0 for *_, answer in REAL)
    return REAL


def tokenizer_folder(assets: Path) -> Path:
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(assets / name, folder / name)
    shutil.copy(assets / "qwen3_chat_template.jinja", folder / "chat_template.jinja")
    return folder


def test_an_estimate_takes_the_middle_of_all_draws() -> None:
    chosen = select(SectionBounds.of(1000, 10, 900), view("random-span", 0.5))
    assert chosen.tokens(np.array([1000])).tolist() == [750]
