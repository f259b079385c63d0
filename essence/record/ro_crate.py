"""A run as a Provenance Run Crate: the plan is the workflow, every stage an action with its inputs and outputs.

Follows Provenance Run Crate 0.5, and so Workflow and Process Run Crate 0.5 and Workflow RO-Crate 1.0, on RO-Crate 1.1.
Times come from the manifests and never from the clock, so the same run gives the same metadata.
"""

import json
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

from rocrate.model import ContextEntity, File
from rocrate.rocrate import ROCrate

from essence.record.manifest import Manifest
from essence.record.run_directory import stage_id

PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": ("Process Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/workflow/0.5": ("Workflow Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/provenance/0.5": ("Provenance Run Crate", "0.5"),
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": ("Workflow RO-Crate", "1.0"),
}
WORKFLOW_TYPES = ["File", "SoftwareSourceCode", "ComputationalWorkflow", "HowTo"]
COMPLETED = "http://schema.org/CompletedActionStatus"
LICENSE = "https://spdx.org/licenses/BSD-2-Clause"
MEDIA_TYPES = {
    ".json": "application/json", ".jsonl": "application/jsonl", ".html": "text/html", ".md": "text/markdown",
    ".png": "image/png", ".svg": "image/svg+xml", ".toml": "application/toml", ".txt": "text/plain",
    ".diff": "text/x-diff",
}  # fmt: skip
STAGE_WORDS = {
    "download": "brings a model, data set or benchmark in at a pinned commit",
    "tokenize": "renders and tokenises the rows of a data set",
    "teacher": "stores the teacher's states of every row",
    "train": "distils a teacher into a student on truncated sequences",
    "generate": "samples completions of benchmark problems",
    "grade": "grades completions",
}


def crate_metadata(
    experiment: str, title: str, note: str, files: Iterable[tuple[str, int]], manifests: dict[str, Manifest]
) -> dict[str, object]:
    """The content of ro-crate-metadata.json.

    Args:
        experiment: its name, which is that of its folder.
        title: of the experiment.
        note: what it is, in a sentence or two.
        files: path in the crate and bytes of each file, metadata excluded.
        manifests: stage id -> its manifest; these are the actions.
    """
    crate = ROCrate(version="1.1")
    crate.name, crate.description = title, note or title
    crate.license = _entity(crate, LICENSE, "CreativeWork", name="BSD 2-Clause License")
    crate.datePublished = max((m.identity.finished for m in manifests.values()), default="1970-01-01")
    crate.root_dataset["conformsTo"] = [
        _entity(crate, url, "CreativeWork", name=name, version=version) for url, (name, version) in PROFILES.items()
    ]
    workflow = f"{experiment}/plan.json"
    here = {
        path: _file(crate, path, size, WORKFLOW_TYPES if path == workflow else "File") for path, size in sorted(files)
    }
    actions = {name: _action(crate, name, manifest, here) for name, manifest in sorted(manifests.items())}
    for action in actions.values():
        crate.root_dataset.append_to("mentions", action)
    _workflow(crate, experiment, here, actions, manifests)
    generated = crate.metadata.generate()
    entities = sorted(generated["@graph"], key=lambda entity: str(entity["@id"]))
    metadata: dict[str, object] = json.loads(json.dumps({**generated, "@graph": entities}, sort_keys=True))
    return metadata


def _entity(crate: ROCrate, identifier: str, kind: str, **properties: Any) -> ContextEntity:
    return crate.add(ContextEntity(crate, identifier, {"@type": kind, **properties}))


def _file(crate: ROCrate, path: str, size: int, types: str | list[str]) -> File:
    name = PurePosixPath(path)
    kind = MEDIA_TYPES.get(name.suffix, "application/octet-stream")
    properties = {"@type": types, "name": name.name, "contentSize": str(size), "encodingFormat": kind}
    return crate.add_file(dest_path=path, properties=properties)


def _action(crate: ROCrate, identifier: str, manifest: Manifest, here: dict[str, File]) -> ContextEntity:
    identity = manifest.identity
    inputs = [stage_id(entry.stage, entry.key) for entry in manifest.inputs.stages.values()]
    action = _entity(
        crate,
        f"#{identifier}",
        "CreateAction",
        name=identity.title,
        description=f"{identity.title}: {STAGE_WORDS.get(identity.stage, identity.stage)}",
        startTime=identity.started,
        endTime=identity.finished,
        actionStatus=COMPLETED,
    )
    action["instrument"] = _instrument(crate, manifest)
    read = [here[path] for name in inputs if (path := f"stages/{name}/manifest.json") in here]
    made = [here[path] for path in _paths(identifier, manifest) if path in here]
    for name, files in (("object", read), ("result", made)):
        if files:
            action[name] = files[0] if len(files) == 1 else files
    return action


def _workflow(
    crate: ROCrate,
    experiment: str,
    here: dict[str, File],
    actions: dict[str, ContextEntity],
    manifests: dict[str, Manifest],
) -> None:
    """The plan as workflow with a step for each kind of stage, its run, and which stages each step consisted of."""
    plan = here[f"{experiment}/plan.json"]
    plan["name"] = f"plan of {experiment}"
    plan["programmingLanguage"] = _entity(
        crate, "#essence-plan", "ComputerLanguage", name="plan.json of essence", alternateName="essence plan"
    )
    crate.root_dataset["mainEntity"] = plan
    kinds = [kind for kind in STAGE_WORDS if any(m.identity.stage == kind for m in manifests.values())]
    controls = []
    for position, kind in enumerate(kinds, 1):
        mine = [actions[name] for name, m in sorted(manifests.items()) if m.identity.stage == kind]
        tools = list({action["instrument"].id: action["instrument"] for action in mine}.values())
        step = _entity(crate, f"#step-{kind}", "HowToStep", name=f"{kind}: {STAGE_WORDS[kind]}", position=str(position))
        step["workExample"] = tools
        plan.append_to("step", step)
        for tool in tools:
            plan.append_to("hasPart", tool)
        control = _entity(crate, f"#control-{kind}", "ControlAction", name=f"stages of the step {kind}")
        control["instrument"], control["object"] = step, mine
        controls.append(control)
    engine = _entity(crate, "#essence", "SoftwareApplication", name="essence, which plans, starts and records stages")
    organize = _entity(crate, "#organize", "OrganizeAction", name=f"stages of {experiment} started and recorded")
    organize["instrument"], organize["object"] = engine, controls
    organize["result"] = _whole_run(crate, experiment, here, list(manifests.values()))


def _whole_run(crate: ROCrate, experiment: str, here: dict[str, File], manifests: list[Manifest]) -> ContextEntity:
    """The run of the plan: from resolved settings to the report."""
    run = _entity(crate, "#run", "CreateAction", name=f"run of {experiment}", actionStatus=COMPLETED)
    run["description"] = "every finished stage of the plan, and the report made from their records"
    run["startTime"] = min(manifest.identity.started for manifest in manifests)
    run["endTime"] = max(manifest.identity.finished for manifest in manifests)
    run["instrument"] = here[f"{experiment}/plan.json"]
    if settings := here.get(f"{experiment}/experiment.json"):
        run["object"] = settings
    report = [file for path, file in here.items() if path.startswith(f"{experiment}/report/report.")]
    if report:
        run["result"] = report
    crate.root_dataset.append_to("mentions", run)
    return run


def _paths(identifier: str, manifest: Manifest) -> list[str]:
    """Where a stage's record and outputs lie in the crate."""
    outputs = [f"stages/{identifier}/output/{entry.path}" for entry in manifest.outputs]
    return [f"stages/{identifier}/manifest.json", *outputs]


def _instrument(crate: ROCrate, manifest: Manifest) -> ContextEntity:
    """The stage as software: the same source in the same environment is the same instrument."""
    stage, code = manifest.identity.stage, manifest.code
    identifier = f"#{stage}-{code.source_sha256[:16] or code.version}"
    known = crate.dereference(identifier)
    if known is not None:
        return known
    return _entity(
        crate,
        identifier,
        "SoftwareApplication",
        name=f"essence {stage}",
        description=STAGE_WORDS.get(stage, stage),
        softwareVersion=" ".join(str(part) for part in (code.version, code.commit) if part),
    )
