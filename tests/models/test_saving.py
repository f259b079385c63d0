"""What can fail only when a model is written: tried before the first step, and survived when it fails all the same."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")

from essence.errors import DiskError, InputError, KitError, disk_error
from essence.stages import train
from support.model_folders import configure
from support.small_disk import mounted
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
    assert again.results.steps == 10
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


FULL_WEIGHTS, ADAPTERS = "all weights", "adapters"
LORA = {"rank": 64, "alpha": 64.0, "targets": ["q_proj", "down_proj"]}


@pytest.mark.parametrize("trained", [FULL_WEIGHTS, ADAPTERS])
def test_a_disk_that_fills_up_while_models_are_saved_costs_no_step(trained: str, tmp_path: Path) -> None:
    """The checkpoint and the weights beside it fit on the disk, two models do not; then somebody makes room."""
    wide = {"hidden": 128, "vocabulary": 4096}
    student = make_model(tmp_path / "student", 0, **wide)
    tokenise(tmp_path / "tokens", make_rows(tmp_path / "rows"), student)
    given = {"tokens": tmp_path / "tokens" / "partial", "student": student, "teacher": student}
    asked: Any = train_settings(packing=False, **({"lora": LORA} if trained == ADAPTERS else {}))
    undisturbed = context(tmp_path / "undisturbed", **given)
    train.run(asked, undisturbed)
    model_bytes = bytes_of(undisturbed.partial / "best")
    with mounted(tmp_path / "small", "size=1g"):
        surroundings = context(tmp_path / "small" / "work", **given)
        ballast = tmp_path / "small" / "ballast"
        kept = bytes_of(undisturbed.scratch / "training")
        ballast.write_bytes(bytes(shutil.disk_usage(tmp_path / "small").free - kept - model_bytes * 3 // 2))
        with pytest.raises(Exception) as raised:
            train.run(asked, surroundings)
        refused = disk_error(raised.value, surroundings.partial)
        assert refused and "no space is left on its disk; make room there" in str(refused)
        metrics = (surroundings.scratch / "training" / "metrics.jsonl").read_bytes()
        assert [json.loads(line)["step"] for line in metrics.splitlines()][-1] == 10
        ballast.unlink()
        train.run(asked, context(tmp_path / "small" / "work", **given))
        assert (surroundings.partial / "metrics.jsonl").read_bytes() == metrics  # no step was trained again
        for path in sorted(undisturbed.partial.glob("*/*.safetensors")):
            place = path.relative_to(undisturbed.partial)
            assert (surroundings.partial / place).read_bytes() == path.read_bytes(), place


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_adapters_that_cannot_be_merged_or_saved_are_refused_before_the_first_step(
    prepared: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import PeftModel
    from peft.tuners.lora import Linear

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def unknown(*_: object, **__: object) -> None:
        raise ValueError("no such layout")

    cases = ((PeftModel, "save_pretrained", full, "no space is left"), (Linear, "merge", unknown, "no such layout"))
    for number, (owner, name, fails, said) in enumerate(cases):
        surroundings = context(tmp_path / str(number), **inputs(prepared))
        with monkeypatch.context() as patched, pytest.raises(KitError, match=said):
            patched.setattr(owner, name, fails)
            train.run(train_settings(lora=LORA), surroundings)
        assert list(surroundings.scratch.iterdir()) == [] == list(surroundings.partial.iterdir())
