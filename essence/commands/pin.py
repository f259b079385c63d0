"""`invoke pin`: look up the commits of the pins that are empty, on a machine with network."""

from collections.abc import Sequence
from pathlib import Path

import tomlkit
from rich.console import Console

from essence.errors import PinError
from essence.files import read_text, write_atomically
from essence.plan.experiment import PIN_FILES
from essence.settings.toml import read_toml

TABLES = {"models": "model", "datasets": "dataset", "benchmarks": "dataset"}


def pin(console: Console, files: Sequence[Path] = PIN_FILES) -> int:
    """Fill every empty commit of the catalogue."""
    for file in files:
        fill(console, file)
    return 0


def fill(console: Console, file: Path) -> None:
    """Fill every empty commit with the newest one of its repository; comments and order of the file stay."""
    read_toml(file)  # its sentence for a file that is none
    document = tomlkit.parse(read_text(file))
    empty = [
        (entry, name, kind)
        for table, kind in TABLES.items()
        for name, entry in document.get(table, {}).items()
        if entry.get("repository") and not entry.get("commit")
    ]
    for entry, name, kind in empty:
        entry["commit"] = newest_commit(str(entry["repository"]), kind, name)
        console.print(f"{name}: {entry['repository']} at {entry['commit']}", highlight=False)
        write_atomically(file, tomlkit.dumps(document))
    console.print(f"{file}: {len(empty)} pins filled" if empty else f"{file}: no pin is empty", highlight=False)


def newest_commit(repository: str, kind: str, name: str) -> str:
    """The commit that the repository's main branch names now; PinError when the hub cannot be asked."""
    try:
        from httpx2 import HTTPError
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError:
        raise PinError("looking up commits needs huggingface_hub: make setup") from None
    try:
        commit = HfApi().repo_info(repository, repo_type=kind, revision="main").sha
    except (HfHubHTTPError, HTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PinError(f"cannot look up {kind} '{name}' ({repository}): {reason}", "is there network?") from error
    return str(commit)
