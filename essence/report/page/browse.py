"""What the sample browser of the page chooses from: the runs of every group, by benchmark and checkpoint."""

from collections.abc import Iterator
from typing import TypedDict

from essence import text
from essence.report.page.explore import Facets, facets
from essence.report.page.samples import Pieces, problems_id
from essence.report.page.table import ROLE_WORDS
from essence.report.results.records import FULL, Evaluation, Group, Results, Score


class BrowserRun(TypedDict):
    """One model whose completions can be looked at."""

    model: str
    seed: str
    """Empty for a baseline, as is `cell`."""
    cell: str
    grade: str
    """Id of the piece of its completions."""
    problems: str
    """Id of the piece of their problems."""
    link: str
    samples: str
    """Path of its samples.jsonl, seen from the page."""


class BrowserGroup(Facets):
    """The runs of one group on one benchmark."""

    benchmark: str
    checkpoint: str
    runs: list[BrowserRun]


class BrowserData(TypedDict):
    """What samples.js reads."""

    full: str
    """What the LSP 1.0 arm is called."""
    groups: list[BrowserGroup]


def browser_data(results: Results, pieces: Pieces) -> BrowserData:
    """Runs with a piece of samples; groups without any are left out."""
    found: list[BrowserGroup] = [
        {**facets(group.key), "benchmark": evaluation[0], "checkpoint": evaluation[1], "runs": runs}
        for group in results.groups
        for evaluation in group.evaluations
        if (runs := [run for run in _runs(results, group, evaluation) if run["grade"] in pieces.ids])
    ]
    return {"full": _arm(FULL), "groups": found}


def _runs(results: Results, group: Group, evaluation: Evaluation) -> Iterator[BrowserRun]:
    """Cells from the smallest LSP to the largest, then the group's student and teacher as they come."""
    for cell in group.cells:
        score = cell.score(evaluation)
        if score:
            yield _run(_arm(cell.lsp), str(cell.seed), cell.name, score)
    for role in ("student", "teacher"):
        baseline = results.baseline(role, group.key, evaluation[0])
        if baseline:
            yield _run(ROLE_WORDS[role], "", "", baseline)


def _run(model: str, seed: str, cell: str, score: Score) -> BrowserRun:
    grade = score.grade
    return {
        "model": model,
        "seed": seed,
        "cell": cell,
        "grade": grade.id,
        "problems": problems_id(grade),
        "link": grade.link,
        "samples": f"../../stages/{grade.inputs.get('samples', '')}/output/samples.jsonl",
    }


def _arm(lsp: float) -> str:
    return f"LSP {text.proportion(lsp)}"
