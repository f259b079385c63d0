"""`invoke push`: a dry run that sends nothing, refusals in one sentence, and an upload that finds no hub."""

from pathlib import Path

import pytest
from rich.console import Console

from essence.commands.push import Upload, push
from essence.errors import ExperimentError, MachineError, RecordError
from essence.files import sha256_file
from essence.record.manifest import Manifest
from essence.record.run_directory import RunDirectory
from support.synthetic_run import SyntheticRun

ASKED = Upload("tiny", "lsp-0.50", "someone/model", "best")
SECRET = "hf_verysecret"


@pytest.fixture
def run(tmp_path: Path) -> SyntheticRun:
    made = SyntheticRun(tmp_path / "runs", lsps=(0.5, 1.0), seeds=(1,)).write()
    train = made.stage_of(0, "train")
    output = made.root / "stages" / train / "output"
    (output / "best").mkdir()
    (output / "best" / "model.safetensors").write_bytes(b"weights")
    files = [p for p in sorted(output.rglob("*")) if p.is_file()]
    outputs = [
        {"path": p.relative_to(output).as_posix(), "bytes": p.stat().st_size, "sha256": sha256_file(p)} for p in files
    ]
    made.damage(train, outputs=outputs, seeds={"train": 1})
    manifest = made.root / "stages" / train / "manifest.json"
    record = Manifest.model_validate_json(manifest.read_text()).sealed()
    made.damage(train, **record)
    for stage in ("generate", "grade"):
        made.leave(made.stage_of(0, stage))
    return made


def test_a_dry_run_names_every_file_and_sends_nothing(run: SyntheticRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert push(RunDirectory(run.root), ASKED, False, Console(width=400)) == 0
    said = capsys.readouterr().out
    weights = run.root / "stages" / run.stage_of(0, "train") / "output/best/model.safetensors"
    assert f"model.safetensors  7 bytes  sha256 {sha256_file(weights)}" in said
    assert "README.md" in said
    assert "nothing was uploaded" in said


def test_refusals(run: SyntheticRun) -> None:
    directory, console = RunDirectory(run.root), Console()
    with pytest.raises(ExperimentError, match="must read owner/name"):
        push(directory, Upload("tiny", "lsp-0.50", "model", "best"), False, console)
    with pytest.raises(ExperimentError, match="2 cells have it in their names"):
        push(directory, Upload("tiny", "lsp", "someone/model", "best"), False, console)
    with pytest.raises(RecordError, match="no model to upload"):
        push(directory, Upload("tiny", "lsp-0.50", "someone/model", "last"), False, console)
    weights = run.root / "stages" / run.stage_of(0, "train") / "output/best/model.safetensors"
    weights.write_bytes(b"swapped")
    with pytest.raises(RecordError, match="not uploaded"):
        push(directory, ASKED, True, console)


def test_an_upload_without_token_or_hub_is_one_sentence(
    run: SyntheticRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    directory, console = RunDirectory(run.root), Console()
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "absent"))
    with pytest.raises(MachineError, match="no token for the hub"):
        push(directory, ASKED, True, console)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(MachineError, match="cannot upload to someone/model") as refused:
        push(directory, ASKED, True, console)
    assert SECRET not in str(refused.value) + "".join(capsys.readouterr())
