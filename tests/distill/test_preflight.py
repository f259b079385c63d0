"""What is refused before the first step, and the sentence that says so."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from essence.files import GIB
from support.paper_sizes import PAPER
from support.some_resources import some_resources

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from essence.data.truncation import Example  # noqa: E402
from essence.distill import preflight  # noqa: E402
from essence.distill.preflight import DeviceRoom, Largest, SizedUp  # noqa: E402
from essence.errors import InputError, MachineError  # noqa: E402
from essence.sizes.architecture import Architecture  # noqa: E402
from essence.sizes.least_change import Pass  # noqa: E402
from essence.sizes.memory import USABLE_SHARE, DeviceLoad, estimate_memory, loading_bytes  # noqa: E402
from essence.sizes.recomputation import Activations  # noqa: E402

CPU = torch.device("cpu")


def rows(*lengths: int, shift: int = 0) -> list[Example]:
    return [
        Example(number, np.arange(length, dtype=np.int32) + shift, np.arange(length) >= length // 2)
        for number, length in enumerate(lengths)
    ]


def sized(load: DeviceLoad, longest: int) -> SizedUp:
    """As it is: nothing is chosen."""
    recomputed = load.activation_checkpointing
    chosen = Activations("on" if recomputed else "off", recomputed, load.positions, 0, 0, GIB, "asked for")
    same = Pass(load.positions, load.labels)
    return SizedUp(load, Largest(load.positions, load.labels, longest, 1.0), chosen, lambda _: same)


def test_the_largest_pass_is_looked_for_in_every_step() -> None:
    resources = some_resources(micro_batch_rows=2, micro_batch_tokens=100)
    examples = rows(10, 90, 30, 50, 20, 40)
    steps = [[0, 1, 2], [3, 4, 5]]
    packed = preflight.largest_pass(examples, steps, 1, True, 8, resources)
    assert (packed.positions, packed.labels, packed.longest_row, packed.passes_of_step) == (104, 50, 90, 2.0)
    padded = preflight.largest_pass(examples, steps, 1, False, 8, resources)
    assert (padded.positions, padded.labels, padded.longest_row) == (96, 45, 90)
    of_two = preflight.largest_pass(examples, [[0, 1, 2, 3, 4, 5]], 2, True, 8, resources)
    assert (of_two.positions, of_two.labels) == (104, 50)


def test_what_fits_is_recorded() -> None:
    small = Architecture(64, 3, 4, 2, 16, 192, 384, True)
    alone = {"parallel": "single", "devices": 1, "teacher_placement": "replicated"}
    load = replace(PAPER, student=small, teacher=small, positions=64, labels=32, **alone)
    found = preflight.check_memory(sized(load, 64), 16, DeviceRoom.of(CPU, 1), CPU)
    assert found["largest_positions"] == 64
    assert found["static_bytes"] + found["dynamic_bytes"] <= found["usable_bytes"] < found["device_bytes"]


def test_what_does_not_fit_is_one_sentence_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    load = replace(PAPER, parallel="single", devices=1, teacher_placement="replicated", loss_bytes_per_logit=2.0)
    half = estimate_memory(replace(load, positions=8192, labels=8192)).total
    monkeypatch.setattr(preflight, "memory_bytes", lambda device: int(half / USABLE_SHARE["cpu"]) + 1)
    whole = sized(replace(load, positions=16384, labels=16384), 4096)
    with pytest.raises(MachineError) as raised:
        preflight.check_memory(whole, 16, DeviceRoom.of(CPU, 1), CPU)
    message = str(raised.value)
    assert f"about {estimate_memory(replace(load, positions=16384, labels=16384)).total / GIB:.1f} GiB" in message
    assert message.endswith("set micro_batch_tokens = 8192") and "\n" not in message


def test_what_cannot_be_loaded_is_refused_though_it_could_be_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """A student of 14.8 billion parameters in shares of eight GPUs of 80 GB, on each of which it is whole at first."""
    student = Architecture(5120, 40, 40, 8, 128, 17_408, 151_936, False)
    load = replace(PAPER, student=student, devices=8, loss_bytes_per_logit=2.0)
    room = DeviceRoom(80 * GIB, int(80 * GIB * USABLE_SHARE["cuda"]))
    assert estimate_memory(load).total < room.usable < loading_bytes(load)
    monkeypatch.setattr(preflight, "memory_bytes", lambda device: 2000 * GIB)
    with pytest.raises(MachineError) as raised:
        preflight.check_memory(sized(load, 4096), 16, room, torch.device("cuda"))
    message = str(raised.value)
    assert f"needs about {loading_bytes(load) / GIB:.1f} GiB on each device (while its models are loaded" in message
    assert "\n" not in message and "larger" not in message


def test_nothing_fits_in_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "memory_bytes", lambda device: GIB)
    with pytest.raises(MachineError, match="smaller model"):
        preflight.check_memory(sized(PAPER, 4096), 16, DeviceRoom.of(CPU, 1), CPU)


@pytest.mark.parametrize(("recomputed", "cure"), [(False, "activation_checkpointing = 'on'"), (True, "below 64")])
def test_memory_that_runs_out_all_the_same_is_one_sentence(recomputed: bool, cure: str) -> None:
    load = replace(PAPER, activation_checkpointing=recomputed, positions=64, labels=64)
    with pytest.raises(MachineError) as raised, preflight.explained_memory(sized(load, 64)):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB")
    message = str(raised.value)
    assert cure in message and "CUDA out of memory. Tried to allocate 2.00 GiB" in message and "\n" not in message


def test_memory_that_runs_out_before_the_first_step_is_one_sentence() -> None:
    with pytest.raises(MachineError) as raised, preflight.explained_loading():
        raise torch.OutOfMemoryError("CUDA out of memory.\nGPU 0 has 1 GiB free. Process 7 has 70 GiB memory in use")
    message = str(raised.value)
    assert "before the first step (CUDA out of memory. GPU 0 has 1 GiB free. Process 7" in message
    assert "nvidia-smi" in message and "\n" not in message


def test_changed_rows_are_refused_on_the_second_attempt(tmp_path: Path) -> None:
    training, validation = rows(5, 9), rows(7)
    first = preflight.check_data(tmp_path / "work", training, validation)
    again = preflight.check_data(tmp_path / "work", training, validation)
    assert first["equals_earlier_attempt"] is None and again["equals_earlier_attempt"] is True
    with pytest.raises(InputError, match=r"validation_sha256 was [0-9a-f]{16} in an earlier attempt and is"):
        preflight.check_data(tmp_path / "work", training, rows(7, shift=1))
