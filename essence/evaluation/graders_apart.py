"""Graders that rest on another version of math-verify: what each is made of is in a folder of its own.

Two versions of one package exclude each other in an environment. `locks/install.sh` puts what the lock
`locks/math-verify-0.9.txt` names into `graders/math-verify-0.9` of the environment, where nothing else finds it; the
processes of that grader look there first, and no other process does. The other graders' verdicts cannot change by it.
"""

import importlib.metadata
import sys
from collections.abc import Iterable
from pathlib import Path

from essence.errors import MachineError
from essence.evaluation.graders import GRADERS, PACKAGE
from essence.files import sha256_file

APART = ("math-verify-0.9",)
"""Graders with a folder, and a lock, of the same name."""
LOCK = "essence-lock.txt"
"""The lock that a folder was made from; written last, so a folder without it is not finished."""


def folder_of(grader: str) -> Path | None:
    """The folder of a grader's packages; None for one that uses the environment's own."""
    return Path(sys.prefix) / "graders" / grader if grader in APART else None


def is_installed(grader: str) -> bool:
    """True when a grader can be asked here."""
    folder = folder_of(grader)
    if folder is not None:
        return (folder / LOCK).is_file()
    try:
        return bool(importlib.metadata.version(PACKAGE))
    except importlib.metadata.PackageNotFoundError:
        return False


def installed_graders() -> tuple[str, ...]:
    """All graders that can be asked here."""
    return tuple(grader for grader in GRADERS if is_installed(grader))


def require_installed(grader: str) -> None:
    """MachineError, with the cure, for a grader that cannot be asked here."""
    if is_installed(grader):
        return
    cure = f"locks/install.sh cpu {grader}" if grader in APART else "make setup"
    raise MachineError(
        f"the grader {grader} is not installed in {sys.prefix}", f"install it ({cure}), or choose another"
    )


def grader_version(grader: str = PACKAGE) -> str:
    """Version of math-verify behind a grader's verdicts; MachineError where it is not installed."""
    require_installed(grader)
    folder = folder_of(grader)
    if folder is None:
        return importlib.metadata.version(PACKAGE)
    (found,) = importlib.metadata.distributions(name=PACKAGE, path=[str(folder)])
    return found.version


def grader_lock_sha256(grader: str) -> str | None:
    """Hash of the lock of a grader's own folder; None for one that has none, or is not installed."""
    folder = folder_of(grader)
    return sha256_file(folder / LOCK) if folder is not None and is_installed(grader) else None


def by_folder(graders: Iterable[str]) -> dict[Path | None, tuple[str, ...]]:
    """Graders that one process can serve, by the folder that it looks in first."""
    found: dict[Path | None, tuple[str, ...]] = {}
    for grader in graders:
        folder = folder_of(grader)
        found[folder] = (*found.get(folder, ()), grader)
    return found
