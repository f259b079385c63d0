"""Local sources as a run directory knows them: what each holds, and what it held when it was taken in."""

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field

from essence.errors import RecordError
from essence.paths import check_outside
from essence.record.content import CONTENT, content_of
from essence.record.hash_cache import HashCache
from essence.record.live_records import Live
from essence.record.record_files import read_record
from essence.record.run_directory import RunDirectory, StageFolder
from essence.record.stage_records import DownloadManifest, SourceRecord, read_manifest
from essence.settings import Source


@dataclass
class LocalSources:
    """Contents of local paths; of one that is gone, as it was taken in last."""

    run_directory: RunDirectory | None = None
    _contents: dict[tuple[str, ...], str | None] = field(default_factory=dict)

    def content(self, source: Source) -> str | None:
        """What the source's path holds; None where it is not there and was never taken in.

        Raises:
            ExperimentError: the run directory is in it, so that it would hold more with every stage.
        """
        path = str(source.path)
        asked = (path, *source.files)
        if asked not in self._contents:
            if self.run_directory:
                check_outside(self.run_directory.root.resolve(), [Path(path)])
            cache = HashCache()
            self._contents[asked] = content_of(Path(path), cache.sha256, source.files)
            cache.save()
        return self._contents[asked] or self._taken_in.get((source.kind, path))

    def is_kept(self, kind: str, path: Path) -> bool:
        """True when a path that is gone was taken in."""
        return not os.path.lexists(path) and (kind, str(path.resolve())) in self._taken_in

    @functools.cached_property
    def _taken_in(self) -> dict[tuple[str, str], str]:
        """(kind, path) -> what was copied from there last."""
        if self.run_directory is None:
            return {}
        done = {folder.path.name: folder for folder in _downloads(self.run_directory)}
        manifests = [read_manifest(folder.manifest) for folder in done.values()]
        manifests.sort(key=lambda manifest: manifest.identity.finished)
        sources = [manifest.source for manifest in manifests if isinstance(manifest, DownloadManifest)]
        # A source that was moved has its new path in the settings of the experiments alone.
        for settings in _resolved(self.run_directory):
            sources += [one.source for name, one in settings.items() if name in done and one.source]
        return {
            (str(source.kind), source.path): source.path_state
            for source in sources
            if source.path and source.path_state and source.path_state.startswith(CONTENT)
        }


def _downloads(run_directory: RunDirectory) -> Iterator[StageFolder]:
    for path in sorted(run_directory.stages.glob("download-*")):
        if (folder := StageFolder(path)).done:
            yield folder


class SettingsOfSource(Live):
    """Settings of a stage as far as they name a source."""

    source: SourceRecord | None = None


class ResolvedExperiment(Live):
    """experiment.json: settings by stage."""

    settings: dict[str, SettingsOfSource] = Field(default_factory=dict)


def _resolved(run_directory: RunDirectory) -> Iterator[dict[str, SettingsOfSource]]:
    """Settings by stage of each experiment, those written last at the end."""
    files = [run_directory.resolved(name) for name in run_directory.experiments()]
    for file in sorted((file for file in files if file.is_file()), key=lambda file: file.stat().st_mtime_ns):
        try:
            yield read_record(file, ResolvedExperiment, "the resolved settings of an experiment").settings
        except RecordError:
            continue
