"""How long the page of a full-size matrix takes to open, with every sample of it within reach.

    python bench/report_page.py [--problems 30] [--samples 64] [--characters 2000] [--rounds 5]

Writes a made-up run of 500 cells (five data sets, two students, ten LSPs, five seeds) whose evaluations have
problems x samples completions each, makes its page and pieces (a page of this size shows no figure), and opens it in
headless Chromium. Opened: from the start of the
navigation until the first chart is drawn. Shown: from the press of "Show samples" until the list of two runs side by
side is there. Beside the wall time stands the processor time of the page's main thread, which other work on the machine
leaves alone. Every round is a fresh browser profile. Writes bench/results/report_page.json. The evaluations of one LSP
share their completions, which are written once and linked.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(PROJECT), str(PROJECT / "tests")]

from measurement import at_start, refuse_without_peers  # noqa: E402
from playwright.sync_api import Page, sync_playwright  # noqa: E402

from essence.evaluation.sample_lines import SampleLine, VerdictLine, text_of  # noqa: E402
from essence.files import write_atomically  # noqa: E402
from essence.report.page.page import render_page  # noqa: E402
from essence.report.page.samples import write_pieces  # noqa: E402
from essence.report.results.read import read_results  # noqa: E402
from support.synthetic_run import SyntheticRun, full_size_run  # noqa: E402

GOAL_S = 2.0
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
WORDS = ("Wait,", "so", "x", "=", "12", "therefore", "\\frac{a}{b}", "let", "me", "check", "the", "sum", "\n\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("problems", 30), ("samples", 64), ("characters", 2000), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, default=PROJECT / "bench" / "results" / "report_page.json")
    arguments = parser.parse_args()
    refuse_without_peers("report_page", arguments.out)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments, Path(folder))
    write_atomically(arguments.out, json.dumps(result, indent=2) + "\n")
    print(
        json.dumps(
            {name: result[name] for name in ("report", "opened_s", "opened_cpu_s", "shown_s", "goal_met")}, indent=2
        )
    )


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Make the run and its report, then open it as often as asked."""
    start = at_start("report_page", 1)
    run = full_size_run(folder)
    write_evaluations(run, arguments)
    started = time.perf_counter()
    results = read_results(folder, run.experiment)
    page = folder / run.experiment / "report" / "report.html"
    page.parent.mkdir()
    page.write_text(render_page(results, {}, write_pieces(results, page.parent, folder / "none")), encoding="utf-8")
    written_s = time.perf_counter() - started
    pieces = list((page.parent / "samples").glob("*.js"))
    if len(pieces) <= len(run.plan["cells"]):
        raise SystemExit(
            f"{len(pieces)} pieces of samples for {len(run.plan['cells'])} cells: their lines are not read"
        )
    rounds = [open_once(page) for _ in range(arguments.rounds)]
    opened, cpu, shown = ([one[key] for one in rounds] for key in ("opened_s", "opened_cpu_s", "shown_s"))
    return {
        **start,
        "browser": rounds[0]["browser"],
        "cells": len(run.plan["cells"]),
        "samples_a_cell": arguments.problems * arguments.samples,
        "characters_a_completion": arguments.characters,
        "report": {
            "page_mb": round(page.stat().st_size / 1e6, 2), "pieces": len(pieces),
            "pieces_mb": round(sum(piece.stat().st_size for piece in pieces) / 1e6, 1),
            "written_s": round(written_s, 1),
        },
        "opened_s": {"median": statistics.median(opened), "all": opened},
        "opened_cpu_s": {"median": statistics.median(cpu), "all": cpu},
        "shown_s": {"median": statistics.median(shown), "all": shown},
        "goal_s": GOAL_S,
        "goal_met": statistics.median(opened) < GOAL_S,
    }  # fmt: skip


def write_evaluations(run: SyntheticRun, arguments: argparse.Namespace) -> None:
    """Problems, samples and verdicts of all evaluations; one file for all that have the same LSP."""
    stages, first = run.root / "stages", dict[str, tuple[Path, Path]]()
    for cell in run.plan["cells"]:
        evaluation, lsp = cell["evaluations"][0], str(cell["lsp"])
        files = (stages / evaluation["generate"] / "output" / "samples.jsonl",
                 stages / evaluation["grade"] / "output" / "verdicts.jsonl")  # fmt: skip
        if lsp in first:
            for file, same in zip(files, first[lsp], strict=True):
                os.link(same, file)
            continue
        first[lsp] = files
        records = list(evaluation_records(arguments, cell["lsp"]))
        for file, lines in zip(files, zip(*records, strict=True), strict=True):
            file.write_text(text_of(lines), encoding="utf-8")
    folder = stages / run.plan["stages"][run.stage_of(0, "grade")]["inputs"]["problems"] / "output" / "problems"
    folder.mkdir(parents=True, exist_ok=True)
    problems = (
        {"id": f"sum-{n:02d}", "problem": f"What is {n} + {n}?", "answer": 2 * n} for n in range(arguments.problems)
    )
    (folder / "problems.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in problems))


def evaluation_records(arguments: argparse.Namespace, lsp: float) -> Iterator[tuple[SampleLine, VerdictLine]]:
    """A line of samples.jsonl and one of verdicts.jsonl for each completion."""
    chance = random.Random(str(lsp))
    for index in range(arguments.problems * arguments.samples):
        problem, right = index // arguments.samples, chance.random() < lsp
        found = str(2 * problem + (not right))
        name, sample = f"sum-{problem:02d}", index % arguments.samples
        text = " ".join(chance.choices(WORDS, k=arguments.characters // 5))
        reason, token = ("stop", 1) if right else ("length", None)
        yield (
            SampleLine(name, sample, index, "0" * 64, text, arguments.characters // 4, reason, token, None, 1.0),
            VerdictLine(name, sample, str(2 * problem), found, found, right, "graded"),
        )


def open_once(report: Path) -> dict[str, Any]:
    """Open the page in a new browser, then show samples of two runs; any complaint of the page ends the measurement."""
    executable = next(filter(None, map(shutil.which, BROWSERS)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(ARGUMENTS))
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})
        opened = timed(page, lambda: page.goto(report.as_uri()), "document.querySelector('#explore polyline')")
        metrics = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
        shown = timed(page, lambda: page.click("#samples [type=submit]"), "document.querySelector('#sample h4 ~ pre')")
        version = browser.version
        browser.close()
    if complaints:
        raise SystemExit(f"the page complains: {complaints}")
    return {
        "opened_s": opened,
        "opened_cpu_s": round(metrics["TaskDuration"], 3),
        "shown_s": shown,
        "browser": f"Chromium {version}",
    }


def timed(page: Page, act: Any, there: str) -> float:
    """Seconds from an act until something is on the page."""
    started = time.perf_counter()
    act()
    while not page.evaluate(f"Boolean({there})"):
        page.wait_for_timeout(5)
    return round(time.perf_counter() - started, 3)


if __name__ == "__main__":
    main()
