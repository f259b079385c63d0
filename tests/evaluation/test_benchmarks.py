"""Reading problems in every shape that the published files have."""

import codecs
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from essence.errors import InputError
from essence.evaluation.benchmarks import Problem, read_problems, render_prompt
from essence.settings import BenchmarkSettings


def settings(**changes: Any) -> BenchmarkSettings:
    values = {
        "name": "sums",
        "problem_field": "problem",
        "answer_field": "answer",
        "answer_type": "number",
        "prompt": "{problem}",
        "problems": None,
    }
    return BenchmarkSettings(**(values | changes))


def folder_of(folder: Path, *answers: Any) -> Path:
    rows = [{"problem": f"p{i}", "answer": answer} for i, answer in enumerate(answers)]
    (folder / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("025", "25"),
        ("-007.50", "-7.5"),
        ("1,234,567", "1234567"),
        ("-0", "0"),
        ("000", "0"),
        ("204", "204"),
        ("0100", "100"),
        ("0", "0"),
        (27.0, "27"),
        (2.5, "2.5"),
        (7, "7"),
        ("0.5", "0.5"),
    ],
)
def test_golds(tmp_path: Path, answer: Any, gold: str) -> None:
    assert read_problems(folder_of(tmp_path, answer), settings()) == [Problem("0", "p0", gold)]


@pytest.mark.parametrize(
    ("answer_type", "answer", "gold"),
    [
        ("latex", " \\frac{1}{2} ", "\\frac{1}{2}"),
        ("latex", "007", "007"),
        ("gsm8k", "9 + 9 = <<9+9=18>>18\n#### 18", "18"),
        ("gsm8k", "a\n#### 2,125", "2125"),
        ("integer", 27.0, "27"),
    ],
)
def test_answer_types(tmp_path: Path, answer_type: str, answer: Any, gold: str) -> None:
    assert read_problems(folder_of(tmp_path, answer), settings(answer_type=answer_type))[0].gold == gold


@pytest.mark.parametrize(
    ("answer_type", "answer", "message"),
    [
        ("integer", "2.5", r"sums, problem 0: field 'answer' holds '2\.5', wanted: an integer"),
        ("integer", "12a", "holds '12a', wanted: an integer"),
        ("number", "1,2", r"holds '1,2', wanted: a number \(answer_type = 'number'\)"),
        ("gsm8k", "it is 18", "ends in 'it is 18', wanted: a solution that ends in `#### ` and a number"),
        ("gsm8k", "so\n#### many", "holds 'many', wanted: a number"),
    ],
)
def test_answers_of_another_type_are_refused(tmp_path: Path, answer_type: str, answer: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_problems(folder_of(tmp_path, answer), settings(answer_type=answer_type))


def test_files_in_order_of_their_names_and_hidden_ones_left_out(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"problem": "second", "answer": 2}\n')
    (tmp_path / "a.json").write_text('[{"problem": "first", "answer": 1}]')
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "state.json").write_text("{}")
    assert [problem.problem for problem in read_problems(tmp_path, settings())] == ["first", "second"]


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"unique_id": ["x/1", "x/2"], "problem": ["p", "q"], "answer": ["1", "02"]})
    parquet.write_table(table, tmp_path / "t.parquet")
    assert read_problems(tmp_path, settings()) == [Problem("x/1", "p", "1"), Problem("x/2", "q", "2")]


@pytest.mark.parametrize(("ids", "names"), [((60, 61), ["60", "61"]), ((60, 60), ["0", "1"]), ((60, None), ["0", "1"])])
def test_ids_only_where_they_name_a_row(tmp_path: Path, ids: tuple[Any, Any], names: list[str]) -> None:
    rows = [{"id": id, "problem": "p", "answer": 1} for id in ids]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert [problem.id for problem in read_problems(tmp_path, settings())] == names


def test_limit(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, 1, 2, 3)
    assert [p.gold for p in read_problems(folder, settings(problems=2))] == ["1", "2"]
    with pytest.raises(InputError, match="holds 3 problems of sums, wanted: 4"):
        read_problems(folder, settings(problems=4))


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no rows: expected files ending in"):
        read_problems(tmp_path / "absent", settings())
    folder = folder_of(tmp_path, 1)
    with pytest.raises(InputError, match=r"row 0: no field 'anwser' \(answer_field .*did you mean 'answer'\?"):
        read_problems(folder, settings(answer_field="anwser"))
    folder_of(tmp_path, [1])
    with pytest.raises(InputError, match="problem 0: field 'answer' holds list"):
        read_problems(folder, settings())
    folder_of(tmp_path, " ")
    with pytest.raises(InputError, match="field 'answer' is empty"):
        read_problems(folder, settings())
    (folder / "sums.jsonl").write_text('{"problem": ')
    with pytest.raises(InputError, match=r"sums\.jsonl:1: not valid JSON"):
        read_problems(folder, settings())


@pytest.mark.parametrize("problem", [3, 2.5, True, ["p"], {"text": "p"}, "", " \n", "\ud83d"])
def test_a_problem_that_is_no_text_is_refused(tmp_path: Path, problem: Any) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"problem": problem, "answer": 1}))
    with pytest.raises(InputError, match=r"a\.jsonl, row 0: field 'problem' (holds|is empty)"):
        read_problems(tmp_path, settings())


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz"])
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_problems_lie_in_the_files_that_rows_lie_in(tmp_path: Path, name: str, mark: bytes) -> None:
    content = mark + b'{"problem": "p", "answer": 1}\r\n\r\n{"problem": "q", "answer": 2}\r\n'
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert [p.problem for p in read_problems(tmp_path, settings())] == ["p", "q"]


def test_prompt() -> None:
    assert (
        render_prompt("Solve {problem} in $\\boxed{ANSWER}$", "{problem}+1") == "Solve {problem}+1 in $\\boxed{ANSWER}$"
    )
    for prompt, times in (("Solve", 0), ("{problem} {problem}", 2)):
        with pytest.raises(InputError, match=f"{times} times, wanted: once"):
            render_prompt(prompt, "2+2")


@pytest.mark.assets
@pytest.mark.parametrize(
    ("file", "fields", "answer_type", "problems", "first"),
    [
        ("aime24_hf_h4_schema", ("problem", "answer"), "integer", 30, ("60", "204")),
        ("aime24_nemo_skills", ("problem", "expected_answer"), "integer", 30, ("aime24-0", None)),
        ("aime25_nemo_skills", ("problem", "expected_answer"), "integer", 30, ("aime25-0", "70")),
        ("math500_simplerl", ("problem", "answer"), "latex", 500, (None, None)),
        ("amc23_simplerl", ("problem", "answer"), "integer", 40, ("0", "27")),
        ("gsm8k_test_openai", ("question", "answer"), "gsm8k", 1319, ("0", "18")),
    ],
)
def test_published_files(
    assets: Path,
    tmp_path: Path,
    file: str,
    fields: tuple[str, str],
    answer_type: str,
    problems: int,
    first: tuple[str, str],
) -> None:
    (tmp_path / f"{file}.jsonl").symlink_to(assets / "benchmarks" / f"{file}.jsonl")
    read = read_problems(tmp_path, settings(problem_field=fields[0], answer_field=fields[1], answer_type=answer_type))
    assert len(read) == len({problem.id for problem in read}) == problems
    found = (read[0].id, read[0].gold)
    assert all(wanted in (None, value) for wanted, value in zip(first, found, strict=True))
    if file.startswith(("aime", "amc")):
        assert all(str(int(problem.gold)) == problem.gold for problem in read)
