"""Write, before anything runs, the plan, every setting as resolved, and the difference of the code from git."""

from pathlib import Path

from essence.commands.run_checks import check_beforehand, whereabouts
from essence.engines.selected_run import Run
from essence.errors import RecordError
from essence.files import read_json, write_atomically, write_json
from essence.plan.experiment import PROJECT
from essence.plan.stage_plan import Plan
from essence.record.facts import CodeFacts, code_facts
from essence.record.plan_record import plan_of
from essence.record.run_directory import RunDirectory


def save_plan(plan: Plan, selection: Run) -> CodeFacts:
    """Write plan.json, experiment.json and the diff of uncommitted code; what the specs say of the code.

    Downloads are the same stages under every engine: fetching alone leaves a plan that names them as it is, since it
    may be that of another engine, and what was trained is in no other.
    """
    check_beforehand(selection)
    if not selection.evaluated:
        _write_changed(selection.run_directory.last_run, {"experiment": selection.name})
    code, diff = code_facts(PROJECT)
    saved = selection.run_directory.code / f"{code['diff_sha256']}.diff"
    if diff and not saved.is_file():
        write_atomically(saved, diff)
    if selection.words.only == "download" and _names_downloads(selection.run_directory, plan):
        return code
    _write_changed(selection.run_directory.plan(plan.loaded.name), plan.record().as_json())
    resolved: dict[str, object] = {
        "schema_version": 1,
        "experiment": plan.loaded.experiment.model_dump(mode="json"),
        "catalogue": plan.loaded.catalogue.model_dump(mode="json", exclude_none=True),
        "file": whereabouts(selection),
        "engine": selection.engine.name,
        "settings": {s.id: s.settings.model_dump(mode="json") for s in plan.stages.values()},
    }
    _write_changed(selection.run_directory.resolved(plan.loaded.name), resolved)
    return code


def _names_downloads(run: RunDirectory, plan: Plan) -> bool:
    downloads = {stage.id for stage in plan.stages.values() if stage.stage == "download"}
    try:
        return downloads <= plan_of(run, plan.loaded.name).stages.keys()
    except RecordError:
        return False


def _write_changed(file: Path, value: dict[str, object]) -> None:
    """A run that changes nothing leaves every file as it is."""
    try:
        if read_json(file) == value:
            return
    except RecordError:
        pass
    write_json(file, value)
