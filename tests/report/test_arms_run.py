"""Arms that are really trained, in miniature: the command ends with the picture, the questions and honest words."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from support.project import MICRO, invoke

MATRIX = """
[[matrix]]
dataset = ["tiny"]
pair = ["tiny-teacher_tiny-student"]
lsp = [0.5, 1.0]
span = ["left"]

[[matrix]]
dataset = ["tiny"]
pair = ["tiny-teacher_tiny-student"]
lsp = [0.5, 1.0]
span = ["random-tokens"]
"""


@pytest.mark.slow
def test_a_comparison_of_arms_ends_with_its_picture_and_its_questions(micro: Path, tmp_path: Path) -> None:
    """The small matrix with one arm more, which alone is trained and evaluated; whole rows are those of the matrix."""
    runs, file = tmp_path / "runs", tmp_path / "micro-drawn.toml"
    shutil.copytree(micro, runs)
    file.write_text(f'extends = "{MICRO}"\ntitle = "One arm more"\n{MATRIX}', encoding="utf-8")
    done = invoke("reproduce", str(file), "--runs", str(runs))
    assert done.returncode == 0, done.stdout + done.stderr
    plan = json.loads((runs / file.stem / "plan.json").read_text(encoding="utf-8"))
    assert [(cell["span"], cell["lsp"]) for cell in plan["cells"]] == [
        *(("left", 0.5), ("left", 1.0), ("random-tokens", 0.5)),
    ]
    assert len(plan["stages"]) == 15 + 3, "training, completions and verdicts of the arm"
    report = runs / file.stem / "report"
    written = json.loads((report / "report.json").read_text(encoding="utf-8"))
    (picture,) = written["pictures"]
    assert [Path(name).suffix for name in picture["files"]] == [".png", ".svg", ".csv"]
    assert all((report / name).stat().st_size > 200 for name in picture["files"])
    rows = list(csv.DictReader((report / picture["files"][2]).read_text(encoding="utf-8").splitlines()))
    read = {row["curve"]: float(row["tokens_trained_on"]) for row in rows if row["lsp"] == "0.5"}
    assert set(read) == {"left", "random-tokens"} and read["random-tokens"] > 1.8 * read["left"], "all text is read"
    answers = {row["id"]: row["answer"] for row in written["questions"]}
    assert answers["fewer-labels-or-less-text"] == "shown, not judged", "additions answer no question"
    assert not {"yes", "no"} & set(answers.values())
    page = (report / "report.html").read_text(encoding="utf-8")
    assert "fewer-labels-or-less-text" in page and "miniature" in page
    assert invoke("verify", str(runs / file.stem)).returncode == 0
