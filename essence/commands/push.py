"""`invoke push`: a trained model and its card to a hub, verified first; without `--yes` only what would be sent."""

import re
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from essence.commands.card import CARD_FILE, cells_named
from essence.commands.options import check_word
from essence.engines.secrets import token
from essence.errors import ExperimentError, MachineError, RecordError
from essence.files import sha256_file, sha256_text
from essence.record.model_card import model_card
from essence.record.plan_record import CellEntry, PlanRecord
from essence.record.run_directory import RunDirectory
from essence.record.verification import verify


@dataclass(frozen=True)
class Upload:
    """What was typed."""

    experiment: str
    cell: str
    repository: str
    checkpoint: str


def push(run_directory: RunDirectory, asked: Upload, yes: bool, console: Console) -> int:
    """Verify the model, say each file with size and sha256, and upload it when that was asked for."""
    _check(asked)
    plan, entry = _one_cell(run_directory, asked)
    card = model_card(run_directory, plan, entry).text()
    _refuse_findings(run_directory, entry)
    folder = run_directory.stage(entry.train).output / asked.checkpoint
    files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    files.pop(CARD_FILE, None)
    if not files:
        raise RecordError(f"{folder}: holds no file, so there is no model to upload: copy the run with its weights")
    console.print(f"{entry.name} ({asked.checkpoint}) to {asked.repository}:", highlight=False, soft_wrap=True)
    for name, file in files.items():
        _say(console, name, file.stat().st_size, sha256_file(file))
    _say(console, CARD_FILE, len(card.encode()), sha256_text(card))
    if not yes:
        console.print("nothing was uploaded; with --yes it is", highlight=False)
        return 0
    console.print(f"uploaded: {_upload(asked, files, card)}", highlight=False, soft_wrap=True)
    return 0


def _say(console: Console, name: str, size: int, sha256: str) -> None:
    console.print(f"  {name}  {size:,} bytes  sha256 {sha256}", highlight=False, soft_wrap=True, markup=False)


def _check(asked: Upload) -> None:
    check_word("--checkpoint", "checkpoint", asked.checkpoint, ("best", "last"))
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", asked.repository):
        raise ExperimentError(f"--repository {asked.repository}: must read owner/name")


def _one_cell(run_directory: RunDirectory, asked: Upload) -> tuple[PlanRecord, CellEntry]:
    plan, chosen = cells_named(run_directory, asked.experiment, asked.cell)
    if len(chosen) > 1:
        raise ExperimentError(
            f"--cell {asked.cell}: {len(chosen)} cells have it in their names, wanted: one, as {chosen[0].name}"
        )
    return plan, chosen[0]


def _refuse_findings(run_directory: RunDirectory, cell: CellEntry) -> None:
    """RecordError where the training, or an evaluation that the card quotes, is not as recorded."""
    stages = [cell.train, *(name for evaluation in cell.evaluations for name in evaluation.stages.values())]
    done = [name for name in stages if run_directory.stage(name).done]
    if findings := verify(run_directory, stages=done).findings:
        raise RecordError(f"{findings[0]} ({len(findings)} findings in all): not uploaded", "see invoke verify")


def _upload(asked: Upload, files: dict[str, Path], card: str) -> str:
    """One commit with everything; the address of it."""
    try:
        from httpx2 import HTTPError
        from huggingface_hub import CommitOperationAdd, HfApi
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError:
        raise MachineError("huggingface_hub is not installed here: run `make setup`, then issue this again") from None
    key = token(Path(asked.repository))
    if key is None:
        raise MachineError("no token for the hub: set HF_TOKEN, or log in with `hf auth login`")
    try:
        secret = key.file.read_text(encoding="utf-8").strip()
    finally:
        key.forget()
    operations = [CommitOperationAdd(name, str(file)) for name, file in files.items()]
    operations.append(CommitOperationAdd(CARD_FILE, card.encode()))
    try:
        api = HfApi(token=secret)
        api.create_repo(asked.repository, private=True, exist_ok=True)
        done = api.create_commit(asked.repository, operations, commit_message=f"{asked.cell} ({asked.checkpoint})")
    except (HfHubHTTPError, HTTPError, OSError, ValueError) as error:
        reason = str(error).replace(secret, "***").strip().splitlines()
        raise MachineError(
            f"cannot upload to {asked.repository}: {reason[0] if reason else type(error).__name__} "
            "(a hub has to be reachable and the token has to allow writing; issuing it again is safe)"
        ) from None
    return str(done.commit_url)
