"""The picture of all arms: its curves, its lines, its numbers beside it, and where there is nothing to compare."""

import csv
import io
import json
from pathlib import Path

import pytest

from essence.report.build import write_report
from essence.report.claims.kept import read_with_retention
from essence.report.page.picture import COLUMNS, UNTRAINED, WHOLE, Picture, picture_csv, pictures
from essence.report.page.picture_drawn import draw_pictures
from support.synthetic_run import REAL, SyntheticRun

SPANS = ("left", "random-tokens", "first-512", "first-2048")


@pytest.fixture
def run(tmp_path: Path) -> SyntheticRun:
    """Two spans at two shares and whole rows, two amounts, and two arms of an equal number of tokens."""
    run = SyntheticRun(tmp_path, experiment="controls", lsps=(0.5, 1.0), seeds=(1, 2), spans=SPANS, **REAL).write()
    cells = run.plan["cells"]
    kept = [cell for cell in cells if not (cell["span"].startswith("first-") and cell["lsp"] == 0.5)]
    kept = [cell for cell in kept if (cell["span"], cell["lsp"]) != ("random-tokens", 1.0)]
    matched = [
        {**cell, "name": f"{cell['name']}/budget", "token_budget": 5_000_000} for cell in cells if cell["lsp"] == 0.5
    ][:4]
    run.plan["cells"] = kept + matched
    run.write_plan()
    return run


def picture(run: SyntheticRun) -> Picture:
    (found,) = pictures(read_with_retention(run.root, run.experiment))
    return found


def test_a_curve_for_each_arm_and_whole_rows_at_the_end_of_those_that_lead_there(run: SyntheticRun) -> None:
    found = picture(run)
    assert list(found.curves) == ["left", "random-tokens", "first-k"]
    assert [(point.span, point.lsp) for point in found.curves["random-tokens"]] == [
        ("random-tokens", 0.5),
        ("left", 1.0),
    ]
    assert [point.span for point in found.curves["first-k"]] == ["first-512", "first-2048"]
    assert found.whole is found.curves["left"][-1] and found.untrained is not None
    assert [(point.name, point.token_budget) for point in found.matched] == [
        ("left 0.50", 5_000_000), ("random-tokens 0.50", 5_000_000),
    ]  # fmt: skip
    # 200,000 tokens an epoch at one half, two epochs.
    assert [point.tokens for point in found.curves["left"]] == [400_000, 800_000]
    arm = read_with_retention(run.root, run.experiment).groups[0].arms[0]
    assert found.curves["left"][0].accuracy == arm.pooled[("aime25", "best")].accuracy


def test_its_numbers_lie_beside_it(run: SyntheticRun) -> None:
    page = write_report(run.root, run.experiment)
    record = json.loads((page.parent / "report.json").read_text(encoding="utf-8"))
    (entry,) = record["pictures"]
    assert entry["files"] == [f"figures/accuracy-by-tokens.{kind}" for kind in ("png", "svg", "csv")]
    assert all(name in record["files"] and (page.parent / name).is_file() for name in entry["files"])
    text = (page.parent / "figures" / "accuracy-by-tokens.csv").read_text(encoding="utf-8")
    lines = list(csv.DictReader(io.StringIO(text)))
    assert tuple(lines[0]) == COLUMNS and text == picture_csv(picture(run))
    assert [line["curve"] for line in lines] == [
        "left", WHOLE, "random-tokens", "first-k", "first-k", "left", "random-tokens", UNTRAINED,
    ]  # fmt: skip
    first = picture(run).curves["left"][0].accuracy
    assert [float(lines[0][name]) for name in ("accuracy", "low", "high")] == [first.value, first.low, first.high]
    html = page.read_text(encoding="utf-8")
    section = html.partition('<section id="pictures"')[2].partition("</section>")[0]
    assert "<svg" in section and "accuracy-by-tokens.csv" in section
    assert "(figures/accuracy-by-tokens.png)" in (page.parent / "report.md").read_text(encoding="utf-8")


def test_the_drawing_names_every_arm_and_line_and_is_the_same_each_time(run: SyntheticRun) -> None:
    (figure,) = draw_pictures([picture(run)])
    for name in ("left", "random-tokens", "first-k", WHOLE, UNTRAINED, "tokens trained on", "accuracy on aime25"):
        assert name in figure.svg
    (again,) = draw_pictures([picture(run)])
    assert (again.svg, again.png, again.data) == (figure.svg, figure.png, figure.data)
    assert "first-k: " in figure.alt and "%" in figure.alt


def test_one_arm_alone_makes_no_picture(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, **REAL).write()
    assert pictures(read_with_retention(run.root, run.experiment)) == []


def test_what_is_not_graded_is_left_out_and_one_training_says_so(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, lsps=(0.5, 1.0), seeds=(1,), spans=("left", "middle", "right"), **REAL).write()
    run.leave(run.stage_of(5, "grade"), run.stage_of(2, "train"))
    found = picture(run)
    assert "middle" in found.curves and len(found.curves["right"]) == 2  # whole rows of left stand in
    (figure,) = draw_pictures([found])
    assert "One training of each arm" in figure.caption
