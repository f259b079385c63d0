"""What a run directory holds of each stage: state, manifest, metrics. What is missing is reported, not an error."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote

from pydantic import ValidationError

from essence.errors import RecordError
from essence.files import read_json
from essence.record.manifest import SCHEMA_VERSION, Manifest, seal_of
from essence.record.run_directory import RunDirectory, StageFolder, State

STATE_WORDS: dict[State, str] = {
    "done": "done",
    "running": "running",
    "failed": "failed",
    "interrupted": "interrupted",
    "left": "not run",
}


@dataclass(frozen=True)
class StageEvidence:
    """One stage of the plan, as its folder shows it."""

    id: str
    stage: str
    title: str
    folder: StageFolder
    state: State
    manifest: dict[str, Any] = field(default_factory=dict, repr=False)
    """Empty unless the stage is done."""
    problem: str = ""
    """What is wrong with a manifest that is there; it then counts for nothing."""
    inputs: dict[str, str] = field(default_factory=dict, repr=False)
    """Name of an input -> id of the stage that makes it, as planned."""

    def look(self, *keys: str) -> Any:
        """The value at `manifest[keys[0]][keys[1]]...`, or None where a group or key is missing."""
        value: Any = self.manifest
        for key in keys:
            if not isinstance(value, dict) or key not in value:
                return None
            value = value[key]
        return value

    def number(self, *keys: str) -> float | None:
        """The number at a place of the manifest, or None."""
        value = self.look(*keys)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    @property
    def link(self) -> str:
        """Path of the manifest, seen from `<run_dir>/<experiment>/report/`."""
        return f"../../stages/{quote(self.folder.path.name)}/manifest.json"

    @property
    def state_words(self) -> str:
        """`failed: no such file`."""
        return f"{STATE_WORDS[self.state]}: {self.reason}" if self.reason else STATE_WORDS[self.state]

    @property
    def reason(self) -> str:
        """Why the stage is not done, as far as its folder says; its last words, on one line."""
        if self.problem or self.state == "done":
            return self.problem
        with contextlib.suppress(RecordError):
            message = str(read_json(self.folder.failure).get("message", ""))
            return message.strip().splitlines()[-1] if message.strip() else ""
        with contextlib.suppress(OSError):
            lines = self.folder.log.read_text(encoding="utf-8", errors="replace").splitlines()
            return next((line.strip() for line in reversed(lines) if line.strip()), "")
        return ""

    def metrics(self, kind: Literal["step", "validation"]) -> list[dict[str, Any]]:
        """The records of one kind in `metrics.jsonl`, by step; of a step written twice (after a resume) the later."""
        records = {r["step"]: r for r in self._metric_lines() if r.get("kind") == kind and "step" in r}
        return [records[step] for step in sorted(records)]

    def _metric_lines(self) -> Iterator[dict[str, Any]]:
        """Objects of the file; a line that is no JSON object is left out."""
        try:
            lines = (self.folder.output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        except OSError:
            return
        for line in lines:
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                yield value


def read_stage(run: RunDirectory, stage_id: str, entry: dict[str, Any]) -> StageEvidence:
    """What a stage's folder shows; `entry` is the stage's object in plan.json."""
    folder = run.stage(stage_id)
    state = folder.state()
    inputs = dict(entry.get("inputs", {}))
    common = (stage_id, str(entry["stage"]), str(entry["title"]), folder)
    if state != "done":
        return StageEvidence(*common, state, inputs=inputs)
    try:
        manifest = read_json(folder.manifest)
    except RecordError as error:
        return StageEvidence(*common, "failed", problem=str(error), inputs=inputs)
    problem = _problem(manifest)
    if problem:
        return StageEvidence(*common, "failed", problem=problem, inputs=inputs)
    return StageEvidence(*common, state, manifest, inputs=inputs)


def _problem(manifest: dict[str, Any]) -> str:
    """Why no number of a manifest may be used: of a newer kit, of another shape, or not as it was written."""
    version = manifest.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        return f"manifest.json: written by a newer kit (schema {version}, known up to {SCHEMA_VERSION}): update the kit"
    try:
        Manifest.model_validate(manifest)
    except ValidationError as error:
        first = error.errors()[0]
        return f"manifest.json: {'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    if seal_of(manifest) != manifest["seal"]:
        return "manifest.json: edited after it was written, so it is not counted: `invoke verify` says more"
    return ""
