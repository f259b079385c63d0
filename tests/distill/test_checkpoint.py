"""A checkpoint is there whole or not at all."""

import json
from pathlib import Path

import pytest
import torch

from essence.distill import checkpoint
from essence.distill.checkpoint import State


def write(folder: Path, step: int) -> Path:
    state = State(step=step, last_loss=0.5)
    return checkpoint.write(folder, step, {"weight/a": torch.full((3,), float(step))}, state, kept=2)


MAPS = Path("/proc/self/maps")
TENSORS = "tensors-00000-of-00001.safetensors"


def test_round_trip(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "none") is None
    write(tmp_path, 4)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert (found.step, found.state) == (4, State(step=4, last_loss=0.5))
    assert found.tensor("weight/a").tolist() == [4.0, 4.0, 4.0]


@pytest.mark.skipif(not MAPS.is_file(), reason="this system does not list what a process has mapped")
def test_what_was_read_does_not_keep_the_file_open(tmp_path: Path) -> None:
    """A network disk cannot remove a folder with such a file."""
    path = write(tmp_path, 4)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    tensor = found.tensor("weight/a")
    assert str(path) in MAPS.read_text()
    del found
    assert str(path) not in MAPS.read_text() and tensor.tolist() == [4.0, 4.0, 4.0]


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
    assert json.loads((path / "state.json").read_text())["step"] == 1


def test_a_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    looks = [checkpoint.Validation(2, 1.5, [1.25, 1.75]), checkpoint.Validation(4, 1.0, [1.0, 1.0])]
    state = State(step=4, best_step=4, best_ce=1.0, best_parts=[1.0, 1.0], validations=looks, tokens=9, seconds=0.1)
    checkpoint.write(tmp_path, 4, {"weight/a": torch.zeros(1)}, state, kept=1)
    assert checkpoint.states(tmp_path) == [state]
    found = checkpoint.newest(tmp_path)
    assert found is not None and found.state == state


@pytest.mark.parametrize("text", ['{"step": "4"}', '{"step": 4, "validations": [{"step": 2}]}', "[]"])
def test_a_state_of_another_shape_is_passed_over(tmp_path: Path, text: str) -> None:
    (write(tmp_path, 4) / checkpoint.STATE).write_text(text)
    assert checkpoint.states(tmp_path) == []
