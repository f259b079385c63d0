"""Reading rows, and the named reason for each that cannot be used."""

import json
from pathlib import Path
from typing import Any, get_args

import pyarrow
import pyarrow.parquet
import pytest

from essence.data.exchange import Exchange, Reason, has_solution_marker, replace_markers
from essence.data.files import count_rows, read_rows
from essence.data.readers import READERS
from essence.data.rejections import Rejections
from essence.errors import InputError
from essence.settings import RowFormat

ANSWER = (
    "<|begin_of_thought|>\n\nAdd.\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\nIt is 4.\n\n<|end_of_solution|>"
)
read = READERS["conversations"]


def row(user: object = "2+2?", assistant: object = ANSWER, **more: object) -> dict[str, Any]:
    turns = [{"from": "user", "value": user}, {"from": "assistant", "value": assistant}]
    return {"system": "Think.", "conversations": turns, **more}


def test_markers_are_replaced_by_exact_strings() -> None:
    assert read(row()) == Exchange("2+2?", "<think>\n\nAdd.\n\n</think>\n\nIt is 4.")


def test_irregular_newlines_leave_solution_markers_as_released() -> None:
    text = replace_markers("<|begin_of_thought|>a<|end_of_thought|><|begin_of_solution|>b<|end_of_solution|>")
    assert text == "<think>a</think><|begin_of_solution|>b<|end_of_solution|>"
    assert has_solution_marker(text)
    assert not has_solution_marker(replace_markers(ANSWER))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("text", Reason.NO_CONVERSATION),
        ({"messages": []}, Reason.NO_CONVERSATION),
        ({"conversations": "text"}, Reason.NO_CONVERSATION),
        ({"conversations": ["text"]}, Reason.NO_CONVERSATION),
        ({"conversations": []}, Reason.NOT_TWO_TURNS),
        ({"conversations": row()["conversations"][:1]}, Reason.NOT_TWO_TURNS),
        ({"conversations": row()["conversations"][::-1]}, Reason.NOT_TWO_TURNS),
        ({"conversations": row()["conversations"] * 2}, Reason.NOT_TWO_TURNS),
        ({"conversations": [{"from": "human", "value": "x"}]}, Reason.UNKNOWN_ROLE),
        ({"conversations": [{"value": "x"}]}, Reason.UNKNOWN_ROLE),
        (row(assistant=None), Reason.NOT_TEXT),
        (row(user=["2+2?"]), Reason.NOT_TEXT),
        (row(user="\ud83d"), Reason.NOT_UNICODE),
        (row(user=" \n"), Reason.EMPTY_QUESTION),
        (row(assistant=""), Reason.EMPTY_ANSWER),
        (row(assistant="<think>a</think> \n"), Reason.EMPTY_ANSWER),
        (row(assistant="It is 4."), Reason.NO_OPENING_MARKER),
        (row(assistant="a</think>b"), Reason.NO_OPENING_MARKER),
        (row(assistant="<think>a"), Reason.NO_CLOSING_MARKER),
        (row(assistant="<think>a</think>b</think>c"), Reason.TWO_CLOSING_MARKERS),
        (row(assistant="a</think>b<think>c"), Reason.WRONG_ORDER),
    ],
)
def test_every_rejection_has_its_reason(bad: object, reason: Reason) -> None:
    assert read(bad) is reason


def test_rejections_are_counted_with_five_examples() -> None:
    rejections = Rejections()
    for position in range(9):
        rejections.add(Reason.NOT_TEXT, position, {"long": "x" * 1000})
    rejections.add(Reason.EMPTY_ANSWER, 9, "odd")
    found = rejections.as_dict()
    assert rejections.count == 10
    assert {reason: entry["count"] for reason, entry in found.items()} == {"content is not text": 9, "empty answer": 1}
    assert [example["position"] for example in found["content is not text"]["examples"]] == [0, 1, 2, 3, 4]
    assert len(found["content is not text"]["examples"][0]["row"]) == 200
    json.dumps(found)


def test_files_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row(f"c{i}")) + "\n\n" for i in range(2)))
    (tmp_path / "b.json").write_text(json.dumps([row("b0"), row("b1")]))
    (tmp_path / "a").mkdir()
    rows = [row(f"a{i}") for i in range(1200)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a" / "part.parquet")
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.json").write_text("not data")
    exchanges = [read(found) for found in read_rows(tmp_path)]
    questions = [exchange.user for exchange in exchanges if isinstance(exchange, Exchange)]
    assert questions == [*(f"a{i}" for i in range(1200)), "b0", "b1", "c0", "c1"]
    assert count_rows(tmp_path) == 1204


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"x": 1}\n{"x": \n', r"a\.jsonl:2: not valid JSON"),
        ("a.json", "{}", "expected a list of rows, found dict"),
        ("a.json", "[1", "not valid JSON"),
        ("a.parquet", "PAR1", "damaged Parquet"),
        ("a.txt", "", "no rows"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        list(read_rows(tmp_path))


def test_real_bespoke_rows(assets: Path) -> None:
    lines = (assets / "traces" / "bespoke_stratos_17k.real2.jsonl").read_text(encoding="utf-8").splitlines()
    for line in lines:
        exchange = read(json.loads(line))
        assert isinstance(exchange, Exchange)
        assert exchange.assistant.startswith("<think>")
        assert not has_solution_marker(exchange.assistant)


def test_real_traces_with_irregular_newlines(assets: Path) -> None:
    lines = (assets / "traces" / "sky_t1_format.real_traces.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [replace_markers(json.loads(line)["assistant_value"]) for line in lines]
    assert any(has_solution_marker(text) for text in texts)
    assert all(isinstance(read(row(assistant=text)), Exchange) for text in texts)


MATHS = "verifiable_math"
TEXT = "<think>\n2 and 2\n</think>\n\n4"


@pytest.mark.parametrize(
    ("row_format", "given", "outcome"),
    [
        (
            "synthetic1",
            {"prompt": "2+2?", "llm_response": TEXT, "task_type": MATHS},
            Exchange("2+2?", TEXT),
        ),
        ("synthetic1", {"prompt": "2+2?", "llm_response": TEXT, "task_type": "verifiable_code"}, Reason.OTHER_TASK),
        ("synthetic1", {"prompt": 4, "llm_response": TEXT, "task_type": MATHS}, Reason.NOT_TEXT),
        ("synthetic1", {"prompt": "2+2?", "task_type": MATHS}, Reason.NO_PAIR),
        ("nemotron", {"input": [{"role": "user", "content": "2+2?"}], "output": TEXT}, Exchange("2+2?", TEXT)),
        ("nemotron", {"input": [[{"role": "user", "content": "2+2?"}]], "output": TEXT}, Exchange("2+2?", TEXT)),
        ("nemotron", {"input": [{"role": "system", "content": "2+2?"}], "output": TEXT}, Reason.UNKNOWN_ROLE),
        ("nemotron", {"input": [], "output": TEXT}, Reason.NO_PAIR),
        ("nemotron", {"input": [{"role": "user", "content": "2+2?"}], "output": "4"}, Reason.NO_OPENING_MARKER),
    ],
)
def test_the_formats_that_the_released_code_cannot_run(
    row_format: RowFormat, given: dict[str, Any], outcome: Exchange | Reason
) -> None:
    assert READERS[row_format](given) == outcome


def test_every_format_has_a_reader() -> None:
    assert set(READERS) == set(get_args(RowFormat))
