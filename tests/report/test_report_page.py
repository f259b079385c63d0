"""The files of a report: escaped, the same each time, sealed, linked, and readable."""

import base64
import hashlib
import html
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from essence.record.record_files import seal_of
from essence.record.run_directory import RunDirectory
from essence.report.build import own_files, report_is_current, write_report
from essence.report.page.printed_report import print_results
from essence.report.recheck import report_findings
from essence.text import SPACE, duration, magnitude, memory, percent, proportion, slug, times, whole
from support.report_files import files, page_of
from support.synthetic_run import REAL, SyntheticRun


def test_odd_names_are_escaped_everywhere(tmp_path: Path) -> None:
    odd = '<script>alert("1")</script> & |x| $2^n$ [a](b)'
    run = SyntheticRun(tmp_path, benchmark=odd, dataset=odd, student="a&b", title=odd).write()
    report = write_report(run.root, "tiny")
    page = report.read_text()
    # Data, in which no tag can stand, and one script, the kit's own, which the policy names by hash.
    tags = re.findall(r"<script[^>]*>", page)
    data_tag = r'<script type="(application/json" id="(explore|samples)-data|text/plain" id="piece-[a-z0-9.-]+)">'
    assert [tag for tag in tags if not re.fullmatch(data_tag, tag)] == ["<script>"] and len(tags) > 10
    assert page.count("</script>") == len(tags)
    data = page.split('id="explore-data">')[1].split("</script>")[0]
    assert "<" not in data and json.loads(data)["groups"][0]["dataset"] == odd
    code = page.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html.unescape(page)
    assert "&lt;script&gt;" in page
    assert json.loads((report.parent / "report.json").read_text())["title"] == odd
    tables = [line for line in (report.parent / "report.md").read_text().splitlines() if line.startswith("|")]
    # The questions have 7 columns, the claims 8, computed costs 9, results and ends of completions 10.
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in tables} == {8, 9, 10, 11}
    for name in files(report):
        assert re.fullmatch(r"[\w./-]+", name), name
    for svg in (report.parent / "figures").glob("*.svg"):
        assert "<script" not in svg.read_text()


def test_the_same_run_gives_the_same_bytes(reported: SyntheticRun) -> None:
    report = page_of(reported)
    first = {name: (report.parent / name).read_bytes() for name in files(report)}
    write_report(reported.root, "tiny")
    assert first == {name: (report.parent / name).read_bytes() for name in files(report)}
    assert {name for name in first if name.endswith(".svg")} == {
        f"figures/{name}.svg"
        for name in ("sums-test-best-accuracy", "sums-test-best-retention", "time", "memory", "flops", "loss-training",
                     "loss-validation")
    }  # fmt: skip


def test_a_new_report_takes_the_place_of_the_old_one(reported: SyntheticRun) -> None:
    report = page_of(reported)
    (report.parent / "stale.txt").write_text("old")
    write_report(reported.root, "tiny")
    assert "stale.txt" not in files(report)
    assert [p.name for p in report.parent.parent.iterdir() if p.name.startswith(".")] == []


def test_a_report_is_not_current_once_a_reason_that_it_shows_is_another(run: SyntheticRun) -> None:
    """Neither is it accused by verify: its words are those of another moment."""
    grade = run.stage_of(0, "grade")
    run.fail(grade, "no such file")
    report = write_report(run.root, "tiny")
    assert report_is_current(run.root, "tiny") and "no such file" in (report.parent / "report.json").read_text()
    run.fail(grade, "disk is full")
    assert not report_is_current(run.root, "tiny")
    found, unchecked = report_findings(RunDirectory(run.root), "tiny")
    assert found == [] and "before later stages" in unchecked[0]


@pytest.mark.parametrize("part", ["title", "statement", "done", "claims", "groups", "computed_costs", "missing"])
def test_no_part_of_a_report_can_be_written_otherwise_under_a_new_seal(part: str, reported: SyntheticRun) -> None:
    file = page_of(reported).with_name("report.json")
    record = json.loads(file.read_text(encoding="utf-8"))
    record[part] = not record[part] if isinstance(record[part], bool) else "the paper is right"
    file.write_text(json.dumps({**record, "seal": seal_of(record)}), encoding="utf-8")
    found, unchecked = report_findings(RunDirectory(reported.root), "tiny")
    assert len(found) == 1 and not unchecked
    assert part in found[0] or "not a report of this kit" in found[0]


def test_a_report_is_of_the_page_and_the_claims_of_this_version() -> None:
    names = {file.name for file in own_files()}
    assert {"template.html", "charts.js", "build.py", "verdict.py", "stage_reader.py", "claims.toml"} <= names
    assert {"text.py", "statistics.py", "cost_table.py", "machine_load.py"} <= names


def test_a_report_is_current_until_a_manifest_changes(run: SyntheticRun, reported: SyntheticRun) -> None:
    assert not report_is_current(run.root, "tiny")
    assert report_is_current(reported.root, "tiny")
    reported.damage(reported.stage_of(0, "grade"), seeds={"sampling": 9})
    assert not report_is_current(reported.root, "tiny")


def test_every_link_of_the_page_leads_somewhere(reported: SyntheticRun) -> None:
    report = page_of(reported)
    page = report.read_text()
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for target in re.findall(r'<a [^>]*href="([^"]+)"', page):
        if target.startswith("#"):
            assert target[1:] in ids, target
        else:
            assert (report.parent / target).resolve().is_file(), target
    assert "http" not in re.sub(r'xmlns(:xlink)?="[^"]+"|http-equiv', "", page)


def test_each_number_of_the_json_is_one_of_the_manifest(reported: SyntheticRun) -> None:
    record = json.loads(page_of(reported).with_name("report.json").read_text())
    evaluation = record["groups"][0]["evaluations"][0]
    cell = evaluation["cells"][0]
    grade = reported.root / "stages" / reported.stage_of(0, "grade")
    manifest = json.loads((grade / "manifest.json").read_text())
    assert cell["accuracy"]["value"] == manifest["results"]["accuracy"]
    assert [row["lsp"] for row in evaluation["rows"]] == [None, 0.25, 0.5, 0.75, 1.0, None]


def test_the_terminal_table_fits_eighty_columns(run: SyntheticRun, capsys: pytest.CaptureFixture[str]) -> None:
    for width in (80, 130):
        print_results(run.root, "tiny", Console(width=width, color_system=None))
        shown = capsys.readouterr().out
        assert "…" not in shown
        assert max(map(len, shown.splitlines())) <= width
        assert "2 / 2" in shown and "teacher" in shown


def test_only_a_run_on_made_up_models_is_called_a_miniature(reported: SyntheticRun) -> None:
    assert "This is a miniature" in page_of(reported).read_text()
    for stage, entry in reported.plan["stages"].items():
        if entry["stage"] == "download":
            reported.damage(stage, settings={"resolved": {"source": {"name": "x", "builtin": None}}, "executed": {}})
    assert "This is a miniature" not in write_report(reported.root, "tiny").read_text()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (percent(0.4375), "43.8 %"), (percent(None), "–"), (duration(41.23), "41.2 s"),
        (duration(600), "10.0 min"), (duration(90_000), "25.0 h"), (memory(0.5), "512 MiB"),
        (memory(38.24), "38.2 GiB"), (magnitude(3.41e15), "3.41 P"), (magnitude(12), "12"),
        (whole(1024.4), "1,024"), (times(0.517), "0.52 ×"), (proportion(0.5), "0.50"),
        (proportion(0.125), "0.125"), (slug("../a b/<c>"), "a-b-c"), (slug("≥"), "unnamed"),
    ],
)  # fmt: skip
def test_numbers_read_well(text: str, shown: str) -> None:
    assert text.replace(SPACE, " ") == shown


def test_rejected_rows_are_shown_with_their_reasons(reported: SyntheticRun) -> None:
    folder = page_of(reported).parent
    page, text = ((folder / f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "md"))
    for said, share in ((page, "&lt; 0.1 %"), (text, "\\< 0.1 %")):
        assert "Training rows" in said
        assert f"4,001 rows read, 4,000 kept, 1 rejected ({share})" in said
        assert "sums (60 problems): 2 questions repeat one, 0 overlap with one, 1 share a formula only" in said
    assert "- 1 rejected: thought never closed" in text
    assert "- 1,234 kept: empty \\<answer\\>" in text
    assert "empty &lt;answer&gt;" in page and "<td>1,234</td>" in page


def test_with_many_groups_figures_are_linked_and_tables_folded(
    run: SyntheticRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("essence.report.page.page.MOST_INLINED_GROUPS", 0)
    report = write_report(run.root, "tiny")
    text = report.read_text()
    assert text.count("<svg") == 1  # the empty one that the chart is drawn into
    assert '<details class="group">' in text
    linked = re.findall(r'href="(figures/[^"]+)"', text)
    assert len(linked) == 14
    assert all((report.parent / name).is_file() for name in linked)


def test_the_picture_of_all_arms_is_on_the_page_however_many_groups_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("essence.report.page.page.MOST_INLINED_GROUPS", 0)
    run = SyntheticRun(tmp_path, experiment="controls", spans=("left", "random-tokens"), **REAL).write()
    page = write_report(run.root, run.experiment).read_text()
    assert page.split('id="pictures"')[1].split("</section>")[0].count("<svg") == 1
    monkeypatch.setattr("essence.report.page.page.MOST_INLINED_PICTURES", 0)
    page = write_report(run.root, run.experiment).read_text()
    assert page.split('id="pictures"')[1].split("</section>")[0].count("<svg") == 0


def test_every_claim_that_was_measured_links_its_manifests(reported: SyntheticRun) -> None:
    report = page_of(reported)
    row = report.read_text().split('id="claim-retention-half-corrected"')[1].split("</tr>")[0]
    record = json.loads((report.parent / "report.json").read_text())
    stages = next(claim["stages"] for claim in record["claims"] if claim["id"] == "retention-half")
    assert re.findall(r"stages/([^/]+)/manifest\.json", row) == stages
