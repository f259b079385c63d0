"""What one stage's record is checked for: each check gives sentences, none when all is as recorded.

The record's own seal, every file of the output, the inputs it read, the key it is named after, counts as executed
against counts as declared. Results are computed again in `recount.py`.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from essence.files import canonical_json, sha256_file
from essence.record.evaluation_records import GenerateResolved
from essence.record.live_records import read_spec
from essence.record.manifest import Manifest, OutputFile
from essence.record.run_directory import StageFolder, stage_id
from essence.record.stage_key import stage_key
from essence.record.stage_records import GenerateManifest, GradeManifest, TeacherManifest, TrainManifest

EDITED = "edited after it was written: its content does not give its seal"
Declaration = tuple[str, object, object]
"""A setting's name, its value as declared, and as executed; None where the record does not say what was executed."""


def seal_findings(folder: StageFolder, manifest: Manifest) -> Iterator[str]:
    """Whether the record was left as it was written."""
    if not manifest.is_sealed:
        yield f"{folder.manifest}: {EDITED}"


def file_findings(folder: StageFolder, outputs: list[OutputFile], known: dict[str, str]) -> Iterator[str]:
    """Whether every recorded file is there with the recorded content, and no other.

    outputs: the recorded files that should be here.
    known: sha256 -> where such a file is recorded, to tell a file that was swapped for another one.
    """
    recorded = {entry.path: entry for entry in outputs}
    for path, entry in recorded.items():
        file = folder.output / path
        if not inside(path):
            yield f"{folder.manifest}: output {path!r} lies outside of its folder"
        elif not file.is_file():
            yield f"{file}: missing"
        elif file.stat().st_size != entry.bytes and _cut_off(file, entry.bytes):
            yield f"{file}: truncated: {file.stat().st_size} of {entry.bytes} bytes, ends in the middle of a line"
        elif (found := sha256_file(file)) != entry.sha256:
            yield _swapped(file, found, known) or f"{file}: content differs from its recorded sha256 " + entry.sha256
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
    """Whether every input is the very stage that was read."""
    for name, entry in manifest.inputs.stages.items():
        file = folder.path.parent / stage_id(entry.stage, entry.key) / "manifest.json"
        if file.is_file() and sha256_file(file) != entry.manifest_sha256:
            yield f"{file}: changed since {folder.path.name} read it as '{name}'"


def absent_inputs(folder: StageFolder, manifest: Manifest) -> dict[str, str]:
    """Inputs whose record is not here: name -> stage id."""
    inputs = {n: stage_id(entry.stage, entry.key) for n, entry in manifest.inputs.stages.items()}
    return {n: i for n, i in inputs.items() if not StageFolder(folder.path.parent / i).done}


def key_findings(folder: StageFolder, manifest: Manifest) -> Iterator[str]:
    """Whether the key is the hash of what spec and record say, and the folder is named after it."""
    spec, identity = read_spec(folder.spec), manifest.identity
    source = manifest.code.source_sha256
    key = stage_key(spec.stage, manifest.resolved_json, manifest.input_keys, spec.environment, source)
    if key != identity.key:
        yield f"{folder.manifest}: its settings, inputs, environment or source do not give its key"
    elif folder.path.name != stage_id(identity.stage, key):
        yield f"{folder.path}: holds the record of {stage_id(identity.stage, key)}: two records of one stage"
    digest, lock = spec.environment.get("image_digest"), spec.environment.get("lock_sha256")
    if digest and digest != manifest.image.digest:
        yield f"{folder.manifest}: ran in image {manifest.image.digest}, planned for {digest}"
    if lock and not digest and lock != manifest.software.lock_sha256:
        yield f"{folder.manifest}: ran with lock {manifest.software.lock_sha256}, planned for {lock}"


def executed_findings(folder: StageFolder, manifest: Manifest) -> Iterator[str]:
    """Whether what was executed is what was declared: rows, batch, counts, caps, grader, seeds."""
    for setting, declared, executed in _declarations(manifest):
        if executed is not None and executed != declared:
            yield f"{folder.manifest}: {setting} = {declared} declared, {executed} executed"
    used, declared = manifest.seeds.get(manifest.identity.stage), manifest.resolved_json.get("seed")
    if "seed" in manifest.resolved_json and declared != used:
        yield f"{folder.manifest}: seed {declared} declared, {used} used"


def _declarations(manifest: Manifest) -> Iterator[Declaration]:
    if isinstance(manifest, GenerateManifest):
        yield from _of_generate(manifest)
    elif isinstance(manifest, GradeManifest):
        yield from _of_grade(manifest)
    elif isinstance(manifest, TeacherManifest):
        yield "compute_dtype", manifest.settings.resolved.compute_dtype, manifest.settings.executed.dtype
    elif isinstance(manifest, TrainManifest):
        yield from _of_train(manifest)
        yield from _rows(manifest)


def _of_generate(manifest: GenerateManifest) -> Iterator[Declaration]:
    """Completions may have the tokens declared, and no more than their prompt leaves of the model's."""
    resolved, executed = manifest.settings.resolved, manifest.settings.executed
    yield "samples", resolved.samples, executed.samples_per_problem
    yield "stop_loops", resolved.stop_loops, executed.stop_loops
    yield "dtype", resolved.dtype, executed.dtype
    caps = {
        "max_new_tokens": (executed.max_new_tokens, executed.shortest_prompt_tokens),
        "smallest_max_new_tokens": (executed.smallest_max_new_tokens, executed.longest_prompt_tokens),
    }
    for name, (cap, prompt) in caps.items():
        yield name, _cap(resolved, prompt), "none" if cap is None else cap


def _cap(resolved: GenerateResolved, prompt_tokens: int | None) -> int | None:
    if resolved.max_new_tokens is None or resolved.max_model_tokens is None or prompt_tokens is None:
        return None
    return min(resolved.max_new_tokens, resolved.max_model_tokens - prompt_tokens)


def _of_grade(manifest: GradeManifest) -> Iterator[Declaration]:
    resolved, executed = manifest.settings.resolved, manifest.settings.executed
    yield "grader", resolved.grader, executed.grader
    yield "samples", resolved.samples, executed.samples_per_problem
    yield "benchmark.name", resolved.benchmark.name, manifest.results.benchmark
    yield "confidence", resolved.confidence, manifest.results.confidence


def _of_train(manifest: TrainManifest) -> Iterator[Declaration]:
    resolved, executed = manifest.settings.resolved, manifest.settings.executed
    yield "compute_dtype", resolved.compute_dtype, executed.dtype
    yield "optimizer.batch_tokens", resolved.optimizer.batch_tokens, executed.batch_tokens
    yield "parallel", resolved.parallel, executed.parallel.backend
    yield "processes", resolved.processes, executed.parallel.processes
    yield "optimizer_placement", resolved.optimizer_placement, executed.parallel.optimizer
    declared, data = resolved.optimizer.batch_rows, manifest.inputs.data.train
    if declared is not None and data is not None:
        yield "optimizer.batch_rows", min(declared, data.readings or data.rows), executed.batch_rows


def _rows(manifest: TrainManifest) -> Iterator[Declaration]:
    """Rows trained on and rows left out with a reason are together those declared; a token budget has its own.

    Of a schedule the readings are counted that were left out, and not the rows.
    """
    rows, data = manifest.settings.resolved.rows, manifest.inputs.data
    if data.train and not rows.token_budget and data.train.readings is None:
        yield "train_rows", rows.train_rows, data.train.rows + sum(data.train.skipped.values())
    if data.validation:
        yield "validation_rows", rows.validation_rows, data.validation.rows + sum(data.validation.skipped.values())


def image_findings(records: dict[StageFolder, Manifest]) -> Iterator[str]:
    """True when all stages of an experiment that were planned for one environment ran in one image, base and SIF."""
    seen: dict[tuple[str, str], tuple[str, str]] = {}
    for folder, manifest in records.items():
        environment = read_spec(folder.spec).environment if folder.spec.is_file() else {}
        image = manifest.image
        fields = {"digest": image.digest, "base digest": image.base_digest, "sif sha256": image.sif_sha256}
        for field, found in fields.items():
            if not environment or found is None:  # a download is the same in any image
                continue
            other, first = seen.setdefault((canonical_json(environment), field), (folder.path.name, found))
            if found != first:
                where = f"{folder.manifest}: {field} of its image is {found}"
                yield f"{where}, but {other} was planned for the same environment and ran in {first}"
