"""Data sets as people have them, oddities included: each works, or is refused or rejected with what was seen."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from essence.data.accept import AcceptedRows
from essence.data.thoughts import THOUGHT_FIELDS
from essence.errors import InputError
from support.tokenize_settings import protocol_settings

Make = Callable[[Path], None]
PROTOCOLS = ("released", "corrected")
COUNT = 30


def row(number: int) -> dict[str, Any]:
    answer = f"<think>\nIt is {number} and 3, so {number + 3}.\n</think>\n\nThe sum is {number + 3}."
    question = {"role": "user", "content": f"What is {number}+3?"}
    return {"messages": [question, {"role": "assistant", "content": answer}]}


ROWS = [row(number) for number in range(COUNT)]
LINES = "".join(json.dumps(found) + "\n" for found in ROWS)


def text(name: str, content: str | bytes) -> Make:
    raw = content.encode() if isinstance(content, str) else content

    def make(folder: Path) -> None:
        (folder / name).write_bytes(raw)

    return make


def parquet(rows: Any) -> Make:
    def make(folder: Path) -> None:
        table = rows if isinstance(rows, pyarrow.Table) else pyarrow.Table.from_pylist(rows)
        pyarrow.parquet.write_table(table, folder / "r.parquet")

    return make


def both(*made: Make) -> Make:
    def make(folder: Path) -> None:
        for one in made:
            one(folder)

    return make


def turns(*pairs: tuple[str, Any], **fields: Any) -> dict[str, Any]:
    found: list[dict[str, Any]] = [{"role": role, "content": content} for role, content in pairs]
    found[-1].update(fields)
    return {"messages": found}


def more(*lines: str | dict[str, Any]) -> Make:
    """The good rows, and these after them."""
    return text("r.jsonl", LINES + "".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))


NESTED = pyarrow.list_(pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())]))
LARGE = pyarrow.list_(pyarrow.struct([("role", pyarrow.large_string()), ("content", pyarrow.large_string())]))
MAPS = pyarrow.list_(pyarrow.map_(pyarrow.string(), pyarrow.string()))
SYNTHETIC = [
    {"prompt": f"{n}+1?", "llm_response": f"<think>a {n}</think>b", "task_type": "verifiable_math"}
    for n in range(COUNT)
]

WORKS: dict[str, Make] = {
    "bom_crlf": text("r.jsonl", "\ufeff" + LINES.replace("\n", "\r\n")),
    "crlf_in_text": text("r.jsonl", LINES.replace("What is", "What\\r\\nis")),
    "u2028": text(
        "r.jsonl",
        json.dumps(ROWS, ensure_ascii=False)
        .replace("What is", "What is\u2028\x85")[1:-1]
        .replace('}, {"messages', '}\n{"messages'),
    ),
    "nul_chars": text("r.jsonl", LINES.replace("What is", "What\\u0000is")),
    "parquet_large": parquet(pyarrow.table({"messages": pyarrow.array([r["messages"] for r in ROWS], LARGE)})),
    "list of rows": text("r.json", json.dumps(ROWS, indent=1)),
    "compressed": text("r.jsonl.gz", gzip.compress(LINES.encode())),
    "turns as JSON text": text(
        "r.jsonl", "".join(json.dumps({"messages": json.dumps(r["messages"])}) + "\n" for r in ROWS)
    ),
    "rows in a folder below": lambda folder: ((folder / "data").mkdir(), text("t.jsonl", LINES)(folder / "data"))[-1],
    "a column beside the turns": text("r.jsonl", LINES.replace('{"messages"', '{"id": 3, "messages"')),
    "empty fields of a turn": parquet(
        [turns(*((t["role"], t["content"]) for t in r["messages"]), name=None) for r in ROWS]
    ),
}
REJECTED: dict[str, tuple[Make, str, str]] = {
    "blank_lines_nan": (more("", "  ", '{"messages": NaN}'), "a column is of a wrong type", "messages: number"),
    "lone_surrogate": (
        more('{"messages": [{"role": "user", "content": "\\ud83d"}, {"role": "assistant", "content": "a"}]}'),
        "text with half a surrogate pair",
        "",
    ),
    "huge_line": (more(turns(("user", "x" * 3_000_000), ("assistant", "y"))), "longer than max_row_characters", ""),
    "a tool": (more(turns(("user", "a"), ("assistant", None), ("tool", "b"))), "unknown role", "'tool'"),
    "calls of a tool": (
        more(turns(("user", "a"), ("assistant", "<think>a</think>b"), tool_calls=[1])),
        "unknown field of a turn",
        "'tool_calls'",
    ),
    "two thoughts": (
        more(turns(("user", "a"), ("assistant", "<think>a</think>b"), reasoning="c")),
        "two thoughts in a turn",
        "markers and reasoning",
    ),
    "no content": (
        more(turns(("user", "a"), ("assistant", None))),
        "content is not text",
        "content of the answer: null",
    ),
    "no turns": (more('{"messages": null}'), "a column is of a wrong type", "messages: null"),
    "no turn": (more('{"messages": []}'), "not one user turn and one assistant turn", "no turn"),
    "an empty turn": (more('{"messages": [null]}'), "a column is of a wrong type", "turn: null"),
    "many turns": (
        more(turns(*[("user", "a"), ("assistant", "b")] * 3)),
        "not one user turn and one assistant turn",
        "user, assistant, user, assistant and 2 more",
    ),
    "no row": (more("null"), "not an object with columns", "null"),
    "other columns": (more('{"text": "a"}'), "a column of the format is missing", "no messages; columns: text"),
}
REFUSED: dict[str, tuple[Make, str]] = {
    "big_int": (
        more(f'{{"messages": {"9" * 5000}}}'),
        r"r\.jsonl:31: not valid JSON \(a number of more than 4,300 digits\)",
    ),
    "deep_nesting": (more("[" * 100_000 + "]" * 100_000), r"r\.jsonl:31: not valid JSON \(nested too deeply\)"),
    "latin1": (
        text("r.jsonl", LINES.encode() + '{"messages": "é"}\n'.encode("latin-1")),
        r"r\.jsonl:31: not valid JSON",
    ),
    "utf16": (text("r.jsonl", LINES.encode("utf-16")), r"r\.jsonl: it is UTF-16"),
    "utf16_list_json": (text("r.json", json.dumps(ROWS).encode("utf-16")), r"r\.json: it is UTF-16"),
    "empty": (text("r.jsonl", ""), "none of 0 rows can be used"),
    "empty_json": (text("r.json", ""), "none of 0 rows can be used"),
    "empty_list": (text("r.json", "[]"), "none of 0 rows can be used"),
    "only a byte-order mark": (text("r.jsonl", "\ufeff"), "none of 0 rows can be used"),
    "empty_parquet0": (text("r.parquet", ""), r"r\.parquet: damaged Parquet file"),
    "parquet_zero_rows": (
        parquet(pyarrow.table({"messages": pyarrow.array([], NESTED)})),
        "none of 0 rows can be used",
    ),
    "parquet_nocolumns": (parquet([{"text": "a"}] * 3), "is missing .seen: no messages; columns: text"),
    "parquet_map": (
        parquet(
            pyarrow.table({"messages": pyarrow.array([[list(t.items()) for t in r["messages"]] for r in ROWS], MAPS)})
        ),
        "wrong type .seen: turn: list",
    ),
    "parquet_bad_text": (
        parquet(
            pyarrow.table(
                {
                    "messages": pyarrow.Array.from_buffers(
                        pyarrow.string(),
                        1,
                        [None, pyarrow.array([0, 1], pyarrow.int32()).buffers()[1], pyarrow.py_buffer(b"\xff")],
                    )
                }
            )
        ),
        "damaged Parquet file",
    ),
    "trailing_commas": (text("r.jsonl", LINES.replace("\n", ",\n")), r"r\.jsonl:1: not valid JSON"),
    "list_trailing_comma": (text("r.json", json.dumps(ROWS)[:-1] + ",]"), r"r\.json: not valid JSON"),
    "wrapper_object": (text("r.json", json.dumps({"data": ROWS})), "is missing .seen: no messages; columns: data"),
    "pretty_object": (text("r.json", json.dumps({"data": ROWS}, indent=1)), r"r\.json is no file of rows"),
    "csv": (text("r.csv", "messages\n1\n"), "no rows: expected files ending in"),
    "ndjson": (text("r.ndjson", LINES), "no rows: expected files ending in"),
    "upper_suffix": (text("r.JSONL", LINES), "no rows: expected files ending in"),
    "gz_wrong_suffix": (
        text("r.jsonl", gzip.compress(LINES.encode())),
        r"r\.jsonl: it is compressed with gzip, wanted: text",
    ),
    "plain_named_gz": (text("r.jsonl.gz", LINES), r"r\.jsonl\.gz: damaged"),
    "folder_with_metadata": (
        both(more(), text("meta.json", '{\n "a": 1\n}\n')),
        r"meta\.json is no file of rows; remove it, or name the files with `files`",
    ),
    "metadata on a line": (
        both(more(), text("meta.json", '{"a": 1}')),
        r"meta\.json is no file of rows; remove it, or name the files with `files`",
    ),
    "string_messages_py_repr": (
        text("r.jsonl", "".join(json.dumps({"messages": repr(r["messages"])}) + "\n" for r in ROWS)),
        "text, but not JSON .seen: messages",
    ),
    "sharegpt_human_gpt": (
        text(
            "r.jsonl",
            "".join(json.dumps(turns(("human", "a"), ("gpt", f"<think>a</think>{n}"))) + "\n" for n in range(3)),
        ),
        "unknown role .seen: 'human', 'gpt'",
    ),
    "content_list": (
        text("r.jsonl", json.dumps(turns(("user", [{"type": "text", "text": "hi"}]), ("assistant", "x"))) + "\n"),
        "content is not text .seen: content of the question: list",
    ),
}


def read(folder: Path, protocol: str, **changes: Any) -> AcceptedRows:
    asked = protocol_settings(protocol, **{"format": "messages", "max_row_characters": 1_000_000, **changes})
    rows = AcceptedRows(folder, asked, {})
    list(rows)
    return rows


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", WORKS)
def test_what_works(tmp_path: Path, name: str, protocol: str) -> None:
    WORKS[name](tmp_path)
    rows = read(tmp_path, protocol, max_rejected_share=0.0)
    assert rows.kept == rows.read == rows.total == COUNT


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_parquet_dict(tmp_path: Path, protocol: str) -> None:
    """Columns of text that Parquet holds as dictionaries."""
    parquet(
        pyarrow.table({name: pyarrow.array([r[name] for r in SYNTHETIC]).dictionary_encode() for name in SYNTHETIC[0]})
    )(tmp_path)
    assert read(tmp_path, protocol, format="synthetic1").kept == COUNT
    with pytest.raises(InputError, match="columns: prompt, llm_response, task_type"):
        read(tmp_path, protocol)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", REJECTED)
def test_a_row_is_rejected_with_its_reason(tmp_path: Path, name: str, protocol: str) -> None:
    make, reason, seen = REJECTED[name]
    make(tmp_path)
    rows = read(tmp_path, protocol)
    rejections = rows.results().rejections or {}
    assert rows.kept == COUNT and list(rejections) == [reason]
    assert rejections[reason].count == 1 and list(rejections[reason].seen) == ([seen] if seen else [])
    with pytest.raises(InputError) as caught:
        read(tmp_path, protocol, max_rejected_share=0.0)
    assert seen in str(caught.value) and reason in str(caught.value)


CALL = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
MULTI_TURN_TOOL: list[tuple[str | dict[str, Any], str, str]] = [
    (
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "content": "1"},
                {"role": "assistant", "content": "<think>a</think>b"},
            ]
        },
        "unknown role",
        "'tool'",
    ),
    (turns(("user", "a"), ("assistant", None)), "content is not text", "content of the answer: null"),
    ('{"messages": null}', "a column is of a wrong type", "messages: null"),
    ('{"messages": [null]}', "a column is of a wrong type", "turn: null"),
    ('{"messages": []}', "not one user turn and one assistant turn", "no turn"),
    ("null", "not an object with columns", "null"),
    (turns(("user", "a"), ("ipython", "1"), ("assistant", "b")), "unknown role", "'ipython'"),
    (turns(("user", "a"), ("assistant", None), tool_calls=[CALL]), "unknown field of a turn", "'tool_calls'"),
]
"""Rows of one file, each with its reason and with what was seen."""


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_multi_turn_tool(tmp_path: Path, protocol: str) -> None:
    more(*(found for found, _, _ in MULTI_TURN_TOOL))(tmp_path)
    rows = read(tmp_path, protocol)
    expected: dict[str, dict[str, int]] = {}
    for _, reason, seen in MULTI_TURN_TOOL:
        expected.setdefault(reason, {})[seen] = 1
    rejections = rows.results().rejections or {}
    assert {reason: entry.seen for reason, entry in rejections.items()} == expected
    assert rows.kept == COUNT and sum(entry.count for entry in rejections.values()) == len(MULTI_TURN_TOOL)
    with pytest.raises(InputError) as caught:
        read(tmp_path, protocol, max_rejected_share=0.0)
    assert all(reason in str(caught.value) and seen in str(caught.value) for _, reason, seen in MULTI_TURN_TOOL)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", REFUSED)
def test_a_data_set_is_refused_with_its_file(tmp_path: Path, name: str, protocol: str) -> None:
    make, message = REFUSED[name]
    make(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, protocol)
    assert str(tmp_path) in str(caught.value)


leaf = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.sampled_from(["user", "assistant"])
)
anything = st.recursive(
    leaf,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
field = st.sampled_from(["role", "content", "tool_calls", "name", *THOUGHT_FIELDS]) | st.text(max_size=4)
change = st.tuples(st.integers(0, 1), field, anything | st.sampled_from(["<think>a</think>b", "</think>", "a"]))


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """A good row after some changes of its turns."""
    found = row(draw(st.integers(0, 9)))
    for turn, key, value in draw(st.lists(change, max_size=3)):
        found["messages"][turn][key] = value
    match draw(st.integers(0, 5)):
        case 0:
            found["messages"].insert(draw(st.integers(0, 2)), draw(anything))
        case 1:
            found["messages"] = draw(anything)
        case 2:
            found = {**found, **draw(st.dictionaries(st.text(max_size=4), anything, max_size=2))}
    return found


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(rows=st.lists(mutated() | anything, max_size=4))
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_any_row_is_accepted_or_rejected_with_a_reason(
    tmp_path_factory: pytest.TempPathFactory, protocol: str, rows: list[Any]
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    found = [*rows, row(99)]
    (folder / "r.jsonl").write_text("".join(json.dumps(one) + "\n" for one in found), encoding="utf-8")
    accepted = read(folder, protocol, max_rejected_share=1.0)
    results = accepted.results()
    rejected = sum(entry.count for entry in (results.rejections or {}).values())
    assert accepted.kept >= 1 and accepted.kept + rejected == accepted.read == len(found)
    accepted.write(folder / "rejections.json")
    assert json.loads((folder / "rejections.json").read_text(encoding="utf-8")) == results.model_dump(mode="json")
