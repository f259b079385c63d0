"""Check before a stage starts that its inputs still match their records."""

from collections.abc import Callable, Iterable
from pathlib import Path

from essence.errors import InputError
from essence.files import sha256_file
from essence.record.live_records import read_spec
from essence.record.manifest import Manifest, OutputFile
from essence.record.run_directory import StageFolder
from essence.record.stage_records import DownloadManifest, read_manifest


def check_untouched(folders: Iterable[StageFolder], hash_of: Callable[[Path], str] = sha256_file) -> None:
    """InputError for the first file of a finished stage's output that is not as its manifest says.

    A file is hashed only when it has the recorded size and was written to after the manifest was: a look takes no time.
    """
    for folder in folders:
        manifest = read_manifest(folder.manifest)
        if found := _first_change(folder, manifest.outputs, hash_of):
            raise InputError(found, _cure(folder, manifest))


def _first_change(folder: StageFolder, outputs: list[OutputFile], hash_of: Callable[[Path], str]) -> str | None:
    finished_ns = folder.manifest.stat().st_mtime_ns
    for entry in outputs:
        file = folder.output / entry.path
        if not file.is_file():
            return f"{file}: removed since it was recorded"
        status = file.stat()
        if status.st_size != entry.bytes:
            return f"{file}: edited since it was recorded ({status.st_size} bytes, {entry.bytes} then)"
        if status.st_mtime_ns > finished_ns and hash_of(file) != entry.sha256:
            return f"{file}: edited since it was recorded (other content)"
    recorded = {entry.path for entry in outputs}
    present = {path.relative_to(folder.output).as_posix() for path in folder.output.rglob("*") if path.is_file()}
    added = sorted(present - recorded)
    return f"{folder.output / added[0]}: added since the output was recorded" if added else None


def _cure(folder: StageFolder, manifest: Manifest) -> str:
    again = f"put it back, or remove {folder.path} and issue the command again"
    if own := _own(manifest):
        return f"it is the run directory's copy of {own}, which is what to edit: {again}"
    return again


def own_names(message: str, folders: Iterable[StageFolder], partial: bool = False) -> str:
    """A message with the user's own files in place of the copies that a run directory took in.

    partial: the copies are still being made, so the specs are asked and not the manifests.
    """
    for folder in folders:
        if partial and folder.spec.is_file():
            source = read_spec(folder.spec).settings.source
            message = _with_own(message, folder.partial, source.path if source else None)
        elif not partial and folder.done:
            message = _with_own(message, folder.output, _own(read_manifest(folder.manifest)))
    return message


def _own(manifest: Manifest) -> str | None:
    """The user's own path that a download took in."""
    return manifest.source.path if isinstance(manifest, DownloadManifest) else None


def _with_own(message: str, output: Path, own: str | None) -> str:
    if not own:
        return message
    for copies in (path for path in (output / name for name in ("model", "rows", "problems")) if path.is_dir()):
        only = copies / Path(own).name
        # A single file was copied under its name; of a folder, all that is in it.
        message = message.replace(str(only), own) if only.is_file() and not Path(own).is_dir() else message
        message = message.replace(str(copies), own)
    return message
