"""What one stage's record is checked for: each check gives sentences, none when all is as recorded.

The record's own seal, every file of the output, the inputs it read, the key it is named after, counts as executed
against counts as declared, and results against the lines they were computed from.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema

from essence.atomic import read_json
from essence.errors import RecordError
from essence.record.canonical import canonical_json, sha256_file, sha256_text
from essence.record.manifest import SCHEMA_FILE, SCHEMA_VERSION, seal_of
from essence.store import StageFolder, stage_id

Manifest = dict[str, Any]
DECLARED = {
    "generate": {"samples_per_problem": "samples", "max_new_tokens": "max_new_tokens", "dtype": "dtype"},
    "grade": {"grader": "grader"},
    "train": {"dtype": "compute_dtype"},
}
"""Stage -> what it says it executed -> the setting that it was told."""
LINES = {"generate": "samples.jsonl", "grade": "verdicts.jsonl"}
CLOSE = 1e-9


def schema_findings(file: Path, manifest: Manifest) -> Iterator[str]:
    """Whether the record has the published shape."""
    version = manifest.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        yield f"{file}: written by a newer kit (schema {version}, known up to {SCHEMA_VERSION}): update the kit"
        return
    validator = jsonschema.Draft202012Validator(read_json(SCHEMA_FILE))
    errors = sorted(validator.iter_errors(manifest), key=lambda error: list(map(str, error.path)))
    for error in errors[:3]:
        yield f"{file}: {'.'.join(map(str, error.path)) or 'manifest'}: {error.message}"


def seal_findings(folder: StageFolder, manifest: Manifest) -> Iterator[str]:
    """Whether the record was left as it was written."""
    if seal_of(manifest) != manifest["seal"]:
        yield f"{folder.manifest}: edited after it was written: its content does not give its seal"


def file_findings(folder: StageFolder, outputs: list[dict[str, Any]], known: dict[str, str]) -> Iterator[str]:
    """Whether every recorded file is there with the recorded content, and no other.

    outputs: the recorded files that should be here.
    known: sha256 -> where such a file is recorded, to tell a file that was swapped for another one.
    """
    recorded = {entry["path"]: entry for entry in outputs}
    for path, entry in recorded.items():
        file = folder.output / path
        if not file.is_file():
            yield f"{file}: missing"
        elif file.stat().st_size != entry["bytes"] and _cut_off(file, entry["bytes"]):
            yield f"{file}: truncated: {file.stat().st_size} of {entry['bytes']} bytes, ends in the middle of a line"
        elif (found := sha256_file(file)) != entry["sha256"]:
            yield _swapped(file, found, known) or f"{file}: content differs from its recorded sha256 " + entry["sha256"]
    present = {p.relative_to(folder.output).as_posix() for p in folder.output.rglob("*") if p.is_file()}
    yield from (f"{folder.output / path}: not in the record" for path in sorted(present - recorded.keys()))


def _cut_off(file: Path, wanted_bytes: int) -> bool:
    if file.suffix != ".jsonl" or file.stat().st_size >= wanted_bytes:
        return False
    with file.open("rb") as lines:
        lines.seek(max(0, file.stat().st_size - 1))
        return lines.read(1) != b"\n"


def _swapped(file: Path, sha256: str, known: dict[str, str]) -> str:
    return f"{file}: swapped: it is the file recorded as {known[sha256]}" if sha256 in known else ""


def changed_inputs(folder: StageFolder, manifest: Manifest) -> Iterator[str]:
    """Whether every input is the very stage that was read."""
    for name, entry in manifest["inputs"]["stages"].items():
        file = folder.path.parent / stage_id(entry["stage"], entry["key"]) / "manifest.json"
        if file.is_file() and sha256_file(file) != entry["manifest_sha256"]:
            yield f"{file}: changed since {folder.path.name} read it as '{name}'"


def absent_inputs(folder: StageFolder, manifest: Manifest) -> dict[str, str]:
    """Inputs whose record is not here: name -> stage id."""
    inputs = {n: stage_id(entry["stage"], entry["key"]) for n, entry in manifest["inputs"]["stages"].items()}
    return {n: i for n, i in inputs.items() if not StageFolder(folder.path.parent / i).done}


def key_findings(folder: StageFolder, manifest: Manifest) -> Iterator[str]:
    """Whether the key is the hash of what spec and record say, and the folder is named after it."""
    spec = read_json(folder.spec)
    determines = {
        "stage": spec["stage"],
        "settings": manifest["settings"]["resolved"],
        "inputs": {name: entry["key"] for name, entry in manifest["inputs"]["stages"].items()},
        "environment": spec["environment"],
        "source": manifest["code"]["source_sha256"],
    }
    key, identity = sha256_text(canonical_json(determines)), manifest["identity"]
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
    """Whether what was executed is what was declared: counts, caps, grader, seeds."""
    resolved, executed = manifest["settings"]["resolved"], manifest["settings"]["executed"]
    for name, setting in DECLARED.get(manifest["identity"]["stage"], {}).items():
        if name in executed and executed[name] != resolved[setting]:
            yield f"{folder.manifest}: {setting} = {resolved[setting]} declared, {executed[name]} executed"
    if "seed" in resolved and resolved["seed"] not in manifest["seeds"].values():
        yield f"{folder.manifest}: seed {resolved['seed']} declared, {manifest['seeds']} used"


def result_findings(folder: StageFolder, manifest: Manifest) -> Iterator[str]:
    """Whether the results follow from the lines that were written: every sample once, accuracy from the verdicts."""
    stage = manifest["identity"]["stage"]
    file = folder.output / LINES.get(stage, "")
    if stage not in LINES or not file.is_file():
        return
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        samples = Counter((str(line["problem"]), line["sample"]) for line in lines)
    except (ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{file}: not the lines of a {stage} stage ({error})") from None
    twice = [name for name, count in samples.items() if count > 1]
    if twice:
        yield f"{file}: sample {twice[0][1]} of problem {twice[0][0]} is there {samples[twice[0]]} times"
    results = manifest["results"]
    if stage == "generate" and len(lines) != results["samples"]:
        yield f"{folder.manifest}: {results['samples']} samples recorded, {len(lines)} in {file.name}"
    if stage == "grade":
        yield from _accuracy_findings(folder, results, lines)


def _accuracy_findings(folder: StageFolder, results: dict[str, Any], lines: list[dict[str, Any]]) -> Iterator[str]:
    correct: dict[str, list[bool]] = {}
    for line in lines:
        correct.setdefault(str(line["problem"]), []).append(bool(line["correct"]))
    recorded = {str(p["problem"]): (p["correct"], p["samples"]) for p in results["per_problem"]}
    counted = {problem: (sum(marks), len(marks)) for problem, marks in correct.items()}
    if recorded != counted:
        first = next(p for p in sorted(recorded.keys() | counted.keys()) if recorded.get(p) != counted.get(p))
        yield (
            f"{folder.manifest}: problem {first}: (correct, samples) {recorded.get(first)} recorded, "
            f"{counted.get(first)} in verdicts.jsonl"
        )
    mean = sum(c / n for c, n in counted.values()) / len(counted) if counted else 0.0
    if abs(mean - results["accuracy"]) > CLOSE:
        yield f"{folder.manifest}: accuracy {results['accuracy']} recorded, {mean} from verdicts.jsonl"
