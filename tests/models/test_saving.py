"""What can fail only when a model is written: tried before the first step, and survived when it fails all the same."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")

from essence.errors import DiskError, InputError, disk_error
from essence.stages import train
from support.model_folders import configure
from support.stage_inputs import context, inputs, make_model, make_rows, tokenise, train_settings


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Inputs of the train stage: tokens, student, teacher."""
    root = tmp_path_factory.mktemp("inputs")
    rows, student = make_rows(root / "rows"), make_model(root / "student", 0)
    tokenise(root / "tokens", rows, student)
    return {"tokens": root / "tokens" / "partial", "student": student, "teacher": make_model(root / "teacher", 1)}


def test_a_training_whose_saving_failed_goes_on_from_its_last_step(prepared: dict[str, Path], tmp_path: Path) -> None:
    asked: Any = train_settings(packing=False)
    surroundings = context(tmp_path / "work", **inputs(prepared))
    in_the_way = surroundings.partial / "last"
    in_the_way.symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        train.run(asked, surroundings)
    training = surroundings.scratch / "training"
    (kept,) = (training / "checkpoints").iterdir()
    state, metrics = json.loads((kept / "state.json").read_text()), (training / "metrics.jsonl").read_bytes()
    assert kept.name == "step-00000010" == f"step-{state['step']:08d}"  # 2 epochs of 20 rows, 4 a step
    in_the_way.unlink()
    again = train.run(asked, context(tmp_path / "work", **inputs(prepared)))
    assert again.results["steps"] == 10
    assert (surroundings.partial / "metrics.jsonl").read_bytes() == metrics  # no step was trained again
    undisturbed = context(tmp_path / "undisturbed", **inputs(prepared))
    train.run(asked, undisturbed)
    for name in ("best", "last"):
        first, second = (place.partial / name / "model.safetensors" for place in (surroundings, undisturbed))
        assert first.read_bytes() == second.read_bytes()


def test_what_cannot_be_saved_is_refused_before_the_first_step(prepared: dict[str, Path], tmp_path: Path) -> None:
    student = make_model(tmp_path / "student", 0)
    configure(student / "model", "generation_config.json", length_penalty=2.0)
    surroundings = context(tmp_path / "work", **inputs(prepared, student=student))
    with pytest.raises(InputError, match=r"generation_config\.json can be read but not be saved again"):
        train.run(train_settings(), surroundings)
    assert not (surroundings.scratch / "training").exists()


def test_what_a_library_in_rust_says_of_a_disk_is_understood() -> None:
    said = disk_error(RuntimeError("Error while serializing: I/O error: Permission denied (os error 13)"), "runs")
    assert isinstance(said, DiskError) and "runs: this user may not write there" in str(said)
    assert disk_error(RuntimeError("I/O error: Not a typewriter (os error 25)"), "runs") is None
