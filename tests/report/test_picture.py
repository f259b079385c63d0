"""The picture of all arms: its curves, its lines, its numbers beside it, and where there is nothing to compare."""

import csv
import io
import json
from pathlib import Path

import pytest

from essence.report.build import write_report
from essence.report.claims.retention_rows import read_with_retention
from essence.report.page.picture_drawing import draw_pictures
from essence.report.page.picture_numbers import COLUMNS, UNTRAINED, WHOLE, Picture, picture_csv, pictures
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
    assert {budget: [point.name for point in points] for budget, points in found.matched.items()} == {
        5_000_000: ["left 0.50", "random-tokens 0.50"],
    }
    # 200,000 tokens an epoch at one half, two epochs.
    assert [point.tokens for point in found.curves["left"]] == [400_000, 800_000]
    arm = read_with_retention(run.root, run.experiment).groups[0].arms[0]
    assert found.curves["left"][0].accuracy == arm.pooled[("aime25", "best")].accuracy


def test_arms_of_two_budgets_are_not_called_equal(run: SyntheticRun) -> None:
    larger = [
        {**cell, "name": f"{cell['name']}/more", "token_budget": 9_000_000}
        for cell in run.plan["cells"]
        if cell["token_budget"]
    ]
    for cell in larger:
        stages = run.root / "stages"
        old, new = cell["stages"]["train"], f"{cell['stages']['train']}-more"
        record = json.loads((stages / old / "manifest.json").read_text())
        record["inputs"]["data"]["train"]["tokens"] = 900_000
        (stages / new).mkdir()
        (stages / new / "manifest.json").write_text(json.dumps(record))
        run.damage(new, inputs=record["inputs"])
        run.plan["stages"][new] = run.plan["stages"][old]
        cell["stages"] = {**cell["stages"], "train": new}
    run.plan["cells"] += larger
    run.write_plan()
    found = picture(run)
    assert {budget: {point.tokens for point in points} for budget, points in found.matched.items()} == {
        5_000_000: {400_000}, 9_000_000: {1_800_000},
    }  # fmt: skip
    (figure,) = draw_pictures([found])
    assert "trained on: 400" in figure.svg and "trained on: 1.8" in figure.svg and "trained on: 1.1" not in figure.svg
    assert "equal tokens (9,000,000 an epoch), left 0.50: " in figure.alt and "a panel" in figure.caption
    assert [line["token_budget"] for line in csv.DictReader(io.StringIO(figure.data))][5:9] == [
        "5000000", "5000000", "9000000", "9000000",
    ]  # fmt: skip


def test_whole_rows_are_a_line_where_all_curves_have_as_many_rows(run: SyntheticRun) -> None:
    fewer = [
        {**cell, "name": f"{cell['name']}/fewer", "train_rows": 1000}
        for cell in run.plan["cells"]
        if cell["span"] in ("left", "random-tokens") and not cell["token_budget"]
    ]
    run.plan["cells"] += fewer
    run.write_plan()
    found = picture(run)
    assert found.whole is None and not found.equal_rows
    ends = {name: (curve[-1].lsp, curve[-1].train_rows) for name, curve in found.curves.items() if name != "first-k"}
    assert ends == {
        "left": (1.0, None), "random-tokens": (1.0, None),
        "left, 1,000 rows": (1.0, 1000), "random-tokens, 1,000 rows": (1.0, 1000),
    }  # fmt: skip
    (figure,) = draw_pictures([found])
    assert WHOLE not in figure.svg and "equal rows" not in figure.svg and "different numbers of rows" in figure.caption
    lines = [line for line in csv.DictReader(io.StringIO(figure.data)) if line["curve"] == WHOLE]
    assert [line["train_rows"] for line in lines] == ["", "1000"]


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
