"""Local paths as people write them, which files of one a run directory takes in, and what a run directory can be."""

import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from essence.errors import ExperimentError, InputError, shortened

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
"""Weights that run code when they are read."""
LONGEST_NAME, LONGEST_PATH = 255, 4095
"""Bytes that Linux takes."""
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)

Place = Literal["file", "folder", "nothing", "special", "unreachable"]
"""What a path names; `special` is a device, a pipe or a socket, and `unreachable` what this user may not look at."""

Identity = tuple[int, int]
"""Device and number of a folder: the same by whatever name it is reached."""


def local_files(path: Path, patterns: Sequence[str] = ()) -> list[Path]:
    """The files at a local path that a run directory takes in: no hidden ones, no pickled weights.

    Links are followed, those to folders too. A path that is not there has no files. With `patterns`, those files of a
    folder alone whose path in it fits one of them, as the hub's own patterns do.

    Raises:
        InputError: a link that leads nowhere or back to a folder it is in; a folder that may not be read; a device; the
            root of all folders, by whatever name.
    """
    try:
        if path.is_dir():
            files = sorted(_below(path, ()))
            return [file for file in files if not patterns or fits(file.relative_to(path).as_posix(), patterns)]
        if not path.exists():
            return []
        if not path.is_file():
            raise InputError(f"{path}: neither a file nor a folder", "name one that holds the data")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})", "name another path, or mend this one") from None
    return [path] if path.suffix not in PICKLES else []


def fits(name: str, patterns: Sequence[str]) -> bool:
    """True when a file's path in its folder fits a pattern; a pattern that ends in a slash takes the whole folder."""
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
    """What is at a path, links followed."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return "nothing" if error.errno in GONE else "unreachable"
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
        raise ExperimentError(f"{option} {path}: {there} is a file, where a folder is wanted", "name another one")


def check_outside(root: Path, sources: Iterable[Path]) -> None:
    """ExperimentError where a run directory is inside what it would take in: it would be copied into itself."""
    for source in sources:
        for folder in _folders(source):
            if root.is_relative_to(folder):
                raise ExperimentError(
                    f"the run directory {root} is inside {folder}, which is copied into it",
                    "name one outside with --runs",
                )


def _folders(source: Path) -> Iterator[Path]:
    """A local source that is a folder, and the folders that links in it lead to."""
    if source.is_dir():
        yield source.resolve()
        yield from (link.resolve() for link in source.rglob("*") if link.is_symlink() and link.is_dir())


def _below(folder: Path, above: tuple[Identity, ...]) -> Iterator[Path]:
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    root = Path(folder.anchor).stat()
    if identity == (root.st_dev, root.st_ino):
        raise InputError(f"{folder}: all that this machine has", "name the folder that holds the data")
    if identity in above:
        raise InputError(f"{folder}: a link that leads back to a folder it is in", "remove the link")
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    for path in (folder / name for name in names):
        if path.is_dir():
            yield from _below(path, (*above, identity))
        elif path.suffix in PICKLES:
            continue
        elif path.is_file():
            yield path
        elif path.is_symlink():
            raise InputError(f"{path}: a link that leads nowhere (to {path.readlink()})", "mend or remove it")
