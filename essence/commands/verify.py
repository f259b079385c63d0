"""`invoke verify`: is everything in a run directory as its records say?"""

import json
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

from essence.files import GIB
from essence.record.archive import unpack
from essence.record.run_directory import RunDirectory
from essence.record.verification import Verification, verify
from essence.report.recheck import report_findings


def print_verification(folder: Path, experiment: str | None, as_json: bool, console: Console) -> int:
    """0 when all is as recorded, 1 with one sentence a finding."""
    if folder.is_file():
        verification = _verify_archive(folder)
    else:
        root, name = _run_directory_of(folder, experiment)
        verification = verify_with_reports(RunDirectory(root), name)
    if as_json:
        sys.stdout.write(json.dumps(verification.as_json(), indent=2) + "\n")
    else:
        _say(verification, folder, console)
    return 1 if verification.findings else 0


def verify_with_reports(run_directory: RunDirectory, experiment: str | None) -> Verification:
    """Verify records and, where there is nothing to say against these, the reports made from them."""
    verification = verify(run_directory, experiment)
    if verification.findings:
        return verification
    for name in [experiment] if experiment else run_directory.experiments():
        findings, unchecked = report_findings(run_directory, name)
        verification.findings += findings
        verification.unchecked += unchecked
    return verification


def _verify_archive(archive: Path) -> Verification:
    """Unpack beside nothing of the caller's, check, and remove it again."""
    with tempfile.TemporaryDirectory(prefix="essence-verify-") as temporary:
        root, wrong = unpack(archive, Path(temporary))
        verification = verify_with_reports(RunDirectory(root), None)
        verification.findings[:0] = wrong
        # The temporary folder means nothing to the reader.
        for sentences in (verification.findings, verification.unchecked, verification.unfinished):
            sentences[:] = [sentence.replace(f"{root}/", "") for sentence in sentences]
    return verification


def _run_directory_of(folder: Path, experiment: str | None) -> tuple[Path, str | None]:
    """`runs/tiny` is understood as experiment tiny in `runs`."""
    if experiment is None and (folder / "plan.json").is_file() and (folder.parent / "stages").is_dir():
        return folder.parent, folder.name
    return folder, experiment


def _say(verification: Verification, root: Path, console: Console) -> None:
    for sign, sentences in (
        (Text("✗ ", style="bold red"), verification.findings),
        (Text("? not checked: ", style="yellow"), verification.unchecked),
        (Text("· ", style="dim"), verification.unfinished),
        (Text("· ", style="dim"), verification.accepted),
    ):
        for sentence in sentences:
            console.print(sign + Text(sentence), soft_wrap=True)
    size = verification.bytes / GIB
    console.print(
        f"{root}: {verification.stages} stages, {verification.files} files, {size:.3f} GiB checked; "
        f"{len(verification.findings)} findings, {len(verification.unchecked)} not checked, "
        f"{len(verification.unfinished)} not finished",
        highlight=False,
        soft_wrap=True,
    )
