"""A stage that counts as finished, for stages that read its output."""

import json
from pathlib import Path

from essence.record.record_files import seal_of
from essence.stages.__main__ import list_outputs
from support.synthetic_run import manifest


def write_manifest(folder: Path) -> None:
    """The record of a download whose output is in `folder/output`; its key is the folder's name."""
    outputs = [entry.model_dump(mode="json") for entry in list_outputs(folder / "output")]
    record = manifest(folder.name, "download", folder.name, {}, {}, {}, {}) | {"outputs": outputs}
    (folder / "manifest.json").write_text(json.dumps({**record, "seal": seal_of(record)}), encoding="utf-8")
