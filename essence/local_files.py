"""Local paths as people write them, which files of one a run directory takes in, and what a run directory can be."""

import errno
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from essence.errors import ExperimentError, shortened

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
"""Weights that run code when they are read."""
LONGEST_NAME, LONGEST_PATH = 255, 4095
"""Bytes that Linux takes."""
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)

Place = Literal["file", "folder", "nothing", "special"]
"""What a path names; `special` is a device, a pipe or a socket."""


def local_files(path: Path, patterns: Sequence[str] = ()) -> list[Path]:
    """The files at a local path that a run directory takes in: no hidden ones, no pickled weights.

    With `patterns`, those files of a folder alone whose path in it fits one of them, as the hub's own patterns do.
    """
    if not path.is_dir():
        return [path] if path.exists() and path.suffix not in PICKLES else []
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix not in PICKLES)
    seen = [p for p in files if not any(part.startswith(".") for part in p.relative_to(path).parts)]
    return [p for p in seen if not patterns or fits(p.relative_to(path).as_posix(), patterns)]


def fits(name: str, patterns: Sequence[str]) -> bool:
    """Whether a file's path in its folder fits a pattern; a pattern that ends in a slash takes the whole folder."""
    return any(fnmatchcase(name, f"{pattern}*" if pattern.endswith("/") else pattern) for pattern in patterns)


def local_path(text: str, beside: Path) -> Path:
    """The absolute path that a text means, `~` and paths relative to `beside` included.

    Raises:
        ValueError: no path of this machine can be written so; the message ends a sentence about the text.
    """
    if not text.strip():
        raise ValueError("a path is wanted, found none")
    if "\0" in text:
        raise ValueError("a path cannot hold a NUL character")
    if ADDRESS.match(text):
        raise ValueError("a local path is wanted, found an address; download it and give the path of the file")
    try:
        path = beside / Path(text).expanduser()
    except RuntimeError:
        raise ValueError(f"no user of this machine has the home folder {text.split('/', 1)[0]}") from None
    if len(str(path).encode()) > LONGEST_PATH or any(len(part.encode()) > LONGEST_NAME for part in path.parts):
        raise ValueError(
            f"the path is too long: at most {LONGEST_NAME} bytes for each name in it, {LONGEST_PATH} in all"
        )
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: links that name each other
        raise ValueError(f"the path cannot be followed ({getattr(error, 'strerror', None) or error})") from None


def place(path: Path) -> Place:
    """What lies at a path, links followed. ValueError where this user may not look."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno in GONE:
            return "nothing"
        raise ValueError(f"{path} cannot be looked at ({error.strerror})") from None
    return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "special"


def typed_path(option: str, text: str, beside: Path | None = None) -> Path:
    """The absolute path that an option names; ExperimentError for a text that is no path of this machine."""
    try:
        return local_path(text, beside or Path.cwd())
    except ValueError as error:
        raise ExperimentError(f"{option} {shortened(repr(text))}: {error}") from None


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
