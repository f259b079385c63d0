"""What one stage's record is checked for: each check gives sentences, none when all is as recorded.

The record's own seal, every file of the output, the inputs it read, the key it is named after, counts as executed
against counts as declared. Results are computed again in `recount.py`.
"""

import functools
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import jsonschema

from essence.files import canonical_json, read_json, sha256_file
from essence.record.manifest import SCHEMA_FILE, SCHEMA_VERSION, seal_of
from essence.record.run_directory import StageFolder, stage_id
from essence.record.stage_key import stage_key

Manifest = dict[str, Any]
DECLARED = {
    "generate": {
        "settings.executed.samples_per_problem": "samples",
        "settings.executed.stop_loops": "stop_loops",
        "settings.executed.dtype": "dtype",
    },
    "grade": {
        "settings.executed.grader": "grader",
        "settings.executed.samples_per_problem": "samples",
        "results.benchmark": "benchmark.name",
        "results.confidence": "confidence",
    },
    "teacher": {"settings.executed.dtype": "compute_dtype"},
    "train": {
        "settings.executed.dtype": "compute_dtype",
        "settings.executed.batch_tokens": "optimizer.batch_tokens",
        "settings.executed.parallel.backend": "parallel",
        "settings.executed.parallel.processes": "processes",
    },
}
"""Stage -> where its record says what was executed -> the setting that it was told."""
IMAGE_FIELDS = ("digest", "base_digest", "sif_sha256")


def schema_findings(file: Path, manifest: Manifest) -> Iterator[str]:
    """True when the record has the published shape."""
    version = manifest.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        yield f"{file}: written by a newer kit (schema {version}, known up to {SCHEMA_VERSION}): update the kit"
        return
    errors = sorted(_validator().iter_errors(manifest), key=lambda error: list(map(str, error.path)))
    for error in errors[:3]:
        yield f"{file}: {'.'.join(map(str, error.path)) or 'manifest'}: {error.message}"


@functools.cache
def _validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(read_json(SCHEMA_FILE))


def seal_findings(folder: StageFolder, manifest: Manifest) -> Iterator[str]:
    """True when the record was left as it was written."""
    if seal_of(manifest) != manifest["seal"]:
        yield f"{folder.manifest}: edited after it was written: its content does not give its seal"


def file_findings(folder: StageFolder, outputs: list[dict[str, Any]], known: dict[str, str]) -> Iterator[str]:
    """True when every recorded file is there with the recorded content, and no other.

    outputs: the recorded files that should be here.
    known: sha256 -> where such a file is recorded, to tell a file that was swapped for another one.
    """
    recorded = {entry["path"]: entry for entry in outputs}
    for path, entry in recorded.items():
        file = folder.output / path
        if not inside(path):
            yield f"{folder.manifest}: output {path!r} lies outside of its folder"
        elif not file.is_file():
            yield f"{file}: missing"
        elif file.stat().st_size != entry["bytes"] and _cut_off(file, entry["bytes"]):
            yield f"{file}: truncated: {file.stat().st_size} of {entry['bytes']} bytes, ends in the middle of a line"
        elif (found := sha256_file(file)) != entry["sha256"]:
            yield _swapped(file, found, known) or f"{file}: content differs from its recorded sha256 " + entry["sha256"]
    present = {p.relative_to(folder.output).as_posix() for p in folder.output.rglob("*") if p.is_file()}
    yield from (f"{folder.output / path}: not in the record" for path in sorted(present - recorded.keys()))


def inside(path: str) -> bool:
    """True when a recorded path stays below the folder that it is relative to."""
    return not PurePosixPath(path).is_absolute() and ".." not in PurePosixPath(path).parts and "\0" not in path


def _cut_off(file: Path, wanted_bytes: int) -> bool:
    if file.suffix != ".jsonl" or file.stat().st_size >= wanted_bytes:
        return False
    with file.open("rb") as lines:
        lines.seek(max(0, file.stat().st_size - 1))
        return lines.read(1) != b"\n"


def _swapped(file: Path, sha256: str, known: dict[str, str]) -> str:
    return f"{file}: swapped: it is the file recorded as {known[sha256]}" if sha256 in known else ""


def changed_inputs(folder: StageFolder, manifest: Manifest) -> Iterator[str]:
    """True when every input is the very stage that was read."""
    for name, entry in manifest["inputs"]["stages"].items():
        file = folder.path.parent / stage_id(entry["stage"], entry["key"]) / "manifest.json"
        if file.is_file() and sha256_file(file) != entry["manifest_sha256"]:
            yield f"{file}: changed since {folder.path.name} read it as '{name}'"


def absent_inputs(folder: StageFolder, manifest: Manifest) -> dict[str, str]:
    """Inputs whose record is not here: name -> stage id."""
    inputs = {n: stage_id(entry["stage"], entry["key"]) for n, entry in manifest["inputs"]["stages"].items()}
    return {n: i for n, i in inputs.items() if not StageFolder(folder.path.parent / i).done}


def key_findings(folder: StageFolder, manifest: Manifest) -> Iterator[str]:
    """True when the key is the hash of what spec and record say, and the folder is named after it."""
    spec = read_json(folder.spec)
    inputs = {name: entry["key"] for name, entry in manifest["inputs"]["stages"].items()}
    settings, source = manifest["settings"]["resolved"], manifest["code"]["source_sha256"]
    key, identity = stage_key(spec["stage"], settings, inputs, spec["environment"], source), manifest["identity"]
    if key != identity["key"]:
        yield f"{folder.manifest}: its settings, inputs, environment or source do not give its key"
    elif folder.path.name != stage_id(identity["stage"], key):
        yield f"{folder.path}: holds the record of {stage_id(identity['stage'], key)}: two records of one stage"
    digest, lock = spec["environment"].get("image_digest"), spec["environment"].get("lock_sha256")
    if digest and digest != manifest["image"]["digest"]:
        yield f"{folder.manifest}: ran in image {manifest['image']['digest']}, planned for {digest}"
    if lock and not digest and lock != manifest["software"]["lock_sha256"]:
        yield f"{folder.manifest}: ran with lock {manifest['software']['lock_sha256']}, planned for {lock}"


def executed_findings(folder: StageFolder, manifest: Manifest) -> Iterator[str]:
    """True when what was executed is what was declared: rows, batch, counts, caps, grader, seeds.

    KeyError or TypeError where the record lacks what such a stage declares.
    """
    resolved = manifest["settings"]["resolved"]
    for executed, setting in DECLARED.get(manifest["identity"]["stage"], {}).items():
        found, declared = look(manifest, executed), look(resolved, setting)
        if found is not None and found != declared:
            yield f"{folder.manifest}: {setting} = {declared} declared, {found} executed"
    if manifest["identity"]["stage"] == "generate":
        yield from _cap_findings(folder, manifest["settings"]["executed"], resolved)
    if manifest["identity"]["stage"] == "train":
        yield from _row_findings(folder, manifest, resolved["rows"])
    used = manifest["seeds"].get(manifest["identity"]["stage"])
    if "seed" in resolved and resolved["seed"] != used:
        yield f"{folder.manifest}: seed {resolved['seed']} declared, {used} used"


def _cap_findings(folder: StageFolder, executed: dict[str, Any], resolved: dict[str, Any]) -> Iterator[str]:
    """Completions may have the tokens declared, and no more than their prompt leaves of the model's."""
    for cap, prompt in (("max_new_tokens", "shortest"), ("smallest_max_new_tokens", "longest")):
        room = resolved["max_model_tokens"] - executed[f"{prompt}_prompt_tokens"]
        declared = min(resolved["max_new_tokens"], room)
        if executed[cap] != declared:
            yield f"{folder.manifest}: {cap} = {declared} declared, {executed[cap]} executed"


def _row_findings(folder: StageFolder, manifest: Manifest, rows: dict[str, Any]) -> Iterator[str]:
    """Rows trained on and rows left out with a reason are together those declared; a token budget has its own."""
    for part in ("train", "validation"):
        data = manifest["inputs"]["data"].get(part)
        if data is None or (part == "train" and rows.get("token_budget")):
            continue
        found = data["rows"] + sum(data.get("skipped", {}).values())
        if found != rows[f"{part}_rows"]:
            yield f"{folder.manifest}: {part}_rows = {rows[f'{part}_rows']} declared, {found} executed"
    batch, trained = look(manifest, "settings.executed.batch_rows"), look(manifest, "inputs.data.train.rows")
    declared = look(manifest, "settings.resolved.optimizer.batch_rows")
    if None not in (batch, trained, declared) and batch != min(declared, trained):
        yield f"{folder.manifest}: optimizer.batch_rows = {declared} declared, {batch} executed"


def look(value: Any, dotted: str) -> Any:
    """The value at `a.b.c` of nested objects, or None where it is not there."""
    for name in dotted.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def image_findings(records: dict[StageFolder, Manifest]) -> Iterator[str]:
    """True when all stages of an experiment that were planned for one environment ran in one image, base and SIF."""
    seen: dict[tuple[str, str], tuple[str, str]] = {}
    for folder, manifest in records.items():
        environment = read_json(folder.spec)["environment"] if folder.spec.is_file() else {}
        for field in IMAGE_FIELDS:
            found = manifest["image"].get(field)
            if not environment or found is None:  # a download is the same in any image
                continue
            other, first = seen.setdefault((canonical_json(environment), field), (folder.path.name, found))
            if found != first:
                where = f"{folder.manifest}: {field.replace('_', ' ')} of its image is {found}"
                yield f"{where}, but {other} was planned for the same environment and ran in {first}"
