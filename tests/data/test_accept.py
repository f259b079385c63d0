"""Which rows of a data set are used under the two protocols, and how the others are counted."""

import json
from pathlib import Path
from typing import Any

import psutil
import pytest

from essence.data.accept import EXCERPT_CHARACTERS, AcceptedRows, rejection_table
from essence.data.reasons import Exchange
from essence.data.row_records import ReasonCount, RowCounts
from essence.errors import InputError
from essence.settings import TokenizeSettings
from support.tokenize_settings import protocol_settings

THOUGHT = "<|begin_of_thought|>\n\nAdd.\n\n<|end_of_thought|>\n\n"
TRACE = THOUGHT + "<|begin_of_solution|>\n\nIt is {}.\n\n<|end_of_solution|>"
IRREGULAR = TRACE.replace("\n\n<|end_of_solution|>", "<|end_of_solution|>")


def row(user: object, assistant: object) -> dict[str, Any]:
    return {"conversations": [{"from": "user", "value": user}, {"from": "assistant", "value": assistant}]}


def write(folder: Path, rows: list[Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(found) + "\n" for found in rows), encoding="utf-8")
    return folder


def accept(
    folder: Path, rows: list[Any], asked: TokenizeSettings, problems: dict[str, Path] | None = None
) -> tuple[dict[int, Exchange], RowCounts]:
    accepted = AcceptedRows(write(folder, rows), asked, problems or {})
    found = dict(accepted)
    return found, accepted.results()


def counts(reasons: dict[str, ReasonCount] | None) -> dict[str, int]:
    return {reason: entry.count for reason, entry in (reasons or {}).items()}


ROWS = [
    row("1+1?", TRACE.format(2)),
    row("1+2?", IRREGULAR.format(3)),
    row("1+3?", "<think>a</think>b</think>c"),
    row("1+4?", "<think>never closed"),
    row("1+5?", "It is 6."),
    row("1+1?", TRACE.format(2).replace("\n\n", "\n\n\n")),
    row(None, TRACE.format(2)),
    row("1+6?", TRACE.format("7" * 10_000)),
    {"conversations": [{"from": "human", "value": "x"}]},
]


def test_corrected_uses_rows_with_clear_parts_only(tmp_path: Path) -> None:
    accepted, results = accept(tmp_path, ROWS, protocol_settings())
    assert accepted == {
        0: Exchange("1+1?", "<think>\nAdd.\n</think>\n\nIt is 2."),
        1: Exchange("1+2?", "<think>\nAdd.\n</think>\n\nIt is 3."),
    }
    assert (results.rows_read, results.rows_kept, results.remarks) == (9, 2, {})
    assert counts(results.rejections) == {
        "content is not text": 1,
        "longer than max_row_characters": 1,
        "no thought markers": 1,
        "same question and answer as an earlier row": 1,
        "thought never closed": 1,
        "two closing thought markers": 1,
        "unknown role": 1,
    }


def test_released_trains_on_what_the_template_takes_and_says_so(tmp_path: Path) -> None:
    accepted, results = accept(tmp_path, ROWS, protocol_settings("released"))
    assert list(accepted) == [0, 1, 2, 3, 4, 5]
    assert accepted[1].assistant == "<think>\n\nAdd.\n\n</think>\n\nIt is 3.<|end_of_solution|>"
    assert accepted[2].assistant == "<think>a</think>b</think>c"
    assert counts(results.rejections) == {
        "content is not text": 1,
        "longer than max_row_characters": 1,
        "unknown role": 1,
    }
    assert counts(results.remarks) == {
        "no thought markers": 1,
        "same question and answer as an earlier row": 1,
        "solution marker that the exact replacement missed": 1,
        "thought never closed": 1,
        "two closing thought markers": 1,
    }


def test_examples_are_five_short_lines_with_positions(tmp_path: Path) -> None:
    good = [row(f"{number}+1?", TRACE.format(number + 1)) for number in range(3)]
    rows = [row("?", 3)] * 9 + good
    _, results = accept(tmp_path, rows, protocol_settings())
    assert results.rejections
    entry = results.rejections["content is not text"]
    assert entry.count == 9
    assert [example.position for example in entry.examples] == [0, 1, 2, 3, 4]
    assert entry.examples[0].row == json.dumps(rows[0])
    _, results = accept(tmp_path, [row("long " * 999, [TRACE * 30] * 30), *good], protocol_settings())
    assert results.rejections
    (example,) = results.rejections["content is not text"].examples
    assert len(example.row) <= EXCERPT_CHARACTERS
    assert "long long" in example.row and " … " in example.row


def test_an_excerpt_of_half_a_character_can_be_written(tmp_path: Path) -> None:
    accepted = AcceptedRows(write(tmp_path, [row("\ud83d", "x"), ROWS[0]]), protocol_settings(), {})
    assert len(list(accepted)) == 1
    accepted.write(tmp_path / "rejections.json")
    written = json.loads((tmp_path / "rejections.json").read_text(encoding="utf-8"))
    read = RowCounts.model_validate(written)
    assert read == accepted.results() and read.model_dump(mode="json") == written
    assert counts(read.rejections) == {"text with half a surrogate pair": 1}


def test_too_many_rejections_stop_with_the_table(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        accept(tmp_path, ROWS, protocol_settings(max_rejected_share=0.5))
    text = str(caught.value)
    assert "7 of 9 rows are rejected, the share allowed is 0.5" in text
    assert "max_rejected_share" in text
    assert "1 rejected: thought never closed" in text
    assert 'row 3: {"conversations"' in text
    accept(tmp_path, ROWS, protocol_settings("released", max_rejected_share=0.5))
    with pytest.raises(InputError, match="none of 2 rows can be used"):
        accept(tmp_path, ROWS[3:5], protocol_settings(max_rejected_share=1.0))


@pytest.mark.parametrize("protocol", ["released", "corrected"])
def test_a_data_set_without_thoughts_stops(tmp_path: Path, protocol: str) -> None:
    plain = [{**row(f"{number}+1?", f"It is {number + 1}."), "trace": "x"} for number in range(3)]
    with pytest.raises(InputError) as caught:
        accept(tmp_path, plain, protocol_settings(protocol, max_rejected_share=1.0))
    if protocol == "corrected":
        assert "none of 3 rows can be used: no thought markers" in str(caught.value)
    else:
        sentence = "none of the 3 rows that can be used holds a thought (columns seen: conversations, trace)"
        assert sentence in str(caught.value) and "reasoning_content" in str(caught.value)
    accepted, _ = accept(tmp_path, [*plain, row("1+4?", TRACE.format(5))], protocol_settings(protocol))
    assert list(accepted) == ([3] if protocol == "corrected" else [0, 1, 2, 3])


@pytest.mark.parametrize("protocol", ["released", "corrected"])
def test_a_thought_in_a_field_is_rendered_between_the_markers(tmp_path: Path, protocol: str) -> None:
    found = row("1+1?", "It is 2.")
    found["conversations"][1]["reasoning_content"] = "Add."
    accepted, results = accept(tmp_path, [found], protocol_settings(protocol))
    assert accepted == {0: Exchange("1+1?", "<think>\nAdd.\n</think>\n\nIt is 2.")}
    assert results.rejections == results.remarks == {}


def test_the_names_that_were_seen_are_counted(tmp_path: Path) -> None:
    rows = [{"conversations": [{"from": f"role {number % 60}", "value": "x"}]} for number in range(120)]
    rows += [{"conversations": [{"from": "gpt", "value": "x"}]}] * 9
    good = [row(f"{number}+1?", TRACE.format(number + 1)) for number in range(30)]
    _, results = accept(tmp_path, [*rows, *good], protocol_settings())
    assert results.rejections
    seen = results.rejections["unknown role"].seen
    assert len(seen) == 50 and seen["'role 0'"] == 2
    line = next(line for line in rejection_table(results) if "unknown role" in line)
    assert line.endswith("(seen: 'role 0'; 'role 1'; 'role 10'; ...)")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("meta.json", '{\n "a": 1\n}\n'),
        ("meta.json", '{"a": 1}'),
        ("meta.json", '["train", "test"]'),
        ("a/meta.json", "3"),
    ],
)
def test_a_file_beside_the_rows_that_holds_none_is_named(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content, encoding="utf-8")
    good = [row(f"{number}+1?", TRACE.format(number + 1)) for number in range(30)]
    with pytest.raises(InputError) as caught:
        accept(tmp_path, good, protocol_settings())
    wanted = f"{tmp_path / name} is no file of rows; remove it, or name the files with `files`"
    assert str(caught.value).startswith(wanted) and "\n" not in str(caught.value)


def test_json_lines_of_another_shape_are_rejected_and_counted(tmp_path: Path) -> None:
    (tmp_path / "zmeta.jsonl").write_text('{"a": 1}\n{"a": 2}\n', encoding="utf-8")
    good = [row(f"{number}+1?", TRACE.format(number + 1)) for number in range(30)]
    _, results = accept(tmp_path, good, protocol_settings(max_rejected_share=0.1))
    assert (results.rows_read, results.rows_kept) == (32, 30)
    assert counts(results.rejections)["a column of the format is missing"] == 2


def test_rows_that_are_not_wanted_stop_nothing(tmp_path: Path) -> None:
    other = {"prompt": "x", "llm_response": "y", "task_type": "verifiable_code"}
    wanted = {"prompt": "1+1?", "llm_response": "<think>a</think>2", "task_type": "verifiable_math"}
    asked = protocol_settings(format="synthetic1", max_rejected_share=0.0)
    accepted, results = accept(tmp_path, [other] * 9 + [wanted], asked)
    assert list(accepted) == [9]
    assert counts(results.rejections) == {"task_type is not verifiable_math": 9}


@pytest.mark.parametrize("remove", [False, True])
def test_evaluation_problems_are_counted_and_removed_when_asked(tmp_path: Path, remove: bool) -> None:
    problems = tmp_path / "problems"
    problems.mkdir()
    (problems / "p.jsonl").write_text('{"question": "What is 1 + 1?", "answer": "2"}\n')
    rules = {"problem_fields": {"sums": "question"}, "overlap_words": 13, "remove": remove}
    rows = [row("What is 1+1?", TRACE.format(2)), row("What is 1+2?", TRACE.format(3))]
    accepted, results = accept(tmp_path / "rows", rows, protocol_settings(decontamination=rules), {"sums": problems})
    assert list(accepted) == ([1] if remove else [0, 1])
    assert results.contamination["sums"].exact == 1
    assert counts(results.rejections) == ({"question of an evaluation problem": 1} if remove else {})
    assert any("sums: 1 repeat one of its 1 problems" in line for line in rejection_table(results))


def test_a_benchmark_without_the_field_is_one_sentence(tmp_path: Path) -> None:
    problems = tmp_path / "problems"
    problems.mkdir()
    (problems / "p.jsonl").write_text('{"problem": "What is 1 + 1?"}\n')
    rules = {"problem_fields": {"sums": "problems"}, "overlap_words": 13, "remove": False}
    with pytest.raises(InputError, match=r"no text in field 'problems'; did you mean 'problem'\?"):
        accept(tmp_path / "rows", ROWS, protocol_settings(decontamination=rules), {"sums": problems})


def test_the_table_is_short_and_says_shares(tmp_path: Path) -> None:
    _, results = accept(tmp_path, ROWS, protocol_settings())
    lines = rejection_table(results)
    assert lines[0] == "9 rows read, 2 kept, 7 rejected (77.8 %)"
    assert len(lines) == 8


def test_memory_is_flat_but_for_the_digests(tmp_path: Path) -> None:
    """Fifty thousand rows, 55 MB of text, in one pass: what is kept of each is its digest."""
    filler = "Add them. " * 100
    with (tmp_path / "rows.jsonl").open("w", encoding="utf-8") as file:
        for number in range(50_000):
            file.write(json.dumps(row(f"{number}+1?", f"<think>{filler}</think>{number + 1}")) + "\n")
    process, peak = psutil.Process(), 0
    accepted = AcceptedRows(tmp_path, protocol_settings(), {})
    before = process.memory_info().rss
    for position, _ in accepted:
        if position % 5000 == 0:
            peak = max(peak, process.memory_info().rss - before)
    assert accepted.kept == 50_000
    assert peak < 25e6
