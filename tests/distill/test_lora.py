"""Adapters: only they are trained, the saved model is the student with them merged, and the counts are theirs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("peft", reason="peft is not installed")
from essence.distill.adapters import add_adapters
from essence.distill.ranks import ALONE
from essence.errors import InputError
from essence.models.loading import load_model
from essence.progress import StageContext, Stopped
from essence.record.outcomes import TrainOutcome
from essence.record.training_records import TrainMore
from essence.settings import LoraSettings
from essence.sizes.architecture import Architecture, adapter_parameters, training_flops
from essence.stages import train
from support.stage_inputs import context, inputs, train_settings

CPU = torch.device("cpu")
LORA = {"rank": 4, "alpha": 8.0, "targets": ["q_proj", "v_proj", "down_proj"]}


def trained(
    folder: Path, prepared: dict[str, Path], activations: str = "auto", **changes: Any
) -> tuple[StageContext, TrainOutcome]:
    around = context(folder, **inputs(prepared))
    around = replace(around, resources=around.resources.model_copy(update={"activation_checkpointing": activations}))
    return around, train.run(train_settings(lora=LORA, **changes), around)


def losses(around: StageContext) -> list[float]:
    lines = [json.loads(line) for line in (around.partial / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "step"]


@pytest.fixture(scope="module")
def done(prepared: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[StageContext, TrainOutcome]:
    return trained(tmp_path_factory.mktemp("lora"), prepared)


def test_the_saved_model_is_the_student_with_its_adapters(
    prepared: dict[str, Path], done: tuple[StageContext, TrainOutcome]
) -> None:
    from peft import PeftModel

    partial, student = done[0].partial, prepared["student"] / "model"
    merged = load_model(partial / "last", torch.float32, CPU)
    base: Any = load_model(student, torch.float32, CPU)
    beside = PeftModel.from_pretrained(base, partial / "last-adapter")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        before = load_model(student, torch.float32, CPU)(ids).logits
        torch.testing.assert_close(merged(ids).logits, beside(ids).logits, rtol=0, atol=1e-5)
        assert (merged(ids).logits - before).abs().max() > 1e-3
    old, new = load_file(student / "model.safetensors"), load_file(partial / "last" / "model.safetensors")
    assert old.keys() == new.keys()
    differing = {name.split(".")[-2] for name in old if not torch.equal(old[name], new[name])}
    assert differing == {"q_proj", "v_proj", "down_proj"}
    assert {path.name for path in partial.iterdir()} >= {"best", "best-adapter", "last", "last-adapter"}
    assert str(prepared["student"]) not in (partial / "last-adapter" / "adapter_config.json").read_text()


def test_counts_are_those_of_the_adapters(prepared: dict[str, Path], done: tuple[StageContext, TrainOutcome]) -> None:
    around, outcome = done
    architecture = Architecture.from_config(json.loads((prepared["student"] / "model" / "config.json").read_text()))
    adapters = adapter_parameters(architecture, LoraSettings.model_validate(LORA))
    stored = load_file(around.partial / "last-adapter" / "adapter_model.safetensors")
    assert adapters == sum(tensor.numel() for tensor in stored.values())
    assert outcome.executed.parameters.model_dump() == {"trained": adapters, "all": architecture.parameters + adapters}
    teacher = Architecture.from_config(json.loads((prepared["teacher"] / "model" / "config.json").read_text()))
    frozen = 4 * (architecture.parameters + teacher.parameters)
    assert isinstance(outcome.cost.more, TrainMore)
    assert outcome.cost.more.static_memory_bytes == frozen + 16 * adapters
    written = load_file(around.scratch / "training" / "last.safetensors")
    assert sum(tensor.numel() for tensor in written.values()) == adapters, "a checkpoint holds no frozen weight"
    assert losses(around)[-1] < losses(around)[0]


def test_flops_equal_the_count_of_pytorch() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from support.small_training import model

    student, tokens, lora = model(0), 24, LoraSettings.model_validate(LORA)
    architecture = Architecture.from_config(student.config.to_dict())
    add_adapters(student, lora, 0)
    counter = FlopCounterMode(display=False)
    with counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        student(torch.arange(tokens)[None] % 23).logits.sum().backward()
    # PyTorch counts the masked half of attention too, and nothing flows back into what stands before the first adapter.
    expected = training_flops(architecture, tokens, activation_checkpointing=False, lora=lora)
    attention = 2 * tokens**2 * architecture.attention_width * architecture.layers
    assert counter.get_total_flops() == pytest.approx(expected + 3 * attention, rel=0.1)


def test_stopped_and_resumed_is_undisturbed(
    prepared: dict[str, Path], done: tuple[StageContext, TrainOutcome], tmp_path: Path
) -> None:
    around = context(tmp_path, **inputs(prepared))
    update = around.progress.update

    def stop_at_four(phase: str, step: int, *more: Any) -> None:
        update(phase, step, *more)
        if step == 4:
            around.stop.signal_name = "SIGTERM"

    around.progress.update = stop_at_four  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        train.run(train_settings(lora=LORA), around)
    again, _ = trained(tmp_path, prepared)
    for name in ("best/model.safetensors", "last/model.safetensors", "last-adapter/adapter_model.safetensors"):
        assert (again.partial / name).read_bytes() == (done[0].partial / name).read_bytes(), name


def test_frozen_weights_are_held_in_the_dtype_of_the_computation(prepared: dict[str, Path], tmp_path: Path) -> None:
    settings = train_settings(lora=LORA, compute_dtype="bfloat16")
    student = train.load_student(prepared["student"] / "model", settings, ALONE, CPU)
    assert {p.dtype for p in student.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert {p.dtype for p in student.parameters() if p.requires_grad} == {torch.float32}
    around, outcome = trained(tmp_path, prepared, compute_dtype="bfloat16", activations="on")
    assert losses(around)[-1] < losses(around)[0] and outcome.executed.dtype == "bfloat16"


def test_matrices_that_are_not_there_are_named() -> None:
    gpt = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(InputError, match="the student has no matrices down_proj, q_proj, v_proj: take them out"):
        add_adapters(gpt, LoraSettings.model_validate(LORA), 0)


def test_the_order_of_the_matrices_is_in_no_key() -> None:
    one, other = (
        LoraSettings.model_validate({"rank": 2, "alpha": 4.0, "targets": targets})
        for targets in (["v_proj", "q_proj"], ["q_proj", "v_proj", "q_proj"])
    )
    assert one == other and one.targets == ["q_proj", "v_proj"]
