"""Finished work of earlier code: named by plan and status, left by clean, taken where it is asked for."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from essence.commands.clean import clean
from essence.commands.save_plan import save_plan
from essence.engines.runner import make_spec
from essence.engines.selected_run import Run
from essence.files import canonical_json, read_json, sha256_text, write_json
from essence.plan.renewal import renewal_lines
from essence.plan.stage_plan import make_plan
from essence.record.facts import lock_sha256, packages
from essence.record.finished_stages import module_changes, package_changes, setting_changes
from essence.record.local_sources import LocalSources
from essence.record.record_files import seal_of
from essence.record.run_directory import RunDirectory, stage_id
from essence.record.stage_key import stage_key
from support.finished_runs import finish_micro
from support.kit_copy import KitCopy

OF_TRAININGS = {
    "train: distill/objective.py changed; 2 finished under earlier code",
    "generate: train is renewed; 2 finished under earlier code",
    "grade: generate is renewed; 2 finished under earlier code",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return finish_micro(tmp_path_factory.mktemp("finished") / "runs")


@pytest.fixture
def kit(tmp_path: Path, finished: Run) -> KitCopy:
    """Another checkout of the kit, with a finished run directory."""
    shutil.copytree(finished.run_directory.root, tmp_path / "runs")
    return KitCopy(tmp_path)


def micro(command: str, *more: str) -> tuple[str, ...]:
    return (command, "--experiment", "micro.toml", "--runs", "runs", *more)


def test_what_changes_no_result_leaves_nothing_to_do_and_nothing_to_remove(kit: KitCopy) -> None:
    for file in (kit.root / "essence").rglob("*.py"):
        file.write_text(file.read_text(encoding="utf-8") + "# a comment\n", encoding="utf-8")
    objective = kit.root / "essence" / "distill" / "objective.py"
    objective.write_text(objective.read_text().replace('"""', '"""Other words. ', 1))
    for module in ("progress.py", "record/attempts.py", "engines/local.py", "commands/run.py", "report/build.py"):
        kit.change(module)
    kit.change("__init__.py", '__version__ = "9.9.9"\n')
    plan = json.loads(kit.invoke(*micro("plan", "--json")))
    assert (plan["stages"], plan["stages_left"], plan["renewed"]) == (15, 0, [])
    assert "nothing to remove" in kit.invoke("clean", "--runs", "runs", "--yes")


@pytest.mark.slow
def test_a_changed_objective_is_named_and_loses_nothing(kit: KitCopy) -> None:
    before = sorted(path.name for path in (kit.root / "runs" / "stages").iterdir())
    kit.change("distill/objective.py")
    told = kit.invoke(*micro("plan"))
    assert set(told.splitlines()) >= OF_TRAININGS and "15 stages: 9 done, 6 left" in told
    assert "6 of them can be taken as they are, and records will say so: add --accept-earlier" in told
    status = kit.invoke("status", "--experiment", "micro", "--runs", "runs")
    assert "train: distill/objective.py changed; 2 finished under earlier code" in status.splitlines()
    assert "nothing to remove" in kit.invoke("clean", "--runs", "runs", "--yes")
    started = kit.invoke(*micro("run", "--only", "tokenize"))  # now the plan is that of the new code
    assert "done before" in started
    status = kit.invoke("status", "--experiment", "micro", "--runs", "runs")
    assert set(status.splitlines()) >= OF_TRAININGS
    assert "6 stages finished under earlier code stay" in kit.invoke("clean", "--runs", "runs", "--yes")
    assert sorted(path.name for path in (kit.root / "runs" / "stages").iterdir()) == before
    kit.invoke("clean", "--runs", "runs", "--earlier", "--yes")
    assert len(list((kit.root / "runs" / "stages").iterdir())) == 9


@pytest.mark.slow
def test_accepted_work_is_used_and_named_wherever_it_counts(kit: KitCopy) -> None:
    kit.change("distill/objective.py")
    told = kit.invoke(*micro("reproduce", "--accept-earlier")[:1], "micro.toml", "--runs", "runs", "--accept-earlier")
    sentence = "Accepted from earlier code (--accept-earlier): 2 finished train stages; since then: "
    sentence += "distill/objective.py changed."
    assert "all 15 stages were done before" in told and sentence in told
    plan = read_json(kit.root / "runs" / "micro" / "plan.json")
    accepted = {name: entry["accepted"] for name, entry in plan["stages"].items() if "accepted" in entry}
    assert len(accepted) == 2
    assert all(name.startswith("train-") and name == taken["stage"] for name, taken in accepted.items())
    report = kit.root / "runs" / "micro" / "report"
    assert sentence in read_json(report / "report.json")["statement"]
    assert "Accepted from earlier code" in (report / "report.html").read_text()
    assert sentence in kit.invoke("verify", "runs")
    assert sentence in kit.invoke("status", "--experiment", "micro", "--runs", "runs")
    assert sentence in kit.invoke(*micro("plan", "--accept-earlier"))


def test_stages_on_top_of_accepted_ones_are_keyed_on_them_and_say_so(finished: Run, tmp_path: Path) -> None:
    """Also where what is on top is still to be done."""
    shutil.copytree(finished.run_directory.root, tmp_path / "runs")
    run, now = RunDirectory(tmp_path / "runs"), finished.plan
    train = now.cells[0].stages["train"]
    earlier = as_of_earlier_code(run, train)
    for kind in ("generate", "grade"):
        shutil.rmtree(run.stage(getattr(now.cells[0].evaluations[0], kind)).path)
    plan = make_plan(finished.loaded, finished.loaded.cells(), environment, True, LocalSources(run))
    found = plan.stages[train].earlier
    assert found and (found.id, found.acceptable, found.causes) == (earlier, True, ("distill/gone.py is gone",))
    assert not plan.stages[train].accepted
    plan = make_plan(finished.loaded, finished.loaded.cells(), environment, True, LocalSources(run), True)
    assert plan.cells[0].stages["train"] == earlier and plan.stages[earlier].accepted
    generate = plan.stages[plan.cells[0].evaluations[0].generate]
    assert generate.inputs["model"] == earlier and generate.id not in now.stages
    spec = make_spec(generate, {}, {})
    assert spec.accepted == {earlier: ["distill/gone.py is gone"]}
    grade = plan.stages[plan.cells[0].evaluations[0].grade]
    assert make_spec(grade, {}, {}).accepted == spec.accepted
    assert not make_spec(plan.stages[earlier], {}, {}).accepted


def environment(_: str) -> dict[str, str]:
    return {"lock_sha256": lock_sha256()}


def as_of_earlier_code(run: RunDirectory, identifier: str) -> str:
    """Make a finished stage one of code that had a module more; its new id."""
    folder = run.stage(identifier)
    spec, manifest = read_json(folder.spec), read_json(folder.manifest)
    modules = {**spec["modules"], "essence.distill.gone": "0" * 64}
    source = sha256_text(canonical_json(modules))
    inputs = {name: entry["key"] for name, entry in manifest["inputs"]["stages"].items()}
    key = stage_key(spec["stage"], spec["settings"], inputs, spec["environment"], source)
    write_json(folder.spec, {**spec, "key": key, "modules": modules, "source_sha256": source})
    manifest["identity"]["key"] = key
    manifest["code"] |= {"modules": modules, "source_sha256": source}
    write_json(folder.manifest, {**manifest, "seal": seal_of(manifest)})
    folder.path.rename(folder.path.with_name(stage_id(spec["stage"], key)))
    return stage_id(spec["stage"], key)


def test_another_environment_is_told_by_its_packages_and_never_accepted(tmp_path: Path) -> None:
    before = finish_micro(tmp_path / "runs", numpy="0.0.1")
    local = LocalSources(before.run_directory)
    plan = make_plan(before.loaded, before.loaded.cells(), environment, True, local, accept_earlier=True)
    lines = renewal_lines((stage.stage, stage.earlier) for stage in plan.stages.values() if stage.earlier)
    change = f"numpy 0.0.1 -> {packages()['numpy']}"
    assert f"train: {change}; 2 finished under another environment" in lines and len(lines) == 5
    assert not any(stage.accepted for stage in plan.stages.values())
    save_plan(plan, replace(before, plan=plan, wanted=plan.wanted()))
    clean(before.run_directory, None, True, Console(file=io.StringIO()))
    assert len(list(before.run_directory.stages.iterdir())) == 15


def test_an_edited_record_is_not_accepted(finished: Run, tmp_path: Path) -> None:
    shutil.copytree(finished.run_directory.root, tmp_path / "runs")
    run, train = RunDirectory(tmp_path / "runs"), finished.plan.cells[0].stages["train"]
    folder = run.stage(as_of_earlier_code(run, train))
    manifest = read_json(folder.manifest)
    write_json(folder.manifest, {**manifest, "results": {**manifest["results"], "last_loss": 0.0}})
    plan = make_plan(finished.loaded, finished.loaded.cells(), environment, True, LocalSources(run), True)
    assert plan.cells[0].stages["train"] == train and plan.stages[train].earlier is None


def test_changes_are_named_and_long_lists_cut() -> None:
    before = {f"essence.data.m{number}": "a" for number in range(5)}
    now = {**before, "essence.data.m0": "b", "essence.data.new": "a"}
    assert module_changes(before, now) == ["data/m0.py changed", "data/new.py is new"]
    assert module_changes(before, {}) == ["data/m0.py is gone", "data/m1.py is gone", "data/m2.py is gone", "2 more"]
    assert package_changes({"a": "1"}, {"a": "1"}) == ["another lock or base of equal packages"]
    assert package_changes({"a": "1"}, {"B": "2"}) == ["a 1 -> absent", "B absent -> 2"]
    assert package_changes({"a": "1"}, {}) == ["another environment"]
    assert setting_changes({"x": {"y": 1}}, {"x": {"y": 2}, "z": None}) == ["x.y 1 -> 2"]
