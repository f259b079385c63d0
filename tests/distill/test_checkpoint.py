"""A checkpoint is there whole or not at all."""

import json
from pathlib import Path

import pytest
import torch

from essence.distill import checkpoint


def write(folder: Path, step: int) -> Path:
    return checkpoint.write(folder, step, {"weight/a": torch.full((3,), float(step))}, {"step": step}, kept=2)


TENSORS = "tensors-00000-of-00001.safetensors"


def test_round_trip(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "none") is None
    write(tmp_path, 4)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert (found.step, found.state) == (4, {"step": 4})
    assert found.tensor("weight/a").tolist() == [4.0, 4.0, 4.0]


def test_two_are_kept_and_a_step_can_be_written_again(tmp_path: Path) -> None:
    for step in (1, 2, 10, 10):
        write(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000010"]


@pytest.mark.parametrize("name", [TENSORS, checkpoint.STATE, checkpoint.HASHES])
@pytest.mark.parametrize("damage", ["cut", "missing", "changed"])
def test_damaged_newest_gives_the_one_before(
    tmp_path: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, 1)
    path = write(tmp_path, 2) / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-2] if damage == "cut" else content[:-2] + b"01")
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert f"{tmp_path / 'step-00000002'}: damaged, so the checkpoint before it is used" in caplog.text


def test_kill_between_writing_and_renaming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 1)

    def killed(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", killed)
        write(tmp_path, 2)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == 1
    write(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


def test_no_pickle_is_written(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    assert sorted(p.name for p in path.iterdir()) == ["sha256.json", "state.json", TENSORS]
    assert json.loads((path / "state.json").read_text()) == {"step": 1}
