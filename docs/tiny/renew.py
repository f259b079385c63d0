"""Renew what README shows of the miniature from a finished run: its record, two pictures and the table.

.venv/bin/python docs/tiny/renew.py runs
"""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
README = HERE.parents[1] / "README.md"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
CURVE = "tiny-sums-best-accuracy.png"
MOST_BYTES = 200_000
"""Of a picture: every clone of the project fetches it."""
TABLE = re.compile(r"^\| LSP \| accuracy.*?\n\n", re.MULTILINE | re.DOTALL)
PAUSE_MS = 500
"""For what the browser draws only when it is seen."""
WIDTH, HEIGHT = 1100, 760
"""Of the picture of the page, in pixels: findings, figures and table."""


def table(record: dict[str, Any]) -> str:
    """README's table, from report.json."""
    rows = record["groups"][0]["evaluations"][0]["rows"]
    problems = rows[0]["accuracy"]["n"]
    samples = rows[0]["samples"] // rows[0]["graded"] // problems
    lines = [
        f"| LSP | accuracy, {problems} problems x {samples} samples | retention | tokens | FLOPs |",
        "|---|---|---|---|---|",
        *(f"| {row['label']} | {_estimate(row['accuracy'])} | {_retention(row)} | {_costs(row)} |" for row in rows),
    ]
    return re.sub(r"(?<=\|)  (?=\|)", " ", "\n".join(lines)) + "\n\n"


def _estimate(found: dict[str, float]) -> str:
    low, high = (f"{100 * found[end]:.1f}" for end in ("low", "high"))
    return f"{100 * found['value']:.1f} % [{low}, {high}]"


def _retention(row: dict[str, Any]) -> str:
    if row["lsp"] == 1.0:
        return "100 %"
    return _estimate(row["retention"]) if row["retention"] else ""


def _costs(row: dict[str, Any]) -> str:
    def times(word: str) -> str:
        if word not in row["ratio"]:
            return ""
        return "1 x" if row["lsp"] == 1.0 else f"{row['ratio'][word]:.2f} x"

    return f"{times('tokens')} | {times('flops')}"


def photograph(page: Path, picture: Path) -> None:
    """The results in the report as a browser shows them."""
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        sys.exit(f"no browser: none of {', '.join(BROWSERS)} is on PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        opened = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        opened.goto(page.resolve().as_uri())
        for _ in range(2):  # what is drawn on the way there moves it
            opened.locator("#results").evaluate("section => section.scrollIntoView()")
            opened.wait_for_timeout(PAUSE_MS)
        opened.screenshot(path=picture)
        browser.close()


def renew(report: Path) -> None:
    """Write report.json, report.png and curve.png here, and the table in README."""
    shutil.copy(report / "report.json", HERE)
    shutil.copy(report / "figures" / CURVE, HERE / "curve.png")
    photograph(report / "report.html", HERE / "report.png")
    for picture in HERE.glob("*.png"):
        if picture.stat().st_size > MOST_BYTES:
            sys.exit(f"{picture} has {picture.stat().st_size} bytes, wanted: at most {MOST_BYTES}")
    text, made = README.read_text(encoding="utf-8"), table(json.loads((HERE / "report.json").read_text()))
    if not TABLE.search(text):
        sys.exit(f"{README} has no table that begins with | LSP | accuracy")
    README.write_text(TABLE.sub(lambda _: made, text, count=1), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(str(__doc__).strip())
    renew(Path(sys.argv[1]) / "tiny" / "report")
