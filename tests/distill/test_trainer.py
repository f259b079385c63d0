"""The loop against a plain one written here, and after every kind of interruption."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from essence.distill import checkpoint
from essence.distill.batches import Batch, states_at
from essence.distill.float32_masters import Masters
from essence.distill.module import Distiller
from essence.distill.storage import TrainResult
from essence.distill.teachers import LiveTeacher
from essence.distill.trainer import DivergedError, train
from essence.progress import Progress, Stopped, StopRequest
from support.small_training import (
    FIRST_ROWS,
    PAD,
    RESOURCES,
    TRAIN,
    VALIDATION,
    VOCABULARY,
    ActAfter,
    metrics_without_time,
    model,
    run,
    settings,
)

transformers = pytest.importorskip("transformers", reason="transformers is not installed")


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def assert_same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], TrainResult]:
    student = model(0)
    result = run(tmp_path_factory.mktemp("undisturbed") / "work", student, model(1, hidden=24))
    return weights(student), result


def plain_training(student: Any, teacher: Any) -> None:
    """The same training as PAPER's formulas say it, with PyTorch's scheduler, one row at a time, left-padded."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2, weight_decay=0.05, betas=(0.95, 0.999))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=6, pct_start=0.3)
    for epoch in range(2):
        order = torch.randperm(10, generator=torch.Generator().manual_seed(7 + epoch)).tolist()
        rows = [TRAIN[index] for index in order]
        for batch in (rows[:4], rows[4:8], rows[8:]):
            optimizer.zero_grad()
            for row in batch:
                padding = -row.input_ids.size % 16
                ids = torch.tensor([PAD] * padding + row.input_ids.tolist())[None]
                mask = torch.tensor([0] * padding + [1] * row.input_ids.size)[None]
                at = torch.from_numpy(np.flatnonzero(row.supervised)) + padding
                logits = student(input_ids=ids, attention_mask=mask).logits[0]
                with torch.no_grad():
                    taught = teacher(input_ids=ids, attention_mask=mask).logits[0].softmax(-1)
                ce = torch.nn.functional.cross_entropy(logits[at - 1], ids[0, at])
                kd = -(taught[at - 1] * logits[at - 1].log_softmax(-1)).sum(-1).mean()
                (0.5 * (ce + kd) / len(batch)).backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            scheduler.step()


def test_equals_a_plain_loop(undisturbed: tuple[dict[str, torch.Tensor], TrainResult]) -> None:
    student = model(0)
    plain_training(student, model(1, hidden=24))
    for name, parameter in weights(student).items():
        torch.testing.assert_close(undisturbed[0][name], parameter, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("step", [1, 2, 3, 5])
def test_stopped_and_resumed_gives_the_same_bits(
    step: int, tmp_path: Path, undisturbed: tuple[dict[str, torch.Tensor], TrainResult]
) -> None:
    stop, work = StopRequest(), tmp_path / "work"
    progress = ActAfter(tmp_path / "progress.json", step, lambda: setattr(stop, "signal_name", "SIGTERM"))
    with pytest.raises(Stopped):
        run(work, model(0), model(1, hidden=24), stop, progress)
    student = model(9)  # its weights come from the checkpoint
    result = run(work, student, model(1, hidden=24))
    assert_same_bits(weights(student), undisturbed[0])
    assert metrics_without_time(result.metrics) == metrics_without_time(undisturbed[1].metrics)
    places = {"seconds": 0.0, "metrics": work, "best_weights": None, "last_weights": work}
    assert replace(result, **places) == replace(undisturbed[1], **places)


def test_killed_between_checkpoints_gives_the_same_bits(
    tmp_path: Path, undisturbed: tuple[dict[str, torch.Tensor], TrainResult]
) -> None:
    """Three kills: before any checkpoint, after one that then is damaged, and with a torn line in the metrics."""
    work = tmp_path / "work"

    def kill() -> None:
        raise KeyboardInterrupt

    every_step = RESOURCES.model_copy(update={"checkpoint_every_s": 0.0})
    for step, resources in ((2, RESOURCES), (4, every_step), (5, RESOURCES)):
        progress = ActAfter(tmp_path / "progress.json", step, kill)
        with pytest.raises(KeyboardInterrupt):
            run(work, model(0), model(1, hidden=24), progress=progress, resources=resources)
    damaged = max((work / "checkpoints").glob("step-*")) / "tensors-00000-of-00001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with (work / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "st')
    student = model(0)
    result = run(work, student, model(1, hidden=24))
    assert_same_bits(weights(student), undisturbed[0])
    assert metrics_without_time(result.metrics) == metrics_without_time(undisturbed[1].metrics)
    assert result.best_weights is not None
    assert undisturbed[1].best_weights is not None
    assert result.best_weights.read_bytes() == undisturbed[1].best_weights.read_bytes()


def test_best_weights_are_those_of_the_lowest_validation(
    undisturbed: tuple[dict[str, torch.Tensor], TrainResult],
) -> None:
    result = undisturbed[1]
    assert [record.step for record in result.validations] == [1, 3, 4, 6]
    best = min(result.validations, key=lambda record: record.ce)
    assert (result.best_step, result.best_validation_ce) == (best.step, best.ce)
    student, losses = model(9), []
    assert result.best_weights is not None
    checkpoint.load_weights(student, result.best_weights)
    for row in VALIDATION:
        batch = Batch.of([row], 1, torch.device("cpu"))
        losses.append(
            torch.nn.functional.cross_entropy(student.lm_head(states_at(student, batch)), batch.labels).item()
        )
    assert sum(losses) / len(losses) == pytest.approx(best.ce, rel=1e-5)


def test_only_needed_best_weights_stay(tmp_path: Path) -> None:
    every_step = RESOURCES.model_copy(update={"checkpoint_every_s": 0.0})
    run(tmp_path / "work", model(0), resources=every_step)
    states = checkpoint.states(tmp_path / "work" / "checkpoints")
    stored = {path.name for path in (tmp_path / "work").glob("best-*")}
    assert stored == {f"best-{state.best_step:08d}.safetensors" for state in states}


def test_micro_batches_change_rounding_only(tmp_path: Path) -> None:
    found = []
    for size in (1, 3, 100):
        student = model(0)
        run(tmp_path / str(size), student, resources=RESOURCES.model_copy(update={"micro_batch_rows": size}))
        found.append(weights(student))
    for other in found[1:]:
        for name, parameter in other.items():
            torch.testing.assert_close(parameter, found[0][name], rtol=1e-3, atol=2e-5)


def test_packing_changes_rounding_only(tmp_path: Path) -> None:
    """As `test_micro_batches_change_rounding_only`, with a teacher, several rows a sequence, and a row too long."""
    found, counts = [], []
    for packing, tokens in ((False, 1000), (True, 1000), (True, 30)):
        student = model(0)
        resources = RESOURCES.model_copy(update={"micro_batch_tokens": tokens})
        result = run(
            tmp_path / f"{packing}{tokens}", student, model(1, hidden=24), resources=resources, packing=packing
        )
        found.append(weights(student))
        counts.append((result.packed, result.passes, result.tokens, result.positions >= result.tokens))
    for other in found[1:]:
        for name, parameter in other.items():
            torch.testing.assert_close(parameter, found[0][name], rtol=1e-3, atol=2e-5)
    tokens = 2 * sum(row.input_ids.size for row in TRAIN)
    assert counts[0][:3] == (False, 2 * 5, tokens) and counts[1][:3] == (True, 2 * 3, tokens)
    assert counts[2][1] > counts[1][1] and all(count[3] for count in counts)


def test_activation_checkpointing_changes_no_bit(tmp_path: Path) -> None:
    plain, saving = model(0), model(0)
    run(tmp_path / "plain", plain)
    run(tmp_path / "saving", saving, recomputed=True)
    assert_same_bits(weights(plain), weights(saving))


def test_right_padding_without_a_mask_is_exact() -> None:
    student = model(0).double()
    together = states_at(student, Batch.of(TRAIN[:3], 16, torch.device("cpu")))
    alone = torch.cat([states_at(student, Batch.of([row], 1, torch.device("cpu"))) for row in TRAIN[:3]])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-14)


def test_teacher_and_master_weights(tmp_path: Path) -> None:
    student, teacher = model(0), model(1, hidden=24).bfloat16()
    before = weights(teacher)
    result = run(tmp_path / "work", student, teacher, compute_dtype="bfloat16")
    assert_same_bits(before, weights(teacher))
    assert {parameter.dtype for parameter in student.parameters()} == {torch.bfloat16}
    masters = load_file(result.last_weights)
    for name, parameter in student.named_parameters():
        assert masters[name].dtype == torch.float32 and torch.equal(masters[name].bfloat16(), parameter)
    assert np.isfinite(result.last_loss)


class Products(TorchDispatchMode):
    """Notes the dtypes of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[torch.dtype] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        if function in (torch.ops.aten.mm.default, torch.ops.aten.mm.out):
            self.dtypes.append(found.dtype)
        return found


@pytest.mark.parametrize("lowered", [True, False])
def test_what_is_float32_where_the_computation_is_bfloat16(lowered: bool) -> None:
    """Loss and sums of gradients; beside float32 weights (adapters, under autocast) residual stream and norms too."""
    student, seen = model(0), dict[str, torch.dtype]()
    masters = Masters(student) if lowered else None
    for name, module in student.model.named_modules():
        if name.endswith(("norm", "proj")) or name.removeprefix("layers.").isdigit():
            module.register_forward_hook(lambda _module, _read, made, name=name: seen.update({name: made.dtype}))
    teacher = LiveTeacher(model(1, hidden=24).bfloat16(), torch.bfloat16)
    distiller = Distiller(student, settings().objective, RESOURCES.loss, torch.bfloat16, autocast=not lowered)
    batch = Batch.of(TRAIN[:3], 16, torch.device("cpu"))
    taught = teacher.states(batch)
    with Products() as products:
        losses = distiller(batch, torch.full((len(batch.labels),), 0.1), taught, teacher.head)
        losses[0].backward()
    if masters:
        masters.add_up()
        masters.take_gradients()
    projections = {dtype for name, dtype in seen.items() if name.endswith("proj")}
    assert projections == {torch.bfloat16} and len(seen) == 2 * (1 + 2 + 2 + 7) + 1
    between = {dtype for name, dtype in seen.items() if not name.endswith("proj")}
    assert between == {torch.bfloat16 if lowered else torch.float32}
    assert set(products.dtypes) == {torch.bfloat16} and taught.dtype == teacher.head.dtype == torch.bfloat16
    assert {loss.dtype for loss in losses} == {torch.float32}
    summed = masters.parameters if masters else list(student.parameters())
    assert {parameter.grad.dtype for parameter in summed if parameter.grad is not None} == {torch.float32}
    assert all(parameter.grad is not None for parameter in summed)


def test_larger_teacher_vocabulary(tmp_path: Path) -> None:
    assert np.isfinite(run(tmp_path / "work", model(0), model(1, vocabulary=VOCABULARY + 9)).last_loss)


def test_without_validation_rows_there_is_no_best(tmp_path: Path) -> None:
    result = run(tmp_path / "work", model(0), validation=[])
    assert (result.best_step, result.best_weights, result.validations) == (None, None, [])
    assert result.steps == 6
    assert result.tokens == 2 * sum(row.input_ids.size for row in TRAIN)


def test_fine_tuning_lowers_the_loss_and_writes_no_kd(tmp_path: Path) -> None:
    result = run(tmp_path / "work", model(0))
    steps = [record for record in metrics_without_time(result.metrics) if record["kind"] == "step"]
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert all(record["kd"] is None and record["loss"] == record["ce"] for record in steps)
    assert set(steps[0]) == {"kind", "step", "lr", "beta1", "loss", "ce", "kd", "gradient_norm", "tokens"}


def test_diverged_training_names_the_rows(tmp_path: Path) -> None:
    student = model(0)
    with torch.no_grad():
        student.model.norm.weight.fill_(float("inf"))
    with pytest.raises(DivergedError, match=rf"step 1 of 6.*{FIRST_ROWS}"):
        run(tmp_path / "work", student)


def test_kd_needs_a_teacher(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="teacher"):
        train(model(0), None, TRAIN, [], settings(), RESOURCES, tmp_path, Progress(tmp_path / "p.json"), StopRequest())
