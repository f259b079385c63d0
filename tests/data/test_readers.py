"""The row formats, from a row of the documented schema to texts, and the named reason for each that cannot be read."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from essence.data.markers import Trace, has_solution_marker, replace_exactly, split_trace
from essence.data.readers import READERS
from essence.data.reasons import Exchange, Fault, Reason
from essence.data.thoughts import THOUGHT_FIELDS, holds_thought
from essence.settings import RowFormat

TRACE = "<|begin_of_thought|>\n\nAdd.\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\nIt is 4.\n\n<|end_of_solution|>"
TEXT = "<think>\nAdd.\n</think>\n\nIt is 4."
ASKED = [{"role": "user", "content": "2+2?"}]


def turns(*pairs: tuple[object, object], keys: tuple[str, str] = ("from", "value")) -> list[dict[str, object]]:
    return [dict(zip(keys, pair, strict=True)) for pair in pairs]


def conversation(user: object = "2+2?", assistant: object = TRACE) -> dict[str, Any]:
    return {"system": "Think.", "conversations": turns(("user", user), ("assistant", assistant))}


def answered(answer: object, **fields: object) -> dict[str, Any]:
    """A conversation whose answer has further fields."""
    question, _ = conversation()["conversations"]
    return {"conversations": [question, {"from": "assistant", "value": answer, **fields}]}


ANSWER = turns(("assistant", TEXT))


def synthetic(**changes: object) -> dict[str, Any]:
    """The columns that SYNTHETIC-1's card names."""
    row = {
        "problem_id": "vfm_0",
        "response_id": "vfm_0_1",
        "source": "numina",
        "score": 1.0,
        "task_type": "verifiable_math",
        "prompt": "2+2?",
        "llm_response": TEXT,
        "verification_info": '{"ground_truth": "4"}',
    }
    return {**row, **changes}


def nemotron(given: object = ASKED, output: object = TEXT) -> dict[str, Any]:
    """The columns that Llama-Nemotron's card names."""
    more = {"category": "math", "license": "cc-by-4.0", "reasoning": "on", "generator": "R1", "version": "v1"}
    return {"input": given, "output": output, "system_prompt": "detailed thinking on", **more}


def read(row_format: RowFormat, row: object) -> Trace | Reason:
    exchange = READERS[row_format](row)
    return exchange.reason if isinstance(exchange, Fault) else split_trace(exchange)


def reason_of(row_format: RowFormat, row: object) -> Reason:
    fault = READERS[row_format](row)
    assert isinstance(fault, Fault), fault
    return fault.reason


@pytest.mark.parametrize(
    ("row_format", "row"),
    [
        ("conversations", conversation()),
        ("conversations", {"conversations": json.dumps(conversation()["conversations"])}),
        ("messages", {"messages": turns(("user", "2+2?"), ("assistant", TEXT), keys=("role", "content"))}),
        ("messages", {"messages": json.dumps(ASKED + turns(("assistant", TRACE), keys=("role", "content")))}),
        ("synthetic1", synthetic()),
        ("nemotron", nemotron()),
        ("nemotron", nemotron([ASKED])),
        ("nemotron", nemotron(json.dumps(ASKED))),
        ("nemotron", nemotron(json.dumps([ASKED]))),
        ("nemotron", nemotron(output="<think>Add.</think>It is 4.")),
    ],
)
def test_rows_of_the_documented_schemas(row_format: RowFormat, row: dict[str, Any]) -> None:
    assert read(row_format, row) == Trace("2+2?", "Add.", "It is 4.")


@pytest.mark.parametrize("row_format", get_args(RowFormat))
@pytest.mark.parametrize("row", ["text", None, 3, [], ["conversations"]])
def test_what_is_no_row(row_format: RowFormat, row: object) -> None:
    assert reason_of(row_format, row) is Reason.NOT_A_ROW


CONVERSATIONS: list[tuple[object, Reason]] = [
    ({"messages": []}, Reason.MISSING_COLUMN),
    ({"conversations": None}, Reason.WRONG_TYPE),
    ({"conversations": {}}, Reason.WRONG_TYPE),
    ({"conversations": ["text"]}, Reason.WRONG_TYPE),
    ({"conversations": "text"}, Reason.NOT_JSON),
    ({"conversations": "[" * 100_000}, Reason.NOT_JSON),
    ({"conversations": '"text"'}, Reason.WRONG_TYPE),
    ({"conversations": []}, Reason.NOT_TWO_TURNS),
    ({"conversations": conversation()["conversations"][:1]}, Reason.NOT_TWO_TURNS),
    ({"conversations": conversation()["conversations"] * 2}, Reason.NOT_TWO_TURNS),
    ({"conversations": conversation()["conversations"][::-1]}, Reason.WRONG_TURN_ORDER),
    ({"conversations": turns(("user", "x"), ("system", "x"))}, Reason.WRONG_TURN_ORDER),
    ({"conversations": turns(("human", "x"), ("gpt", "y"))}, Reason.UNKNOWN_ROLE),
    ({"conversations": turns((["user"], "x"), ("assistant", "y"))}, Reason.UNKNOWN_ROLE),
    ({"conversations": [{"value": "x"}, {"value": "y"}]}, Reason.UNKNOWN_ROLE),
    (conversation(assistant=None), Reason.NOT_TEXT),
    (conversation(user=["2+2?"]), Reason.NOT_TEXT),
    ({"conversations": [{"from": "user"}, {"from": "assistant"}]}, Reason.NOT_TEXT),
    (answered("4", tool_calls=[{"name": "add"}]), Reason.UNKNOWN_FIELD),
    (answered(TEXT, weight=0), Reason.UNKNOWN_FIELD),
    ({"conversations": [{"from": "user", "value": "2+2?", "reasoning": "x"}, *ANSWER]}, Reason.UNKNOWN_FIELD),
    (answered(TEXT, reasoning="Add."), Reason.TWO_THOUGHTS),
    (answered(TRACE, reasoning_content="Add."), Reason.TWO_THOUGHTS),
    (answered("4", reasoning="<think>Add.</think>"), Reason.TWO_THOUGHTS),
    (answered("4", reasoning="Add.", thinking="Count."), Reason.TWO_THOUGHTS),
    (answered("4", reasoning=["Add."]), Reason.NOT_TEXT),
    (answered(None, reasoning="Add."), Reason.NOT_TEXT),
    (answered("4", thinking="\ud83d"), Reason.NOT_UNICODE),
    (conversation(user="\ud83d"), Reason.NOT_UNICODE),
    (conversation(assistant=TRACE + "\udc00"), Reason.NOT_UNICODE),
]
PAIRS: list[tuple[RowFormat, object, Reason]] = [
    ("synthetic1", {"prompt": "2+2?", "llm_response": TEXT}, Reason.MISSING_COLUMN),
    ("synthetic1", synthetic(task_type="verifiable_code"), Reason.OTHER_TASK),
    ("synthetic1", synthetic(task_type=None), Reason.WRONG_TYPE),
    ("synthetic1", synthetic(llm_response=None), Reason.NOT_TEXT),
    ("synthetic1", synthetic(prompt={"text": "2+2?"}), Reason.NOT_TEXT),
    ("synthetic1", synthetic(prompt="\ud83d"), Reason.NOT_UNICODE),
    ("nemotron", {"input": ASKED}, Reason.MISSING_COLUMN),
    ("nemotron", {"output": TEXT}, Reason.MISSING_COLUMN),
    ("nemotron", nemotron("2+2?"), Reason.NOT_JSON),
    ("nemotron", nemotron(None), Reason.WRONG_TYPE),
    ("nemotron", nemotron(["2+2?"]), Reason.WRONG_TYPE),
    ("nemotron", nemotron([]), Reason.NOT_TWO_TURNS),
    ("nemotron", nemotron([[]]), Reason.NOT_TWO_TURNS),
    ("nemotron", nemotron([{"role": "system", "content": "x"}, *ASKED]), Reason.WRONG_TURN_ORDER),
    ("nemotron", nemotron([{"role": "human", "content": "x"}]), Reason.UNKNOWN_ROLE),
    ("nemotron", nemotron([{**ASKED[0], "tool_calls": [1]}]), Reason.UNKNOWN_FIELD),
    ("nemotron", nemotron([{"role": "user"}]), Reason.NOT_TEXT),
    ("nemotron", nemotron(output=4), Reason.NOT_TEXT),
    ("nemotron", nemotron(output="\ud83d"), Reason.NOT_UNICODE),
]


@pytest.mark.parametrize(("row", "reason"), CONVERSATIONS)
def test_turns_that_cannot_be_read(row: object, reason: Reason) -> None:
    assert reason_of("conversations", row) is reason
    as_messages = json.loads(
        json.dumps(row)
        .replace('"conversations"', '"messages"')
        .replace('"from"', '"role"')
        .replace('"value"', '"content"')
    )
    if reason is not Reason.MISSING_COLUMN:
        assert reason_of("messages", as_messages) is reason


@pytest.mark.parametrize(("row_format", "row", "reason"), PAIRS)
def test_pairs_that_cannot_be_read(row_format: RowFormat, row: object, reason: Reason) -> None:
    assert reason_of(row_format, row) is reason


@pytest.mark.parametrize("field", THOUGHT_FIELDS)
def test_a_thought_in_a_field_of_its_own_is_read(field: str) -> None:
    nothing: dict[str, Any] = {"tool_calls": None, "name": "", "weight": []}
    assert read("conversations", answered(" It is 4.\n", **{field: "\nAdd.", **nothing})) == Trace(
        "2+2?", "Add.", "It is 4."
    )
    assert read("conversations", answered("It is 4.", **{field: " \n"})) is Reason.NO_THOUGHT
    # vLLM sends the same thought under its old and its new name.
    assert read("conversations", answered("It is 4.", **{field: "Add.", "reasoning": "Add."})) == Trace(
        "2+2?", "Add.", "It is 4."
    )


@pytest.mark.parametrize(
    ("row", "seen"),
    [
        ({"conversations": turns(("human", "x"), ("gpt", "y"))}, "'human', 'gpt'"),
        ({"conversations": [{"value": "x"}, {"value": "y"}]}, "null"),
        ({"conversations": conversation()["conversations"] * 9}, "user, assistant, user, assistant and 14 more"),
        ({"conversations": []}, "no turn"),
        ({"data": [], "id": 1}, "no conversations; columns: data, id"),
        ({"conversations": 3.0}, "conversations: number"),
        ({"conversations": [None]}, "turn: null"),
        (conversation(user=[{"type": "text", "text": "2+2?"}]), "value of the question: list"),
        (answered("4", tool_calls=[{"name": "add"}]), "'tool_calls'"),
        (answered(TEXT, reasoning="Add."), "markers and reasoning"),
        (answered("4", reasoning="Add.", thinking="Count."), "reasoning and thinking"),
        (answered("4", thinking=3), "thinking: number"),
        (None, "null"),
    ],
)
def test_a_fault_names_what_was_seen(row: object, seen: str) -> None:
    fault = READERS["conversations"](row)
    assert isinstance(fault, Fault) and fault.seen == seen


@pytest.mark.parametrize(
    ("text", "held"),
    [
        (TEXT, True),
        ("<think>never closed", True),
        ("never opened</think>b", True),
        ("It is 4.", False),
        ("<think> \n</think>b", False),
        ("</think>b", False),
        ("b<think>", False),
        ("", False),
    ],
)
def test_whether_a_text_holds_a_thought(text: str, held: bool) -> None:
    assert holds_thought(text) is held


FAULTS: list[tuple[str, str, Reason]] = [
    (" \n", TEXT, Reason.EMPTY_QUESTION),
    ("2+2?", " \n", Reason.EMPTY_ANSWER),
    ("2+2?", "<think>a</think> \n", Reason.EMPTY_ANSWER),
    ("2+2?", "<think>a</think><|begin_of_solution|>\n<|end_of_solution|>", Reason.EMPTY_ANSWER),
    ("2+2?", "<think>\n\n</think>\n\n4", Reason.EMPTY_THOUGHT),
    ("2+2?", "It is 4.", Reason.NO_THOUGHT),
    ("2+2?", "a</think>b", Reason.NO_OPENING_MARKER),
    ("2+2?", "<think>a", Reason.NO_CLOSING_MARKER),
    ("2+2?", "<|begin_of_thought|>a<|begin_of_solution|>b<|end_of_solution|>", Reason.NO_CLOSING_MARKER),
    ("2+2?", "<think>a</think>b</think>c", Reason.TWO_CLOSING_MARKERS),
    ("2+2?", "<think>a<think>b</think>c", Reason.TWO_OPENING_MARKERS),
    ("2+2?", "a</think>b<think>c", Reason.WRONG_MARKER_ORDER),
    ("2+2?", "Well. <think>a</think>b", Reason.TEXT_BEFORE_THOUGHT),
    ("2+2?", "<think>a</think><|begin_of_solution|>b", Reason.UNPAIRED_SOLUTION_MARKERS),
    ("2+2?", "<think>a</think>b<|end_of_solution|>", Reason.UNPAIRED_SOLUTION_MARKERS),
    ("2+2?", "<think>a</think><|end_of_solution|>b<|begin_of_solution|>", Reason.UNPAIRED_SOLUTION_MARKERS),
    ("2+2?", "<think>a<|begin_of_solution|></think>b<|end_of_solution|>", Reason.UNPAIRED_SOLUTION_MARKERS),
    ("What is <think>?", TEXT, Reason.MARKER_IN_QUESTION),
    ("2+2?<|im_end|>", TEXT, Reason.CHAT_MARKUP),
    ("2+2?", TEXT + "<|endoftext|>", Reason.CHAT_MARKUP),
]


@pytest.mark.parametrize(("user", "assistant", "reason"), FAULTS)
def test_texts_that_have_no_clear_parts(user: str, assistant: str, reason: Reason) -> None:
    assert split_trace(Exchange(user, assistant)) is reason


def test_what_a_reader_remarks() -> None:
    keys = ("role", "content")
    with_system = {"messages": turns(("system", "Think."), ("user", "2+2?"), ("assistant", TEXT), keys=keys)}
    assert READERS["messages"](with_system) == Exchange("2+2?", TEXT, Reason.SYSTEM_TURN)
    longer = nemotron([*ASKED, {"role": "assistant", "content": "4"}, {"role": "user", "content": "Sure?"}])
    assert READERS["nemotron"](longer) == Exchange("2+2?", TEXT, Reason.MORE_TURNS)
    assert READERS["nemotron"](nemotron([ASKED, ASKED])) == Exchange("2+2?", TEXT, Reason.MORE_TURNS)


def test_every_reason_of_a_reader_or_a_text_is_tested() -> None:
    tested = (
        {reason for _, reason in CONVERSATIONS} | {reason for *_, reason in PAIRS} | {reason for *_, reason in FAULTS}
    )
    elsewhere = {
        Reason.NOT_A_ROW,
        Reason.SYSTEM_TURN,
        Reason.MORE_TURNS,
        Reason.OVER_LONG,  # these four: test_accept.py
        Reason.CONTAMINATED,
        Reason.DUPLICATE,
        Reason.MARKER_LEFT,
    }
    assert tested | elsewhere == set(Reason)
    assert not tested & elsewhere
    assert set(READERS) == set(get_args(RowFormat))


def test_irregular_newlines_are_missed_by_the_exact_replacement_only() -> None:
    regular, irregular = TRACE, TRACE.replace("\n\n<|end_of_solution|>", "<|end_of_solution|>\n").replace("\n\n", "\n")
    assert replace_exactly(regular) == "<think>\n\nAdd.\n\n</think>\n\nIt is 4."
    assert not has_solution_marker(replace_exactly(regular))
    assert replace_exactly(irregular).count("<|") == 2
    nested = "<|begin_of_<|begin_of_solution|>\n\nthought|>"
    assert replace_exactly(nested) == "<think>", "solution markers go first, as released"
    assert has_solution_marker(replace_exactly(irregular))
    assert split_trace(Exchange("2+2?", irregular)) == split_trace(Exchange("2+2?", regular))


def test_text_around_the_solution_stays() -> None:
    answer = "<think>a</think>First.<|begin_of_solution|>\nb<|end_of_solution|> Last."
    assert split_trace(Exchange("2+2?", answer)) == Trace("2+2?", "a", "First.\n\nb\n\nLast.")


@pytest.mark.assets
def test_real_traces_with_irregular_newlines(assets: Path) -> None:
    """Both miss a marker as the released code replaces them; read properly, none is left."""
    lines = (assets / "traces" / "sky_t1_format.real_traces.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2
    for line in lines:
        row = json.loads(line)
        assert has_solution_marker(replace_exactly(row["assistant_value"]))
        trace = read("conversations", conversation(row.get("user_value", "?"), row["assistant_value"]))
        assert isinstance(trace, Trace)
        assert not any(marker in trace.thought + trace.answer for marker in ("<|", "<think>", "</think>"))
        assert trace.thought[-1] in ".!" and len(trace.answer) > 100


@pytest.mark.assets
def test_real_bespoke_rows_read_alike_under_both_protocols(assets: Path) -> None:
    for line in (assets / "traces" / "bespoke_stratos_17k.real2.jsonl").read_text(encoding="utf-8").splitlines():
        exchange = READERS["conversations"](json.loads(line))
        assert isinstance(exchange, Exchange)
        trace, released = split_trace(exchange), replace_exactly(exchange.assistant)
        assert isinstance(trace, Trace)
        assert released == f"<think>\n\n{trace.thought}\n\n</think>\n\n{trace.answer}"


@pytest.mark.assets
def test_a_real_row_in_three_columns_reads_alike_as_conversation_and_as_messages(assets: Path) -> None:
    row = json.loads((assets / "traces" / "bespoke_stratos_17k_h4.real1.jsonl").read_text(encoding="utf-8"))
    assert isinstance(READERS["messages"](row), Exchange)
    assert READERS["messages"](row) == READERS["conversations"](row)


leaf = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=20)
marked = st.lists(st.sampled_from(["<think>", "</think>", "<|begin_of_solution|>", "a", "\n"]), max_size=8).map("".join)
word = st.sampled_from(["user", "assistant", "system", "verifiable_math", "[]", '[{"role": "user"}]']) | marked
columns = ["conversations", "messages", "input", "output", "prompt", "llm_response", "task_type"]
keys = st.sampled_from([*columns, "from", "value", "role", "content", "tool_calls", *THOUGHT_FIELDS])
any_json = st.recursive(
    leaf | word, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=5), max_leaves=12
)


@given(any_json)
def test_no_reader_crashes_on_any_json_value(value: object) -> None:
    for reader in READERS.values():
        outcome = reader(value)
        if isinstance(outcome, Exchange):
            assert isinstance(split_trace(outcome), Trace | Reason)
            replace_exactly(outcome.assistant)
        else:
            assert isinstance(outcome, Fault) and len(outcome.seen) < 500


@given(marked, marked)
def test_a_trace_is_stable(user: str, assistant: str) -> None:
    """What was read once reads the same again, and the template gets exactly one pair of markers."""
    trace = split_trace(Exchange(user, assistant))
    if isinstance(trace, Trace):
        assert split_trace(trace.exchange) == trace
        assert trace.exchange.assistant.count("<think>") == trace.exchange.assistant.count("</think>") == 1
