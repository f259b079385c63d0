"""The page in a real browser: at two widths, light and dark, without network."""

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from essence.report.build import write_report
from essence.report.claims.retention_rows import with_retention
from essence.report.page import samples
from essence.report.page.page import render_page
from essence.report.results.read import read_results
from support.paper_run import paper_run
from support.project import required
from support.synthetic_run import SyntheticRun, full_size_run

pytestmark = pytest.mark.browser
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync")  # fmt: skip
VIEWS = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]
DARKEST_LIGHT, LIGHTEST_DARK = 200, 60
WAIT_S = 300.0


def no_browser(reason: str) -> None:
    """Skip, or fail where ESSENCE_REQUIRE names `browser`."""
    if required("browser"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    executable = next(filter(None, map(shutil.which, NAMES)), None)
    if executable is None:
        no_browser(f"no browser: none of {', '.join(NAMES)} is on PATH")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=executable, args=list(ARGUMENTS), timeout=1000 * WAIT_S)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run; one with failures, odd names and long words; one with nothing done."""
    whole = SyntheticRun(tmp_path_factory.mktemp("whole")).write()
    odd = SyntheticRun(
        tmp_path_factory.mktemp("odd"), student="a<b>&" + "long" * 20, checkpoints=("best", "last"),
        protocol="released", title="W" * 60,
    ).write()  # fmt: skip
    odd.fail(odd.stage_of(2, "train"), "/a/very/long/path" * 20)
    odd.leave(*(odd.stage_of(2, stage) for stage in ("generate", "grade")))
    empty = SyntheticRun(tmp_path_factory.mktemp("empty"), finished=False).write()
    runs = {"whole": whole, "odd": odd, "empty": empty}
    return {name: write_report(run.root, "tiny") for name, run in runs.items()}


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of 500 cells; the figures beside it, which it does not inline at this size, are not drawn."""
    results = read_results(full_size_run(tmp_path_factory.mktemp("full")).root, "tiny")
    assert len(results.cells) == 500
    report = results.run_dir / "tiny" / "report" / "report.html"
    report.parent.mkdir()
    report.write_text(render_page(results, {}), encoding="utf-8")
    return report


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the 30 settings of the headline."""
    results = with_retention(read_results(paper_run(tmp_path_factory.mktemp("paper")).root, "paper"))
    report = results.run_dir / "paper" / "report" / "report.html"
    report.parent.mkdir()
    report.write_text(render_page(results, {}), encoding="utf-8")
    return report


def open_page(browser: Any, report: Path, width: int, scheme: str) -> tuple[Any, list[str]]:
    """The page and what went wrong while it loaded."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.set_default_timeout(1000 * WAIT_S)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(request.url))
    page.on(
        "request",
        lambda request: None if request.url.startswith(("file:", "data:")) else complaints.append(request.url),
    )
    page.goto(report.as_uri())
    return page, complaints


def eventually(page: Any, condition: str) -> None:
    """Wait until a JavaScript expression holds. Playwright's wait_for_function evaluates inside the page, which the
    page's Content-Security-Policy forbids from the second poll on; each evaluate here is the browser's own."""
    last = time.monotonic() + WAIT_S
    while not page.evaluate(condition):
        assert time.monotonic() < last, f"not so within {WAIT_S:.0f} s: {condition}"
        page.wait_for_timeout(20)


def test_the_word_of_a_claim_is_seen_without_scrolling(browser: Any, reports: dict[str, Path]) -> None:
    page, _ = open_page(browser, reports["whole"], 390, "light")
    boxes = page.eval_on_selector_all(".claims .word", "all => all.map(one => one.getBoundingClientRect().toJSON())")
    assert len(boxes) > 5 and all(box["left"] >= 0 and box["right"] <= 390 for box in boxes)
    page.close()


@pytest.mark.parametrize("name", ["whole", "odd", "empty"])
@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_nothing_overflows_and_nothing_complains(
    browser: Any, reports: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    page, complaints = open_page(browser, reports[name], width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert complaints == []
    page.close()


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_figures_and_tables_are_there(browser: Any, reports: dict[str, Path], width: int, scheme: str) -> None:
    page, _ = open_page(browser, reports["whole"], width, scheme)
    boxes = page.eval_on_selector_all("figure svg", "all => all.map(one => one.getBoundingClientRect().toJSON())")
    assert len(boxes) == 7
    assert all(box["width"] > 250 and box["height"] > 150 and box["right"] <= width for box in boxes)
    assert page.locator("table.arms tbody tr").count() == 6
    assert page.locator("table.cells tbody tr").count() == 8
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_follow_the_colour_scheme(browser: Any, reports: dict[str, Path], scheme: str) -> None:
    """The labels of a figure stand out from the page: dark on light, light on dark."""
    page, _ = open_page(browser, reports["whole"], 1280, scheme)
    label, ground = page.evaluate(
        """() => [getComputedStyle(document.querySelector('figure svg text')).fill,
                  getComputedStyle(document.documentElement).backgroundColor]
                 .map(colour => colour.match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0) / 3)"""
    )
    assert (ground > DARKEST_LIGHT) if scheme == "light" else (ground < LIGHTEST_DARK)
    assert abs(label - ground) > 100
    page.close()


def test_links_lead_to_manifests(browser: Any, reports: dict[str, Path]) -> None:
    page, _ = open_page(browser, reports["odd"], 1280, "light")
    links = page.eval_on_selector_all("td a", "all => all.map(one => one.getAttribute('href'))")
    assert len(links) > 100
    for link in links:
        if link.startswith("#"):
            assert page.locator(f'[id="{link[1:]}"]').count() == 1
        else:
            assert (reports["odd"].parent / link).resolve().is_file()
    page.close()


def test_wide_tables_scroll_by_keyboard(browser: Any, reports: dict[str, Path]) -> None:
    page, _ = open_page(browser, reports["whole"], 390, "light")
    page.locator(".scroll:has(table.arms)").focus()
    page.keyboard.press("ArrowRight")
    eventually(page, "document.querySelector('.scroll:has(table.arms)').scrollLeft > 0")
    page.close()


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_every_measure_is_drawn_and_every_select_works(
    browser: Any, reports: dict[str, Path], width: int, scheme: str
) -> None:
    page, complaints = open_page(browser, reports["odd"], width, scheme)
    measures = page.eval_on_selector_all("#explore [name=measure] option", "all => all.map(one => one.value)")
    for measure in measures:
        page.select_option("#explore [name=measure]", measure)
        drawn = page.locator("#explore polyline").count()
        assert (drawn == 0) == (measure == "energy"), measure
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.select_option("#explore [name=measure]", "accuracy")
    for checkpoint, lines in (("last", 1), ("*", 2)):
        page.select_option("#explore [name=checkpoint]", checkpoint)
        assert page.locator("#explore polyline").count() == lines
    assert page.locator("#explore label:has([name=dataset])").is_hidden()
    assert complaints == []
    page.close()


def test_an_arm_that_ran_unlike_is_not_drawn_and_the_chart_says_so(browser: Any, tmp_path: Path) -> None:
    """At LSP 0.25 on other devices: its FLOPs are drawn, its time and memory are not."""
    run = SyntheticRun(tmp_path, seeds=(1,), texts=False).write()
    run.damage(run.stage_of(0, "train"), hardware={**run.group_of(0, "hardware"), "gpus": [{"name": "A"}]})
    report = tmp_path / "tiny" / "report.html"
    report.write_text(render_page(read_results(tmp_path, "tiny"), {}), encoding="utf-8")
    page, complaints = open_page(browser, report, 1280, "light")
    for measure, marks in (("flops", 4), ("time", 3), ("memory", 3), ("accuracy", 4)):
        page.select_option("#explore [name=measure]", measure)
        assert page.locator("#explore .point").count() == marks
        said = page.locator("#explore-note").inner_text()
        assert ("Not drawn: arms whose trainings ran unlike those at LSP 1.0" in said) == (marks == 3)
    assert complaints == []
    page.close()


def test_a_mark_leads_to_its_cells_by_keyboard(browser: Any, reports: dict[str, Path]) -> None:
    page, _ = open_page(browser, reports["whole"], 1280, "light")
    assert page.locator("#explore .point[tabindex='0']").count() == 1
    page.locator("#explore .point").first.focus()
    page.keyboard.press("ArrowRight")
    eventually(page, "document.querySelector('#explore-note').textContent.includes('LSP 0.5')")
    assert "2 of 2 cells" in page.locator("#explore-note").inner_text()
    links = page.eval_on_selector_all("#explore-note a", "all => all.map(one => one.getAttribute('href'))")
    assert len(links) == 2
    assert all((reports["whole"].parent / link).resolve().is_file() for link in links)
    page.close()


def test_curves_of_others_are_drawn_on_demand_and_labelled(browser: Any, reports: dict[str, Path]) -> None:
    page, complaints = open_page(browser, reports["whole"], 390, "dark")
    assert page.locator("#explore polyline").count() == 1
    page.check("#explore-rivals")
    assert page.locator("#explore polyline").count() == 5
    labels = page.locator("#explore .keys li").all_inner_texts()
    assert sum(label.startswith("others: P-ALIGN") for label in labels) == 4
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert complaints == []
    page.close()


def test_a_script_that_is_not_the_kits_does_not_run(browser: Any, reports: dict[str, Path], tmp_path: Path) -> None:
    changed = tmp_path / "report.html"
    injected = (
        "<script>document.title = 'taken over'</script><p onclick=\"document.title = 'taken over'\" id=bait>x</p>"
    )
    changed.write_text(reports["whole"].read_text().replace("<main", injected + "<main", 1))
    page, complaints = open_page(browser, changed, 1280, "light")
    page.click("#bait")
    assert page.title() != "taken over"
    assert any("Content Security Policy" in complaint for complaint in complaints)
    page.close()


def shown_samples(page: Any) -> list[str]:
    """Press the button; the rows of the list."""
    page.click("#samples [type=submit]")
    eventually(page, "document.querySelectorAll('#samples .list tbody tr').length > 0")
    rows: list[str] = page.locator("#samples .list tbody tr").all_inner_texts()
    return rows


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_samples_are_read_side_by_side(browser: Any, reports: dict[str, Path], width: int, scheme: str) -> None:
    page, complaints = open_page(browser, reports["whole"], width, scheme)
    assert len(shown_samples(page)) == 25
    assert page.locator("#samples-note").inner_text() == "160 of 160 samples."
    assert page.locator("#sample .statement").inner_text() == "What is 0 + 0?"
    assert page.locator("#sample h4").all_inner_texts() == ["LSP 0.25, seed 1", "LSP 1.00, seed 1"]
    assert all("</think>" in text for text in page.locator("#sample pre").all_inner_texts())
    links = page.eval_on_selector_all("#samples a", "all => all.map(one => one.getAttribute('href'))")
    assert links and all((reports["whole"].parent / link).resolve().is_file() for link in links)
    page.select_option("#samples [name=first]", label="teacher")
    page.select_option("#samples [name=second]", label="nothing")
    eventually(page, "document.querySelectorAll('#sample h4').length === 1")
    assert "teacher" in page.locator("#samples .totals").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert complaints == []
    page.close()


def test_samples_are_searched_and_filtered(browser: Any, reports: dict[str, Path]) -> None:
    page, complaints = open_page(browser, reports["whole"], 1280, "light")
    shown_samples(page)
    page.fill("#samples [name=words]", "what is 7 + 7")
    eventually(page, "document.getElementById('samples-note').textContent.startsWith('4 of')")
    assert page.locator("#sample mark").inner_text() == "What is 7 + 7"
    page.fill("#samples [name=words]", "")
    page.select_option("#samples [name=verdict]", "right")
    eventually(page, "!document.getElementById('samples-note').textContent.startsWith('4 of')")
    marks = page.locator("#samples .list tbody td:nth-child(2)").all_inner_texts()
    assert marks and all(text.startswith("✓ right") for text in marks)
    page.select_option("#samples [name=verdict]", "differ")
    pairs = [row.locator("td.verdict").all_inner_texts() for row in page.locator("#samples .list tbody tr").all()]
    assert pairs and all(one[0] != other[0] for one, other in pairs)
    page.select_option("#samples [name=verdict]", "*")
    page.select_option("#samples [name=ending]", "length")
    found = page.locator("#samples .list tbody td:nth-child(2)").all_inner_texts()
    assert found and all("at the cap" in text for text in found)
    page.fill("#samples [name=words]", "no completion says this")
    eventually(page, "document.getElementById('samples-note').textContent.startsWith('0 of')")
    assert page.locator("#sample").is_hidden() and complaints == []
    page.close()


def test_samples_by_keyboard_and_from_a_mark_of_the_chart(browser: Any, reports: dict[str, Path]) -> None:
    page, complaints = open_page(browser, reports["whole"], 390, "light")
    page.locator("#explore .point").nth(1).focus()
    page.locator("#explore-note button").first.focus()
    page.keyboard.press("Enter")
    eventually(page, "document.querySelectorAll('#sample h4').length === 2")
    assert page.locator("#sample h4").first.inner_text() == "LSP 0.50, seed 1"
    page.locator("#samples .pages button", has_text="Next").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#samples .list tbody button").first.inner_text() == "sum-06 · 1"
    page.locator("#samples .list tbody button").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#sample h3").inner_text() == "Problem sum-06, sample 1"
    assert page.evaluate("document.activeElement.id") == "sample" and complaints == []
    page.close()


def test_samples_beside_the_page(browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many for the page: one script each, loaded when shown. A missing one is named; no other script may run."""
    monkeypatch.setattr(samples, "MOST_EMBEDDED_BYTES", 1000)
    run = SyntheticRun(tmp_path, lsps=(0.5, 1.0), seeds=(1,)).write()
    report = write_report(run.root, "tiny")
    (report.parent / "samples" / f"{run.stage_of(1, 'grade')}.js").unlink()
    report.write_text(report.read_text().replace("<main", "<script>document.title = 'taken over'</script><main", 1))
    page, complaints = open_page(browser, report, 1280, "dark")
    assert page.title() != "taken over" and complaints.pop().startswith("Executing inline script violates")
    page.select_option("#samples [name=second]", "none")
    assert len(shown_samples(page)) == 25 and complaints == []
    page.select_option("#samples [name=first]", label="LSP 1.00, seed 1")
    eventually(page, "document.getElementById('samples-note').textContent.endsWith('is not beside this page.')")
    page.select_option("#samples [name=first]", label="untrained student")
    eventually(page, "document.querySelector('#sample h4').textContent === 'untrained student'")
    page.close()


def test_it_prints_on_pages_that_are_not_mostly_empty(browser: Any, reports: dict[str, Path]) -> None:
    page, _ = open_page(browser, reports["whole"], 1280, "dark")
    shown_samples(page)
    page.emulate_media(media="print")
    assert page.locator("#samples form").is_hidden() and page.locator("#sample pre").first.is_visible()
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
    assert 5 <= len(re.findall(rb"/Type /Page\b", page.pdf(prefer_css_page_size=True))) <= 16
    page.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_a_full_size_matrix_is_whole(browser: Any, full_size: Path, width: int) -> None:
    """500 cells; how long it takes to open is measured by bench/report_page.py, with samples beside it."""
    page, complaints = open_page(browser, full_size, width, "light")
    page.select_option("#explore [name=dataset]", "*")
    assert page.locator("#explore polyline").count() == 5
    page.select_option("#explore [name=pair]", "*")
    assert page.locator("#explore polyline").count() == 10
    assert page.locator("#results details.group").count() == 10
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth") and complaints == []
    page.close()


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_the_page_of_the_thirty_settings_is_whole_and_says_first_what_was_shown(
    browser: Any, paper: Path, width: int, scheme: str
) -> None:
    page, complaints = open_page(browser, paper, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth") and complaints == []
    heads = page.eval_on_selector_all("#claims thead th", "all => all.map(one => one.textContent)")
    assert heads == ["Verdict", "Claim", "Ours", "Rests on", "What would decide"]
    first = page.locator("#claim-retention-half-released")
    assert first.locator(".word").inner_text().split("\n")[0] in ("reproduced", "undecided", "not reproduced")
    assert "30 of 30 settings, 30 trainings (1 of each arm)" in first.locator("[data-label='Rests on']").inner_text()
    undecided = page.locator("#claims tr:has(.word.undecided)")
    assert undecided.count() and all(len(text) > 20 for text in undecided.locator(".decides").all_inner_texts())
    total = sum(int(text.split()[0]) for text in page.locator(".summary .word").all_inner_texts())
    assert total == page.locator("#claims tbody tr").count() + page.locator("#claims .not-run li").count()
    page.close()
