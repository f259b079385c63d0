"""Paths as people type them, and which of them a run directory can be."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from essence.errors import ExperimentError


def user_path(text: str, option: str = "path") -> Path:
    """The path with `~` replaced; ExperimentError for the home of somebody who has none."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ExperimentError(f"{option} {text}: there is no such user, or no home; write the path in full") from None


def resolved(path: Path, option: str) -> Path:
    """The path without links; ExperimentError where they lead in a circle."""
    try:
        return path.resolve()
    except RuntimeError:
        raise ExperimentError(f"{option} {path}: its links lead in a circle; mend them, or name another path") from None


def check_folder(path: Path, option: str) -> None:
    """ExperimentError where a folder cannot be, because a file is in the way."""
    there = next(place for place in (path, *path.parents) if place.exists())
    if not there.is_dir():
        raise ExperimentError(f"{option} {path}: {there} is a file, where a folder is wanted; name another one")


def check_outside(root: Path, sources: Iterable[Path]) -> None:
    """ExperimentError where a run directory lies inside what it would take in: it would be copied into itself."""
    for source in sources:
        for folder in _folders(source):
            if root.is_relative_to(folder):
                raise ExperimentError(
                    f"the run directory {root} lies inside {folder}, which is copied into it; name one outside with "
                    "--runs"
                )


def _folders(source: Path) -> Iterator[Path]:
    """A local source that is a folder, and the folders that links in it lead to."""
    if source.is_dir():
        yield source.resolve()
        yield from (link.resolve() for link in source.rglob("*") if link.is_symlink() and link.is_dir())
