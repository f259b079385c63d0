"""A run as one archive: records, metrics, samples, report, configuration; the same run gives the same bytes.

The archive holds a small run directory, so that `invoke verify` reads it as it reads any other. What is left out (data
of others, and weights unless asked for) is listed in `export.json` with its hash.
"""

import gzip
import io
import json
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from essence.errors import RecordError
from essence.files import sha256_file, sha256_text
from essence.record.manifest import Manifest, OutputFile
from essence.record.plan_record import plan_of
from essence.record.record_files import Group, read_record
from essence.record.run_directory import RunDirectory, StageFolder
from essence.record.stage_checks import inside
from essence.record.stage_records import intact_manifest

CHECKSUMS, LEFT_OUT, CRATE = "SHA256SUMS", "export.json", "ro-crate-metadata.json"
NOT_OF_THE_RUN = ("lock", "holder.json")
COMPRESSION = 6
MOST_MEMBERS = 1_000_000
KEPT_FREE_BYTES = 1 << 28
"""What unpacking leaves of a disk."""


class LeftOutFile(Group):
    """A file that an export left out."""

    path: str


class ExportRecord(Group):
    """export.json."""

    left_out: list[LeftOutFile]


@dataclass
class Contents:
    """What goes into an archive: by path in it, a file or a text; and what does not."""

    files: dict[str, Path] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    left_out: list[OutputFile] = field(default_factory=list)
    """Paths as in the archive."""
    manifests: dict[str, Manifest] = field(default_factory=dict)
    recorded: dict[str, str] = field(default_factory=dict)
    """sha256 that a manifest states, by path in the archive."""


def export(run_directory: RunDirectory, experiment: str, project: Path, target: Path, weights: bool) -> Contents:
    """Write the archive of an experiment; `target` is replaced only by a whole one.

    Raises:
        RecordError: no plan, or no finished stage.
    """
    contents = collect(run_directory, experiment, project, weights)
    partial = target.with_name(f".{target.name}.partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        _write(contents, partial, experiment)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return contents


def collect(run_directory: RunDirectory, experiment: str, project: Path, weights: bool) -> Contents:
    """Choose what the archive holds."""
    plan = plan_of(run_directory, experiment)
    contents = Contents()
    for identifier in sorted(plan.stages):
        if run_directory.stage(identifier).done:
            _add_stage(run_directory.stage(identifier), contents, weights)
    if not contents.manifests:
        raise RecordError(f"{run_directory.plan(experiment)}: no stage is finished, nothing to export")
    _add_folder(run_directory.experiment(experiment), experiment, contents)
    for sha256 in sorted({m.code.diff_sha256 for m in contents.manifests.values() if m.code.diff_sha256}):
        contents.files[f"code/{sha256}.diff"] = run_directory.code / f"{sha256}.diff"
    _add_folder(project / "experiments", "experiments", contents)
    _add_folder(project / "locks", "locks", contents)
    files = [file.model_dump() for file in contents.left_out]
    left = {"schema_version": 1, "experiment": experiment, "weights": weights, "left_out": files}
    contents.texts[LEFT_OUT] = _json(left)
    sizes = [(path, file.stat().st_size) for path, file in contents.files.items()]
    sizes += [(path, len(text.encode())) for path, text in contents.texts.items()]
    from essence.record.ro_crate import crate_metadata

    metadata = crate_metadata(experiment, plan.title, plan.note, sizes, contents.manifests)
    contents.texts[CRATE] = _json(metadata)
    contents.texts[CHECKSUMS] = "".join(f"{digest}  {path}\n" for path, digest in sorted(_hashes(contents)))
    return contents


def _add_stage(folder: StageFolder, contents: Contents, weights: bool) -> None:
    name = folder.path.name
    try:
        manifest = intact_manifest(folder.manifest)
    except RecordError as error:
        raise RecordError(f"{error.problem}: not exported", error.cure or "`invoke verify` says more") from None
    if outside := [file.path for file in manifest.outputs if not inside(file.path)]:
        raise RecordError(
            f"{folder.manifest}: output {outside[0]!r} lies outside of its folder: not exported",
            "`invoke verify` says more",
        )
    contents.manifests[name] = manifest
    contents.files[f"stages/{name}/manifest.json"] = folder.manifest
    if folder.spec.is_file():
        contents.files[f"stages/{name}/spec.json"] = folder.spec
    for entry in manifest.outputs:
        path = f"stages/{name}/output/{entry.path}"
        file = folder.output / entry.path
        if file.is_file() and _is_exported(manifest.identity.stage, entry.path, weights):
            contents.files[path] = file
            contents.recorded[path] = entry.sha256
        else:
            contents.left_out.append(entry.model_copy(update={"path": path}))


def _is_exported(stage: str, path: str, weights: bool) -> bool:
    """Not data and models of others; not what they are turned into; weights of our own where asked for."""
    if stage in ("download", "teacher"):
        return False
    suffix = PurePosixPath(path).suffix
    return suffix != ".arrow" and (weights or suffix != ".safetensors")


def _add_folder(folder: Path, place: str, contents: Contents) -> None:
    """Files of a folder; links could lead anywhere, and are left; so is what a kill left half written."""
    files = (p for p in folder.rglob("*") if p.is_file() and not p.is_symlink() and p.name not in NOT_OF_THE_RUN)
    for file in sorted(files):
        inside_folder = file.relative_to(folder)
        if not any(part.startswith(".") for part in inside_folder.parts):
            contents.files[f"{place}/{inside_folder.as_posix()}"] = file


def _hashes(contents: Contents) -> Iterator[tuple[str, str]]:
    """Of every file; RecordError for one that is not as its manifest states."""
    for path, file in contents.files.items():
        digest = sha256_file(file)
        if contents.recorded.get(path, digest) != digest:
            raise RecordError(
                f"{file}: content differs from its recorded sha256: not exported", "`invoke verify` says more"
            )
        yield path, digest
    for path, text in contents.texts.items():
        yield path, sha256_text(text)


def _write(contents: Contents, target: Path, experiment: str) -> None:
    """Members by path, without owners, times or modes of this machine."""
    with (
        target.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=COMPRESSION) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in sorted({*contents.files, *contents.texts}):
            member = tarfile.TarInfo(f"{experiment}/{path}")
            member.mode = 0o644
            if path in contents.texts:
                data = contents.texts[path].encode()
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
            else:
                member.size = contents.files[path].stat().st_size
                with contents.files[path].open("rb") as file:
                    archive.addfile(member, file)


def unpack(archive: Path, folder: Path) -> tuple[Path, list[str]]:
    """Unpack an exported archive and check it against its own checksums.

    Returns:
        The run directory in it, and a sentence for every file that is not as its checksum says.

    Raises:
        RecordError: not an archive of this kit, or a damaged one.
    """
    try:
        with tarfile.open(archive, "r:gz") as packed:
            packed.extractall(folder, members=_members(packed, archive, shutil.disk_usage(folder).free), filter="data")
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError) as error:
        raise RecordError(f"{archive}: damaged, or not an archive: {error}") from None
    roots = [path.parent for path in folder.glob(f"*/{CHECKSUMS}")]
    if len(roots) != 1:
        raise RecordError(f"{archive}: not an archive of a run: it has no {CHECKSUMS}")
    return roots[0], list(_checksum_findings(roots[0]))


def _members(packed: tarfile.TarFile, archive: Path, free_bytes: int) -> Iterator[tarfile.TarInfo]:
    """Files and folders, each once, of no more bytes than there is room for; an export holds nothing else."""
    size, seen = 0, set[str]()
    for member in packed:
        size += member.size
        if not (member.isfile() or member.isdir()):
            raise RecordError(f"{archive}: {member.name!r} is a link or a device: not an archive of this kit")
        if member.name in seen:
            raise RecordError(f"{archive}: {member.name!r} is in it twice: not an archive of this kit")
        if size > free_bytes - KEPT_FREE_BYTES or len(seen) > MOST_MEMBERS:
            raise RecordError(
                f"{archive}: holds more than fits: at least {len(seen)} files and {size} bytes, {free_bytes} bytes are "
                f"free in {tempfile.gettempdir()} (set TMPDIR to a larger disk if you trust it)"
            )
        seen.add(member.name)
        yield member


def _checksum_findings(root: Path) -> Iterator[str]:
    try:
        lines = (root / CHECKSUMS).read_text(encoding="utf-8").splitlines()
        listed = {path: digest for digest, path in (line.split("  ", 1) for line in lines)}
    except ValueError as error:
        yield f"{CHECKSUMS}: damaged: {error}"
        return
    for path, digest in listed.items():
        file = root / path
        if not inside(path) or not file.is_file():
            yield f"{path}: missing from the archive"
        elif sha256_file(file) != digest:
            yield f"{path}: content differs from its line in {CHECKSUMS}"
    present = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}
    yield from (f"{path}: not in {CHECKSUMS}" for path in sorted(present - listed.keys() - {CHECKSUMS}))


def left_out(root: Path) -> set[str]:
    """Paths below a run directory that its export left out; empty where it is no export."""
    file = root / LEFT_OUT
    if not file.is_file():
        return set()
    return {entry.path for entry in read_record(file, ExportRecord, "the list of an export").left_out}


def _json(value: object) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
