"""Write the report of an experiment: page, samples, report.md, report.json and figures/, all at once or not at all."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from essence.errors import RecordError
from essence.files import canonical_json, read_json, sha256_file, sha256_text
from essence.record.plan_record import plan_of
from essence.record.record_files import gives_seal, seal_of
from essence.record.run_directory import RunDirectory
from essence.record.trace_record import read_trace_records
from essence.report.claims.claim_record import claim_record
from essence.report.claims.definition import CLAIMS_FILE, QUESTIONS_FILE
from essence.report.claims.retention_rows import read_with_retention
from essence.report.claims.verdict import ClaimVerdict, judge, judge_questions, record_verdicts
from essence.report.page.cost_claim import claim_tables
from essence.report.page.decoding import decoding_rows
from essence.report.page.findings import findings
from essence.report.page.markdown import markdown_report
from essence.report.page.page import render_page
from essence.report.page.picture_numbers import Picture, pictures
from essence.report.page.predicted_times import predicted_rows
from essence.report.page.questions_table import question_record
from essence.report.page.rows import trained_rows
from essence.report.page.samples import write_pieces
from essence.report.page.statement import statement
from essence.report.page.table import arm_rows, cell_rows, missing_lines
from essence.report.results.records import Figure, Group, GroupKey, Results
from essence.report.results.stage_reader import read_stage

SCHEMA_VERSION = 2
ELSEWHERE = (
    "text.py", "evaluation/statistics.py", "plan/cost_table.py", "plan/newest_proof.py", "record/machine_load.py",
    "sizes/architecture.py", "sizes/memory.py", "sizes/speeds.py",
)  # fmt: skip
"""Modules outside this package whose numbers and words stand in a report: how values are written, intervals, the
computed costs and times, loads."""


def write_report(run_dir: Path, experiment: str) -> Path:
    """Make `<run_dir>/<experiment>/report/` from plan and manifests; returns the path of its report.html.

    Works at any time, also while cells run or when nothing is done. RecordError when there is no plan.
    """
    return write_results(read_with_retention(run_dir, experiment))


def report_is_current(run_dir: Path, experiment: str) -> bool:
    """True when the report was made from the plan and the manifests that are there now, by this version of the kit."""
    folder = RunDirectory(run_dir).report(experiment)
    try:
        record = read_json(folder / "report.json")
        whole = gives_seal(record) and (folder / "report.html").is_file()
        return whole and bool(record.get("made_from") == made_from(run_dir, experiment))
    except RecordError:
        return False


def made_from(run_dir: Path, experiment: str) -> str:
    """One hash of all that a report comes from: plan, manifests, what is said of unfinished stages, its own code.

    Proofs are left out. They are of a machine, and later ones take the place of earlier ones: what a report compares
    with them is of the day it was written, and stays.
    """
    run = RunDirectory(run_dir)
    plan = plan_of(run, experiment)
    stages = {name: (run.stage(name), entry) for name, entry in plan.stages.items()}
    seen = {
        name: sha256_file(folder.manifest) if folder.done else read_stage(run, name, entry).state_words
        for name, (folder, entry) in stages.items()
    }
    own = hashlib.sha256(b"".join(file.read_bytes() for file in own_files()))
    traces = [record.seal for record in read_trace_records(run.experiment(experiment))[0]]
    return sha256_text(canonical_json([plan.as_json(), seen, own.hexdigest(), traces]))


def own_files() -> list[Path]:
    """What decides how a report looks and what it says: files of this package and `ELSEWHERE`, claims and questions."""
    found = (file for kind in ("py", "html", "js") for file in Path(__file__).parent.rglob(f"*.{kind}"))
    elsewhere = (Path(__file__).parents[1] / name for name in ELSEWHERE)
    return [*sorted(found), *elsewhere, CLAIMS_FILE, QUESTIONS_FILE]


def write_results(results: Results) -> Path:
    """Write the report of results that were read before."""
    verdicts, questions = judge([results]), judge_questions([results])
    record_verdicts([results], [*verdicts, *questions])
    figures, drawn = _figures(results), _pictures(results)
    folder = RunDirectory(results.run_dir).report(results.experiment)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "figures").mkdir(parents=True)
    for figure in (*drawn, *(figure for some in figures.values() for figure in some)):
        (partial / "figures" / f"{figure.name}.svg").write_text(figure.svg, encoding="utf-8")
        (partial / "figures" / f"{figure.name}.png").write_bytes(figure.png)
        if figure.data:
            (partial / "figures" / f"{figure.name}.csv").write_text(figure.data, encoding="utf-8")
    pieces = write_pieces(results, partial, folder)
    (partial / "report.html").write_text(
        render_page(results, figures, pieces, verdicts, questions, drawn), encoding="utf-8"
    )
    (partial / "report.md").write_text(markdown_report(results, figures, verdicts, questions, drawn), encoding="utf-8")
    files = {p.relative_to(partial).as_posix(): sha256_file(p) for p in sorted(partial.rglob("*")) if p.is_file()}
    record = {**report_record(results, figures, verdicts, questions), "files": files}
    text = json.dumps({**record, "seal": seal_of(record)}, indent=2, ensure_ascii=False, allow_nan=False)
    (partial / "report.json").write_text(text + "\n", encoding="utf-8")
    _replace_folder(folder, partial)
    return folder / "report.html"


def report_record(
    results: Results,
    figures: Mapping[GroupKey, Sequence[Figure]] | None = None,
    verdicts: Sequence[ClaimVerdict] | None = None,
    questions: Sequence[ClaimVerdict] | None = None,
) -> dict[str, object]:
    """report.json, and what `invoke report --json` prints: the rows of every table as plain numbers."""
    drawn, judged = figures or {}, judge([results]) if verdicts is None else verdicts
    asked = judge_questions([results]) if questions is None else questions
    return {
        "schema_version": SCHEMA_VERSION,
        "made_from": made_from(results.run_dir, results.experiment),
        "experiment": results.experiment,
        "title": results.title,
        "note": results.note,
        "statement": statement(results),
        "done": results.done,
        "records": {s.id: sha256_file(s.folder.manifest) for s in results.stages if s.folder.done},
        "claims": [claim_record(one).model_dump() for one in judged],
        "questions": [question_record(one) for one in asked],
        "pictures": [_picture_record(picture) for picture in pictures(results)],
        "groups": [_group_record(results, group, drawn.get(group.key, ()), judged) for group in results.groups],
        "decoding": [row.as_json() for row in decoding_rows(results)],
        "predicted_steps": [row.as_json() for row in predicted_rows(results)],
        "computed_costs": [table.as_json() for table in claim_tables(results)],
        "trained_rows": [asdict(row) for row in trained_rows(results)],
        "traces": [record.model_dump(mode="json") for record in results.traces],
        "missing": missing_lines(results),
    }


def _group_record(
    results: Results, group: Group, figures: Sequence[Figure], verdicts: Sequence[ClaimVerdict]
) -> dict[str, object]:
    return {
        **vars(group.key),
        "reference": vars(group.reference) if group.reference else None,
        "evaluations": [
            {
                "benchmark": evaluation[0],
                "checkpoint": evaluation[1],
                "findings": findings(results, group, evaluation, verdicts),
                "rows": [row.as_json() for row in arm_rows(results, group, evaluation)],
                "cells": [row.as_json() for row in cell_rows(group, evaluation)],
            }
            for evaluation in group.evaluations
        ],
        "figures": [{"name": f.name, "kind": f.kind, "title": f.title, "values": f.alt} for f in figures],
    }


def _picture_record(picture: Picture) -> dict[str, object]:
    """Where the picture and its numbers are, and its curves in plain numbers."""
    stem = f"figures/{picture.name}"
    return {
        "title": picture.title,
        "subject": picture.subject,
        "files": [f"{stem}.{kind}" for kind in ("png", "svg", "csv")],
        "curves": {name: [asdict(point) for point in points] for name, points in picture.curves.items()},
        "equal_tokens": [asdict(point) for points in picture.matched.values() for point in points],
        "untrained": asdict(picture.untrained) if picture.untrained else None,
    }


def _figures(results: Results) -> dict[GroupKey, list[Figure]]:
    """Figures by group; names carry the group's number where there are several groups."""
    # matplotlib takes half a second to import: only here, where something is drawn.
    from essence.report.page.figures import draw_figures

    several = len(results.groups) > 1
    return {
        group.key: draw_figures(results, group, f"group-{number}-" if several else "")
        for number, group in enumerate(results.groups, 1)
    }


def _pictures(results: Results) -> list[Figure]:
    from essence.report.page.picture_drawing import draw_pictures

    return draw_pictures(pictures(results))


def _replace_folder(folder: Path, partial: Path) -> None:
    """Put `partial` in the place of `folder`: a reader finds the old or the new one, whole."""
    old = partial.with_suffix(".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
