"""Bring one source into the run directory: a hub repository at a commit, a local path, or something the kit makes.

Output: `model/` (a Hugging Face folder), `rows/` (files of a data set) or `problems/` (files of a benchmark).
The only stage that may use the network. Downloading again after a kill takes up the files that are there.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from essence.data.row_files import is_data_file
from essence.errors import InputError, PinError
from essence.files import canonical_json, sha256_text
from essence.models.folder import check_folder, read_config
from essence.paths import local_files
from essence.progress import StageContext
from essence.record.content import content_of
from essence.record.outcomes import DownloadOutcome
from essence.record.stage_records import DownloadData, DownloadResults, SourceRecord
from essence.settings import DownloadSettings, Source

FOLDERS = {"model": "model", "dataset": "rows", "benchmark": "problems"}


def run(settings: DownloadSettings, context: StageContext) -> DownloadOutcome:
    """Fill `model/`, `rows/` or `problems/`; InputError when what arrived is not of that kind."""
    source = settings.source
    folder = context.partial / FOLDERS[source.kind]
    made = DownloadResults()
    if source.builtin:
        made = _make(source, context)
    elif source.path:
        if source.kind == "model":
            check_folder(Path(source.path))  # before its gigabytes are copied
        _copy(source, folder, context)
    elif source.rows_wanted:
        made = _stream(source, folder, context)
    else:
        _fetch(source, folder)
    files = [p for p in folder.rglob("*") if p.is_file()]
    _check(source, folder, files)
    results = made.plus(files=len(files), bytes=sum(p.stat().st_size for p in files))
    if source.kind == "model":
        results = results.plus(config=_read_config(folder))
    taken = SourceRecord.model_validate(source.model_dump(exclude_none=True))
    return DownloadOutcome(results=results, data=DownloadData(source=taken))


def _make(source: Source, context: StageContext) -> DownloadResults:
    from essence.stages.tiny.sources import BUILTIN

    if source.builtin not in BUILTIN:
        known = ", ".join(BUILTIN)
        raise InputError(f"{source.kind} '{source.name}': unknown built-in source '{source.builtin}' (known: {known})")
    return BUILTIN[source.builtin](context.partial, source.options, context)


def _copy(source: Source, folder: Path, context: StageContext) -> None:
    """Copy the files of a local path; a run directory holds all that it depends on. Pickled weights stay behind."""
    path = Path(str(source.path))
    files = local_files(path, source.files)
    if not files:
        raise InputError(f"{source.kind} '{source.name}': its local path {path} holds no files that are taken in")
    shutil.rmtree(folder, ignore_errors=True)  # of a killed attempt, when the path may have held others
    for number, file in enumerate(files):
        context.stop.check()
        target = folder / (file.relative_to(path) if path.is_dir() else file.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
        context.progress.update("copy", number + 1, len(files), "files", file.name)
    copied = folder if path.is_dir() else folder / path.name
    if source.path_state != content_of(copied):
        raise InputError(f"{path}: changed since it was planned or while it was copied", "run the command again")


def _fetch(source: Source, folder: Path) -> None:
    """Download a repository at its commit; files that are there already are not fetched again."""
    from httpx2 import HTTPError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    commit = _commit(source)
    try:
        snapshot_download(
            source.repository,
            repo_type="model" if source.kind == "model" else "dataset",
            revision=commit,
            allow_patterns=source.files,
            local_dir=folder,
        )
    except (HfHubHTTPError, HTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{source.kind} '{source.name}': cannot download {source.repository} at {commit[:12]}: {reason} "
            "(run this stage on a machine with network, or give a local path for it with --pins FILE)"
        ) from error
    # Bookkeeping of the download itself: names, times and hosts that are no part of the source.
    shutil.rmtree(folder / ".cache", ignore_errors=True)


def _stream(source: Source, folder: Path, context: StageContext) -> DownloadResults:
    from essence.data.hub_stream import stream_rows

    _commit(source)
    return DownloadResults.model_validate(stream_rows(source, folder, context))


def _commit(source: Source) -> str:
    if not source.commit:
        raise PinError(f"the pin of {source.kind} '{source.name}' is empty: run `invoke pin` on a machine with network")
    return source.commit


def _check(source: Source, folder: Path, files: list[Path]) -> None:
    """What arrived must be usable: weights as safetensors with a config, or files with rows."""
    place = source.path or source.repository or source.builtin
    if source.kind == "model":
        check_folder(folder, Path(source.path) if source.path else None)
    elif not any(is_data_file(path) for path in files):
        raise InputError(f"{source.kind} '{source.name}': {place} holds no .parquet, .jsonl or .json file")


def _read_config(folder: Path) -> Mapping[str, object]:
    """A model's config with its hash; it is small, and says what was trained."""
    config = read_config(folder)
    return {**config, "sha256": sha256_text(canonical_json(config))}
