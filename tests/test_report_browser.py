"""The page in a real browser: at two widths, light and dark, without network."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import required
from synthetic_run import SyntheticRun

from essence.report.build import write_report

pytestmark = pytest.mark.browser
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync")  # fmt: skip
VIEWS = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]
DARKEST_LIGHT, LIGHTEST_DARK = 200, 60


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
        opened = playwright.chromium.launch(executable_path=executable, args=list(ARGUMENTS))
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


def open_page(browser: Any, report: Path, width: int, scheme: str) -> tuple[Any, list[str]]:
    """The page and what went wrong while it loaded."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
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
    box = page.locator(".scroll").first
    box.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('.scroll').scrollLeft > 0")
    page.close()
