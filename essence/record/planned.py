"""What a plan says against what the records say: every cell once, with the settings its name tells; what is missing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from essence.errors import RecordError
from essence.files import read_json
from essence.record.run_directory import RunDirectory

Manifest = dict[str, Any]
Plans = dict[str, dict[str, Any]]
"""plan.json by experiment."""
AXES = {"lsp": ("view", "lsp"), "span": ("view", "span"), "sections": ("view", "sections"), "seed": ("seed",)}
"""What a cell says -> where the settings of its training say it."""


def read_plans(run_directory: RunDirectory, findings: list[str]) -> Plans:
    """The plans that can be read; of the others, a sentence is added to `findings`."""
    plans: Plans = {}
    for name in run_directory.experiments():
        try:
            plan = read_json(run_directory.plan(name))
            missing = [key for key in ("cells", "baselines", "stages") if key not in plan]
            if missing or not isinstance(plan["stages"], dict):
                raise RecordError(f"{run_directory.plan(name)}: not a plan of this kit: no {missing or 'stages'}")
            plans[name] = plan
        except RecordError as error:
            findings.append(str(error))
    return plans


def plan_findings(file: Path, plan: dict[str, Any], records: dict[str, Manifest]) -> Iterator[str]:
    """True when each cell stands once and its records were made for it. KeyError or TypeError for another shape.

    records: manifests by stage id, as far as they are here.
    """
    trainings: dict[str, str] = {}
    for cell in plan["cells"]:
        name, train = cell["name"], cell["stages"]["train"]
        if name in trainings:
            yield f"{file}: two records for one cell, {name}: {trainings[name]} and {train}"
        trainings[name] = train
        if train in records:
            yield from _axes(file, cell, train, records[train]["settings"]["resolved"])
    for entry in [*plan["cells"], *plan["baselines"]]:
        for evaluation in entry["evaluations"]:
            yield from _evaluation(file, evaluation, records)
    for identifier, stage in plan["stages"].items():
        if identifier in records and records[identifier]["identity"]["key"] != stage["key"]:
            yield f"{file}: {identifier} is planned with key {stage['key']}, its record has another"


def _axes(file: Path, cell: dict[str, Any], train: str, resolved: dict[str, Any]) -> Iterator[str]:
    for axis, path in AXES.items():
        trained: Any = resolved
        for key in path:
            trained = trained[key]
        if cell[axis] != trained:
            yield f"{file}: {cell['name']} says {axis} = {cell[axis]}, but {train} trained with {trained}"


def _evaluation(file: Path, evaluation: dict[str, Any], records: dict[str, Manifest]) -> Iterator[str]:
    """The grade stage is of the planned benchmark and of the completions that the plan names."""
    grade = records.get(evaluation["grade"])
    if grade is None:
        return
    benchmark = grade["results"]["benchmark"]
    if benchmark != evaluation["benchmark"]:
        yield f"{file}: {evaluation['grade']} graded {benchmark}, planned: {evaluation['benchmark']}"
    read = grade["inputs"]["stages"].get("samples", {}).get("key", "")
    planned = evaluation["generate"].rsplit("-", 1)[-1]
    if not read.startswith(planned):
        yield f"{file}: {evaluation['grade']} graded samples of {read[:16]}, planned: {evaluation['generate']}"


def unfinished_lines(run_directory: RunDirectory, plans: Plans, names: list[str]) -> list[str]:
    """A sentence for each cell or baseline with a stage that has no record, and for each other unfinished stage."""
    left = {name for name in names if not run_directory.stage(name).done}
    lines, told = [], set[str]()
    for experiment, plan in plans.items():
        for entry in [*plan["cells"], *plan["baselines"]]:
            stages = dict.fromkeys(entry.get("stages", {}).values())
            stages |= dict.fromkeys(e[stage] for e in entry["evaluations"] for stage in ("generate", "grade"))
            missing = [name for name in stages if name in left]
            told.update(missing)
            if missing:
                what = entry.get("name") or f"{entry['role']} {entry['model']} as it comes"
                lines.append(f"{experiment}: {what}: missing, not finished: {', '.join(missing)}")
    return lines + sorted(f"{name}: not finished" for name in left - told)
