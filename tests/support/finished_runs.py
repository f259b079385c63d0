"""A micro matrix that an earlier version finished, and the same results as if the present code had made them."""

import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from essence.commands.options import select
from essence.commands.save_plan import save_plan
from essence.engines.runner import make_spec
from essence.engines.selected_run import Options, Run
from essence.files import read_json, sha256_file, sha256_text, write_json
from essence.plan.stage_plan import make_plan
from essence.record.facts import packages
from essence.record.record_files import seal_of
from essence.record.run_directory import RunDirectory
from support.project import MICRO, PROJECT

SCHEMA_1 = PROJECT / "tests" / "data_runs" / "micro-2910fd7.tar.gz"
"""Made by commit 2910fd7; without weights, token tables and the curves of TensorBoard, which its export.json names."""


def unpack_schema_1(folder: Path) -> RunDirectory:
    with tarfile.open(SCHEMA_1) as archive:
        archive.extractall(folder, filter="data")
    return RunDirectory(folder)


def finish_micro(root: Path, numpy: str | None = None) -> Run:
    """A run directory in which every stage of the micro matrix is finished under the present code.

    The outputs are those of the earlier version; settings, keys, inputs and source are the present ones.

    numpy: the version in an environment that differs from the present one by it alone.
    """
    old = unpack_schema_1(root.with_name(f"{root.name}-schema-1"))
    selection = select(Options(experiment=str(MICRO), runs=str(root)), baselines=True)
    if numpy:
        other = {"lock_sha256": sha256_text(numpy)}
        plan = make_plan(selection.loaded, selection.loaded.cells(), lambda _: other, True, selection.local)
        selection = replace(selection, plan=plan, wanted=plan.wanted())
    code = save_plan(selection.plan, selection)
    by_title = {read_json(folder / "spec.json")["title"]: folder for folder in old.stages.iterdir()}
    left_out: list[dict[str, Any]] = []
    for stage in selection.plan.stages.values():
        source, folder = by_title[stage.title], selection.run_directory.stage(stage.id)
        shutil.copytree(source, folder.path)
        spec = make_spec(stage, code, selection.engine.image(stage.runs_in)).model_dump(mode="json")
        write_json(folder.spec, spec)
        manifest = read_json(folder.manifest)
        manifest["identity"]["key"] = stage.key
        manifest["code"] |= {**code, "source_sha256": spec["source_sha256"], "modules": spec["modules"]}
        manifest["settings"]["resolved"] = spec["settings"]
        manifest["software"]["lock_sha256"] = stage.environment.get("lock_sha256", "0" * 64)
        manifest["software"]["packages"] = packages() | ({"numpy": numpy} if numpy else {})
        for name, identifier in stage.inputs.items():
            read, place = selection.plan.stages[identifier], selection.run_directory.stage(identifier)
            manifest["inputs"]["stages"][name] = {
                "stage": read.stage,
                "key": read.key,
                "manifest_sha256": sha256_file(place.manifest),
            }
        write_json(folder.manifest, {**manifest, "seal": seal_of(manifest)})
        here = {path.relative_to(folder.output).as_posix() for path in folder.output.rglob("*") if path.is_file()}
        absent = [entry for entry in manifest["outputs"] if entry["path"] not in here]
        left_out += [{**entry, "path": f"stages/{stage.id}/output/{entry['path']}"} for entry in absent]
    (root / "export.json").write_text(json.dumps({"experiment": selection.name, "left_out": left_out}))
    return selection
