"""`invoke verify`: is everything in a run directory as its records say?"""

import json
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from essence.record.export import unpack
from essence.record.verify import Verification, verify
from essence.store import RunDirectory

GIB = 1 << 30


def print_verification(folder: Path, experiment: str | None, as_json: bool, console: Console) -> int:
    """0 when all is as recorded, 1 with one sentence a finding."""
    if folder.is_file():
        verification = _verify_archive(folder)
    else:
        root, name = _run_directory_of(folder, experiment)
        verification = verify(RunDirectory(root), name)
    if as_json:
        sys.stdout.write(json.dumps(verification.as_json(), indent=2) + "\n")
    else:
        _say(verification, folder, console)
    return 1 if verification.findings else 0


def _verify_archive(archive: Path) -> Verification:
    """Unpack beside nothing of the caller's, check, and remove it again."""
    with tempfile.TemporaryDirectory(prefix="essence-verify-") as temporary:
        root, wrong = unpack(archive, Path(temporary))
        verification = verify(RunDirectory(root))
        verification.findings[:0] = wrong
        # The temporary folder means nothing to the reader.
        verification.findings = [sentence.replace(f"{root}/", "") for sentence in verification.findings]
        verification.unchecked = [sentence.replace(f"{root}/", "") for sentence in verification.unchecked]
    return verification


def _run_directory_of(folder: Path, experiment: str | None) -> tuple[Path, str | None]:
    """`runs/tiny` is understood as experiment tiny in `runs`."""
    if experiment is None and (folder / "plan.json").is_file() and (folder.parent / "stages").is_dir():
        return folder.parent, folder.name
    return folder, experiment


def _say(verification: Verification, root: Path, console: Console) -> None:
    for finding in verification.findings:
        console.print(f"[bold red]✗[/bold red] {finding}", highlight=False, soft_wrap=True)
    for sentence in verification.unchecked:
        console.print(f"[yellow]?[/yellow] not checked: {sentence}", highlight=False, soft_wrap=True)
    size = verification.bytes / GIB
    console.print(
        f"{root}: {verification.stages} stages, {verification.files} files, {size:.3f} GiB checked; "
        f"{len(verification.findings)} findings, {len(verification.unchecked)} not checked, "
        f"{len(verification.unfinished)} stages not finished",
        highlight=False,
        soft_wrap=True,
    )
