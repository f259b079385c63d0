"""The memory formulas against a count of live tensors, and against known sizes."""

from dataclasses import replace
from typing import Any

import pytest

from essence.files import GIB
from essence.plan.cells import train_settings
from essence.plan.experiment import load
from essence.settings import LoraSettings
from essence.sizes.architecture import Architecture, adapter_parameters
from essence.sizes.host import MachineLoad, main_memory_bytes, staged_bytes
from essence.sizes.memory import ZERO_BUCKET_ELEMENTS, DeviceLoad, estimate_memory, loss_memory
from support.paper_sizes import PAPER, QWEN3

LORA = LoraSettings(rank=8, alpha=16.0, targets=["q_proj", "v_proj"])


def test_static_memory_of_the_paper_s_pairs() -> None:
    assert estimate_memory(PAPER).static / GIB == pytest.approx(26.0, abs=0.05)
    alone = replace(PAPER, parallel="single", devices=1, teacher_placement="replicated")
    assert estimate_memory(alone).static / GIB == pytest.approx(82.7, abs=0.05)
    larger = replace(PAPER, student=QWEN3["8b"], teacher=QWEN3["32b"])
    assert estimate_memory(larger).static / GIB == pytest.approx(60.2, abs=0.05)
    sharded = replace(alone, parallel="zero2", devices=4)
    buckets = 2 * 2 * ZERO_BUCKET_ELEMENTS
    saved = QWEN3["4b"].parameters * 16 * 3 // 4 - buckets
    assert estimate_memory(alone).static - estimate_memory(sharded).static == saved


def test_masters_and_moments_lie_on_the_device_or_in_main_memory() -> None:
    """12 bytes a parameter; of several ranks each has its share, of sums too where they cross after each pass."""
    alone = replace(PAPER, parallel="single", devices=1, teacher_placement="replicated")
    moved, parameters = replace(alone, optimizer_placement="main_memory"), QWEN3["4b"].parameters
    assert estimate_memory(alone).static - estimate_memory(moved).static == 12 * parameters
    two = replace(moved, parallel="zero2", devices=2)
    buckets = 2 * 2 * ZERO_BUCKET_ELEMENTS
    assert estimate_memory(moved).static - estimate_memory(two).static == 2 * parameters - buckets
    main = {load: main_memory_bytes(MachineLoad.of(load, 1)) for load in (alone, moved, two)}
    staged = staged_bytes(QWEN3["4b"])
    assert main[moved] == 12 * parameters + staged + (4 << 30) > main[alone]
    assert main[two] - main[moved] == staged + (4 << 30) + 2 * parameters  # the best weights of the other rank
    assert main_memory_bytes(MachineLoad.of(replace(two, devices=8), 4)) < main[moved]


def test_the_buckets_of_ddp_are_a_second_copy_of_the_gradients() -> None:
    alone = replace(PAPER, parallel="ddp", devices=1, teacher_placement="replicated", compute_dtype="float32")
    two = replace(alone, devices=2)
    assert estimate_memory(two).static - estimate_memory(alone).static == 4 * QWEN3["4b"].parameters
    adapted = [estimate_memory(replace(load, lora=LORA)).static for load in (alone, two)]
    assert adapted[1] - adapted[0] == 4 * adapter_parameters(QWEN3["4b"], LORA)


def test_a_frozen_head_has_no_gradient() -> None:
    loaded = load("bespoke")
    whole = train_settings(loaded.cells()[-1], loaded.experiment)
    frozen = whole.model_copy(update={"lora": LORA})
    loss, student = loaded.experiment.resources.loss, QWEN3["4b"]
    trained, kept = (loss_memory(student, settings, loss) for settings in (whole, frozen))
    assert trained.fixed - kept.fixed == 4 * student.head_parameters
    assert (trained.labels, kept.labels) == (2 * student.hidden, loss.chunk_rows)


def test_no_more_logits_count_than_the_store_holds() -> None:
    chunked = replace(PAPER, loss_bytes_per_logit=2.0, activation_checkpointing=False)
    few, all_labels = (estimate_memory(replace(chunked, loss_labels=labels)).dynamic for labels in (512, 9999))
    assert all_labels - few == 2 * (4096 - 512) * PAPER.student.vocabulary


def test_the_plain_loss_is_nearly_all_that_length_changes() -> None:
    """A count of the whole step under fake tensors gave 17.6 and 8.8 GiB at 4,096 and 2,048 tokens."""
    dynamic = [
        estimate_memory(replace(PAPER, positions=tokens, labels=tokens)).dynamic / GIB for tokens in (4096, 2048)
    ]
    assert dynamic[0] == pytest.approx(17.6, rel=0.1) and dynamic[1] == pytest.approx(8.8, rel=0.1)


def counted_peak(sizes: Architecture, positions: int, load: DeviceLoad) -> int:
    """Live tensor bytes of forward and backward above the weights."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from essence.distill.attention import use_row_attention
    from essence.models.from_sizes import config_of
    from support.live_bytes import LiveBytes

    config = config_of(sizes, positions)
    lower = load.compute_dtype == "bfloat16"
    model = transformers.Qwen3ForCausalLM(config).to(torch.bfloat16 if lower else torch.float32).train()
    inputs: dict[str, Any] = {"input_ids": torch.zeros(1, positions, dtype=torch.long), "use_cache": False}
    if load.packed:
        use_row_attention(model)
        rows = [positions // 4] * 4
        of_rows = {"row_starts": torch.arange(0, positions + 1, rows[0], dtype=torch.int32), "longest_row": rows[0]}
        inputs |= {"position_ids": torch.cat([torch.arange(row) for row in rows])[None], **of_rows}
    if load.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with LiveBytes() as counter:
        model.base_model(**inputs).last_hidden_state.sum().backward()
    return counter.peak


@pytest.mark.parametrize(
    ("compute_dtype", "packed", "checkpointing"),
    [("bfloat16", False, False), ("bfloat16", True, True), ("float32", True, False), ("float32", False, True)],
)
def test_activations_are_those_that_are_held(compute_dtype: Any, packed: bool, checkpointing: bool) -> None:
    sizes, positions = Architecture(96, 5, 6, 2, 16, 200, 61, True), 512
    load = replace(
        PAPER,
        student=sizes,
        teacher=None,
        compute_dtype=compute_dtype,
        activation_checkpointing=checkpointing,
        packed=packed,
        positions=positions,
        labels=0,
    )
    counted = counted_peak(sizes, positions, load)
    assert 0.9 * counted < estimate_memory(load).dynamic < 1.2 * counted
