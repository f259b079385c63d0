"""A run as a Process Run Crate: RO-Crate metadata in which every stage is an action with its inputs and outputs.

Follows Process Run Crate 0.5 on RO-Crate 1.1. Times come from the manifests and never from the clock, so the same run
gives the same metadata.
"""

import json
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

from rocrate.model import ContextEntity
from rocrate.rocrate import ROCrate

from essence.store import stage_id

Manifest = dict[str, Any]
PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
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
    title: str, note: str, files: Iterable[tuple[str, int]], manifests: dict[str, Manifest]
) -> dict[str, Any]:
    """The content of ro-crate-metadata.json.

    Args:
        title: of the experiment.
        note: what it is, in a sentence or two.
        files: path in the crate and bytes of each file, metadata excluded.
        manifests: stage id -> its manifest; these are the actions.
    """
    crate = ROCrate(version="1.1")
    crate.name, crate.description = title, note or title
    crate.license = _entity(crate, LICENSE, "CreativeWork", name="BSD 2-Clause License")
    crate.datePublished = max((m["identity"]["finished"] for m in manifests.values()), default="1970-01-01")
    crate.root_dataset["conformsTo"] = _entity(crate, PROFILE, "CreativeWork", name="Process Run Crate", version="0.5")
    here = {path: _file(crate, path, size) for path, size in sorted(files)}
    for identifier, manifest in sorted(manifests.items()):
        crate.root_dataset.append_to("mentions", _action(crate, identifier, manifest, here))
    metadata: dict[str, Any] = json.loads(json.dumps(crate.metadata.generate(), sort_keys=True))
    metadata["@graph"] = sorted(metadata["@graph"], key=lambda entity: str(entity["@id"]))
    return metadata


def _entity(crate: ROCrate, identifier: str, kind: str, **properties: Any) -> ContextEntity:
    return crate.add(ContextEntity(crate, identifier, {"@type": kind, **properties}))


def _file(crate: ROCrate, path: str, size: int) -> Any:
    name = PurePosixPath(path)
    kind = MEDIA_TYPES.get(name.suffix, "application/octet-stream")
    properties = {"name": name.name, "contentSize": str(size), "encodingFormat": kind}
    return crate.add_file(dest_path=path, properties=properties)


def _action(crate: ROCrate, identifier: str, manifest: Manifest, here: dict[str, Any]) -> ContextEntity:
    identity = manifest["identity"]
    inputs = [stage_id(entry["stage"], entry["key"]) for entry in manifest["inputs"]["stages"].values()]
    action = _entity(
        crate,
        f"#{identifier}",
        "CreateAction",
        name=identity["title"],
        description=f"{identity['title']}: {STAGE_WORDS.get(identity['stage'], identity['stage'])}",
        startTime=identity["started"],
        endTime=identity["finished"],
        actionStatus="http://schema.org/CompletedActionStatus",
    )
    action["instrument"] = _instrument(crate, manifest)
    read = [here[path] for name in inputs if (path := f"stages/{name}/manifest.json") in here]
    made = [here[path] for path in _paths(identifier, manifest) if path in here]
    for name, files in (("object", read), ("result", made)):
        if files:
            action[name] = files[0] if len(files) == 1 else files
    return action


def _paths(identifier: str, manifest: Manifest) -> list[str]:
    """Where a stage's record and outputs lie in the crate."""
    outputs = [f"stages/{identifier}/output/{entry['path']}" for entry in manifest["outputs"]]
    return [f"stages/{identifier}/manifest.json", *outputs]


def _instrument(crate: ROCrate, manifest: Manifest) -> ContextEntity:
    """The stage as software: the same source in the same environment is the same instrument."""
    stage, code = manifest["identity"]["stage"], manifest["code"]
    identifier = f"#{stage}-{code['source_sha256'][:16] or code['version']}"
    known = crate.dereference(identifier)
    if known is not None:
        return known
    return _entity(
        crate,
        identifier,
        "SoftwareApplication",
        name=f"essence {stage}",
        description=STAGE_WORDS.get(stage, stage),
        softwareVersion=" ".join(str(part) for part in (code["version"], code["commit"]) if part),
    )
