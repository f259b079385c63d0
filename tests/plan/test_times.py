"""What trainings and evaluations take on paper: every part is there, and goes with what it should go with."""

import json
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from essence.data.row_records import RowTokens
from essence.plan.cells import resources_of, train_settings
from essence.plan.estimate import estimate, trained_of
from essence.plan.experiment import Experiment, load
from essence.plan.fit import fits_of, planned_room
from essence.plan.measured_lengths import measured_lengths
from essence.plan.newest_proof import TRAINING, newest_proof, proof_of, proofs, speeds_for
from essence.plan.schema import ModelSection
from essence.plan.stage_plan import CellPlan, make_plan
from essence.plan.times import (
    Evaluated,
    Lengths,
    Trained,
    evaluation_seconds,
    longest_rank,
    step_work,
    training_time,
    validation_passes,
    validation_work,
)
from essence.record.plan_record import EvaluationEntry
from essence.record.run_directory import RunDirectory
from essence.settings import LoraSettings
from essence.sizes.architecture import adapter_parameters
from essence.sizes.speeds import ASSUMED
from support.paper_sizes import QWEN3
from support.proof_record import proof
from support.synthetic_run import manifest


def bespoke(runs: Path) -> tuple[Experiment, CellPlan, Trained]:
    """The paper's headline cell at LSP 1.0."""
    loaded = load("bespoke")
    plan = make_plan(loaded, loaded.cells(), lambda _: {}, baselines=False).cells[-1]
    found = trained_of(plan, loaded, RunDirectory(runs), train_settings(plan.cell, loaded.experiment))
    assert found
    return loaded, plan, found


def test_a_training_is_steps_validations_saving_and_starting(tmp_path: Path) -> None:
    """Two epochs of 8,000 rows in steps of four; half the tokens take more than half the time."""
    *_, whole = bespoke(tmp_path)
    time = training_time(whole, ASSUMED)
    assert time.steps == 4000 and time.seconds == time.steps_s + time.validation_s + time.saving_s + time.start_s
    assert min(time.steps_s, time.validation_s, time.saving_s, time.start_s) > 10.0
    half = training_time(replace(whole, kept=whole.kept // 2), ASSUMED)
    assert 0.5 < half.step_s / time.step_s < 0.75 and half.saving_s < time.saving_s
    half = {
        "checkpoint_bytes_per_s": ASSUMED.checkpoint_bytes_per_s / 2,
        "save_bytes_per_s": ASSUMED.save_bytes_per_s / 2,
    }
    slower = training_time(whole, replace(ASSUMED, **half))
    assert slower.saving_s == pytest.approx(2 * time.saving_s) and slower.step_s == time.step_s


def test_checkpoints_are_as_many_as_are_asked_for_and_one_a_step_at_most(tmp_path: Path) -> None:
    """0 asks for one after every step."""
    *_, whole = bespoke(tmp_path)

    def saving_s(every_s: float) -> float:
        often = whole.resources.model_copy(update={"checkpoint_every_s": every_s})
        return training_time(replace(whole, resources=often), ASSUMED).saving_s

    each_step = saving_s(0.0)
    assert each_step == saving_s(1e-6) > 100 * saving_s(1800.0) > 100 * saving_s(1e9) > 0.0
    written = 12 * whole.trained / ASSUMED.checkpoint_bytes_per_s
    assert each_step - saving_s(1e9) == pytest.approx(4000 * written)


def test_what_crosses_between_ranks_goes_with_the_backend(tmp_path: Path) -> None:
    *_, whole = bespoke(tmp_path)
    student, teacher = QWEN3["4b"].parameters, QWEN3["8b"].parameters

    def sent(**changes: object) -> float:
        changed = replace(whole, settings=whole.settings.model_copy(update=changes))
        again = step_work(replace(changed, recomputed=True)).link_bytes
        assert again == step_work(changed).link_bytes + (student if changed.settings.parallel == "zero3" else 0)
        return step_work(changed).link_bytes

    assert not whole.recomputed
    assert sent() == 2 * student and sent(reduce_dtype="float32") == 4 * student
    assert sent(parallel="single", processes=1) == 0.0
    assert sent(compute_dtype="float32") == 4 * student, "reduce_dtype is of weights in bfloat16 alone"
    adapters = LoraSettings(rank=8, alpha=16.0, targets=["q_proj"])
    assert sent(lora=adapters) == 4 * adapter_parameters(QWEN3["4b"], adapters)
    moved = {"optimizer_placement": "main_memory"}
    assert sent(**moved) == sent() and sent(parallel="ddp", **moved) == sent(parallel="ddp") + 2 * student / 2
    gathered = sent(parallel="zero3", teacher_placement="sharded")
    assert gathered == 2 * student + 2 * student * 2 / 2 + 2 * teacher / 2


def test_validation_rows_are_packed_as_a_training_packs_them(tmp_path: Path) -> None:
    """Quarters of 250 rows of 1,024 tokens on four ranks: 63 rows of the fullest rank, four to a pass, four times."""
    *_, whole = bespoke(tmp_path)

    def passes(ranks: int, packing: bool, rows: int = 1000) -> int:
        chosen = {"rows": whole.settings.rows.model_copy(update={"validation_rows": rows})}
        settings = whole.settings.model_copy(update={**chosen, "checkpoint_ranks": ranks, "packing": packing})
        held = whole.resources.model_copy(update={"micro_batch_tokens": 4096, "micro_batch_rows": 1})
        return validation_passes(replace(whole, settings=settings, resources=held, validated=1024))

    assert whole.settings.processes == 4
    assert (passes(4, True), passes(1, True)) == (4 * 16, 63)
    assert (passes(4, False), passes(1, False)) == (4 * 63, 250)
    assert (passes(4, True, rows=7), passes(4, True, rows=3)) == (4, 3)
    time = training_time(whole, ASSUMED)
    slow = training_time(whole, replace(ASSUMED, layer_s=ASSUMED.layer_s + 3.0))
    validations = whole.settings.optimizer.epochs * whole.settings.validations_per_epoch
    expected = validations * whole.student.layers * validation_passes(whole)
    assert slow.validation_s - time.validation_s == pytest.approx(expected)


def test_a_validation_under_zero3_gathers_each_weight_once_a_pass(tmp_path: Path) -> None:
    *_, whole = bespoke(tmp_path)

    def of(**changes: object) -> Trained:
        return replace(whole, settings=whole.settings.model_copy(update=changes))

    assert validation_work(whole).link_bytes == validation_work(of(parallel="single", processes=1)).link_bytes == 0.0
    sharded = of(parallel="zero3", teacher_placement="sharded")
    work, passes = validation_work(sharded), validation_passes(sharded)
    assert work.link_bytes == 2 * QWEN3["4b"].parameters * passes / 2 and passes > 1
    validations = whole.settings.optimizer.epochs * whole.settings.validations_per_epoch
    as_they_are = of(compile_layers=False)  # as layers in shares run
    longer = training_time(sharded, ASSUMED).validation_s - training_time(as_they_are, ASSUMED).validation_s
    assert longer == pytest.approx(validations * work.link_bytes / ASSUMED.link_bytes_per_s)


def test_what_one_model_s_evaluations_change_counts_in_the_estimate(tmp_path: Path) -> None:
    """Two GPUs a copy for the student alone: its hours are those of a run where every copy has two."""

    def hours(**changes: object) -> tuple[float | None, float | None]:
        loaded = load("bespoke")
        loaded = replace(loaded, experiment=loaded.experiment.model_copy(update=changes))
        plan = make_plan(loaded, loaded.cells(), lambda _: {}, baselines=False).cells[-1]
        found = estimate(plan, loaded, RunDirectory(tmp_path))
        return found.evaluation_gpu_hours, found.evaluation_cap_gpu_hours

    wide = load("bespoke").experiment.resources.model_copy(update={"tensor_parallel": 2})
    own = hours(by_model={"qwen3-4b-base": ModelSection(tensor_parallel=2)})
    assert own == hours(resources=wide) != hours()


def test_a_stored_teacher_takes_its_layers_out_of_a_step(tmp_path: Path) -> None:
    *_, live = bespoke(tmp_path)
    cached = replace(live, settings=live.settings.model_copy(update={"teacher": "cached"}))
    assert step_work(live).layer_passes == 72 and step_work(cached).layer_passes == 36
    assert step_work(cached).flops < step_work(live).flops


def test_the_longest_of_the_ranks_sets_the_step() -> None:
    """Equal rows share out evenly; of rows that spread, four ranks wait for the longest."""
    assert longest_rank(None, 4096, 4, 1) == 1.0
    equal = RowTokens(smallest=100, largest=100, quantiles={}, bin_tokens=100, histogram=[0, 50])
    assert longest_rank(equal, 4096, 4, 4) == pytest.approx(1.0)
    assert 1.2 < longest_rank(None, 4096, 4, 4) < 1.6
    assert longest_rank(None, 4096, 32, 4) < 1.1
    spread = RowTokens(smallest=50, largest=9950, quantiles={}, bin_tokens=100, histogram=[10] * 100)
    assert 1.3 < longest_rank(spread, 4096, 4, 4) < 1.8
    assert longest_rank(spread, 50, 4, 4) == 1.0


def test_an_evaluation_costs_with_the_square_of_the_lengths() -> None:
    """The same mean, half of the completions at the cap: up to twice the context; and the decoder's start is paid."""
    loaded = load("bespoke")
    resources = resources_of("generate", loaded.experiment, "qwen3-4b-base")
    of = Evaluated(QWEN3["4b"], 30 * 64, 200, 256, resources)
    constant = evaluation_seconds(of, Lengths.all_of(12000), ASSUMED)
    spread = evaluation_seconds(of, Lengths(12000, 2 * 12000**2), ASSUMED)
    at_cap = evaluation_seconds(of, Lengths.all_of(32768), ASSUMED)
    start = ASSUMED.decoder_start_s
    assert 1.8 < (spread - start) / (constant - start) < 2.2 and 6.0 < (at_cap - start) / (constant - start) < 9.0
    assert evaluation_seconds(of, Lengths.all_of(1), ASSUMED) == pytest.approx(start, rel=0.05)
    alone = evaluation_seconds(
        replace(of, resources=resources.model_copy(update={"gpus": 1})), Lengths.all_of(12000), ASSUMED
    )
    assert (alone - start) / (constant - start) == pytest.approx(4.0, rel=0.1)


def finished(folder: Path, grade: str, problems: list[dict[str, object]]) -> None:
    place = RunDirectory(folder).stage(grade).manifest
    place.parent.mkdir(parents=True)
    results = {
        "benchmark": "aime25", "metric": "aime25 avg@4", "accuracy": 0.5, "standard_error": None, "interval": [0, 1],
        "confidence": 0.95, "method": "x", "per_problem": problems, "finish_reasons": {}, "mean_completion_tokens": 1.0,
    }  # fmt: skip
    place.write_text(json.dumps(manifest("ab" * 32, "grade", "grade", {}, results, {}, {})), encoding="utf-8")


def test_lengths_are_those_of_finished_evaluations(tmp_path: Path) -> None:
    """Two completions of 100 tokens, and four of which two reached the cap of 1,000 and two have 50."""
    problems: list[dict[str, object]] = [
        {"problem": "a", "correct": 1, "samples": 2, "tokens": 200, "stopped": 2, "at_cap": 0},
        {"problem": "b", "correct": 0, "samples": 4, "tokens": 2100, "stopped": 2, "at_cap": 2},
        {"problem": "c", "correct": 0, "samples": 4},
    ]
    finished(tmp_path, "grade-0000000000000000", problems)
    names = [f"grade-{number:016x}" for number in (0, 1)]
    entries = [
        EvaluationEntry(benchmark="aime25", samples=4, checkpoint="best", generate="generate-0", grade=name)
        for name in names
    ]
    found = measured_lengths(entries, RunDirectory(tmp_path), 1000)
    assert found and found.mean == pytest.approx(2300 / 6)
    assert found.mean_square == pytest.approx((2 * 100**2 + 2 * 1000**2 + 2 * 50**2) / 6)
    assert measured_lengths(entries[1:], RunDirectory(tmp_path), 1000) is None


def test_the_plan_takes_lengths_that_were_measured(tmp_path: Path) -> None:
    loaded, plan, _ = bespoke(tmp_path)
    before = estimate(plan, loaded, RunDirectory(tmp_path))
    assert before.completion_tokens == 12000 and not before.completions_measured
    line = {"problem": "a", "correct": 1, "samples": 2, "tokens": 4000, "stopped": 2, "at_cap": 0}
    finished(tmp_path, plan.evaluations[0].grade, [line])
    after = estimate(plan, loaded, RunDirectory(tmp_path))
    assert after.completion_tokens == 2000 and after.completions_measured
    assert before.evaluation_gpu_hours and after.evaluation_gpu_hours and before.evaluation_cap_gpu_hours
    assert after.evaluation_gpu_hours < before.evaluation_gpu_hours / 4 < before.evaluation_cap_gpu_hours / 20
    elsewhere = estimate(plan, loaded, RunDirectory(tmp_path / "other"), Lengths.all_of(500.0))
    assert elsewhere.completion_tokens == 500.0 and elsewhere.completions_measured


def test_the_newest_proof_of_this_machine_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "here")
    assert newest_proof(RunDirectory(tmp_path), gpus=0) is None and speeds_for(RunDirectory(tmp_path), 0) == ASSUMED
    proof(tmp_path, "prove_training-00000000000000a1", "2026-01-02T00:00:00+00:00", "here", 2e-12)
    proof(tmp_path, "prove_training-00000000000000a2", "2026-01-01T00:00:00+00:00", "here", 1e-12)
    proof(tmp_path, "prove_training-00000000000000a3", "2026-01-03T00:00:00+00:00", "elsewhere", 3e-12)
    proof(
        tmp_path,
        "prove_training-00000000000000a4",
        "2026-01-01T00:00:00+00:00",
        "elsewhere",
        4e-15,
        devices=4,
        host_bytes_per_s=5e10,
        main_memory_parameter_s=2e-10,
    )
    found = newest_proof(RunDirectory(tmp_path), gpus=0)
    assert found and found.date == "2026-01-02" and found.sentence() == "proved on 2026-01-02, A device (fit error 1%)"
    speeds = speeds_for(RunDirectory(tmp_path), gpus=0)
    disk = {"checkpoint_bytes_per_s": 5e8, "save_bytes_per_s": 1e9, "disk_read_bytes_per_s": 1e9}
    assert speeds == replace(ASSUMED, flop_s=2e-12, layer_s=0.0, parameter_s=0.0, **disk)
    on_gpus = speeds_for(RunDirectory(tmp_path), gpus=4)
    assert (on_gpus.flop_s, on_gpus.host_link_bytes_per_s, on_gpus.main_memory_parameter_s) == (4e-15, 5e10, 2e-10)
    # Of an earlier version, which timed copies to memory that is not pinned, and no update.
    earlier, date = "prove_training-00000000000000a5", "2026-01-09T00:00:00+00:00"
    proof(tmp_path / "earlier", earlier, date, "here", 5e-15, devices=4, host_bytes_per_s=3e9)
    assert speeds_for(RunDirectory(tmp_path / "earlier"), 4).host_link_bytes_per_s == ASSUMED.host_link_bytes_per_s
    damaged = RunDirectory(tmp_path).proofs.stage("prove_training-00000000000000a1").manifest
    damaged.write_text(damaged.read_text(encoding="utf-8").replace("2e-12", "1e-13"), encoding="utf-8")
    assert len(proofs(RunDirectory(tmp_path))) == 3 and speeds_for(RunDirectory(tmp_path), 0).flop_s == 1e-12


def test_a_proof_on_a_part_of_a_gpu_counts_for_such_parts_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch names the part, the driver the card."""
    card, part = "NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-40GB MIG 1g.5gb"
    monkeypatch.setattr("essence.plan.newest_proof.query_gpus", lambda: [SimpleNamespace(name=card)])
    for number, (device, flop_s) in enumerate(((card, 4e-15), (part, 3e-14))):
        key = f"prove_training-00000000000000c{number}"
        proof(tmp_path, key, "2026-01-01T00:00:00+00:00", "x", flop_s, 1, device=device)
    for visible, expected in (("", 4e-15), ("0", 4e-15), ("MIG-6ac0e6e9", 3e-14)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert speeds_for(RunDirectory(tmp_path), 1).flop_s == expected
    ran = newest_proof(RunDirectory(tmp_path), 1)
    assert ran and ran.training.results.device == part
    hardware = ran.training.hardware.model_copy(update={"gpus": [SimpleNamespace(name=card)]})
    both = proof_of(RunDirectory(tmp_path), hardware)
    assert both and both.training.results.device == card, "a record names the card alone"
    shutil.rmtree(RunDirectory(tmp_path).proofs.stage("prove_training-00000000000000c0").path)
    of_a_part = proof_of(RunDirectory(tmp_path), hardware)
    assert of_a_part and of_a_part.training.results.device == part
    monkeypatch.setattr("essence.plan.newest_proof.query_gpus", list)
    assert speeds_for(RunDirectory(tmp_path), 1) != ASSUMED, (
        "a machine without GPUs, as that where a queue is looked at"
    )


def test_of_two_proofs_the_one_with_as_many_gpus_counts_and_what_differs_is_said(tmp_path: Path) -> None:
    """An older one of four GPUs for stages of four, a newer one of one GPU for stages of one and of two."""
    for number, (devices, date, flop_s) in enumerate(((4, "2026-01-01", 4e-15), (1, "2026-01-05", 5e-15))):
        proof(tmp_path, f"prove_training-00000000000000b{number}", f"{date}T00:00:00+00:00", "x", flop_s, devices)
    runs = RunDirectory(tmp_path)
    assert [speeds_for(runs, gpus).flop_s for gpus in (4, 1, 2)] == [4e-15, 5e-15, 5e-15]
    found = newest_proof(runs, 2)
    assert found and "; with 1 GPU, and a stage takes 2" in found.sentence(2)
    locked = found.training.software.lock_sha256
    assert locked and "other packages" in found.sentence(1, "0" * 64) and "other" not in found.sentence(1, locked)


def test_what_was_measured_beside_steps_counts_in_the_plan(tmp_path: Path) -> None:
    """Checkpoints and validations; and what crosses between ranks, of which nearly all may be hidden, never all."""
    link = {
        "processes": 2,
        "backend": "nccl",
        "bytes": 8,
        "all_reduce_bytes_per_s": 1e11,
        "all_gather_bytes_per_s": 1e11,
    }
    validation = {"rows": 1, "tokens": 9, "seconds": 3.0, "fitted_s": 2.0}
    expected = {None: 1e11, 2e-12: 5e11, 0.0: 1e13}
    for number, (exposed, bytes_per_s) in enumerate(expected.items()):
        runs = tmp_path / str(number)
        more = {"link": {**link, "exposed_byte_s": exposed}, "validation": validation, "checkpoint_bytes_per_s": 7e8}
        proof(runs, "prove_training-00000000000000c1", "2026-01-01T00:00:00+00:00", "x", 1e-15, 2, **more)
        found = speeds_for(RunDirectory(runs), 2)
        assert found.link_bytes_per_s == pytest.approx(bytes_per_s)
        assert (found.validation_factor, found.checkpoint_bytes_per_s) == (1.5, 7e8)


def test_a_proof_that_goes_while_it_is_looked_for_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later proof takes the place of an earlier one between the listing of the folder and the look at the file."""
    proof(tmp_path, "prove_training-00000000000000a1", "2026-01-02T00:00:00+00:00", "here", 2e-12)
    listed = list(RunDirectory(tmp_path).proofs.stages.glob(TRAINING))
    listed[0].unlink()
    monkeypatch.setattr(Path, "glob", lambda _, pattern: iter(listed if pattern == TRAINING else []))
    assert proofs(RunDirectory(tmp_path)) == []


def test_the_paper_s_cell_takes_what_was_reckoned(tmp_path: Path) -> None:
    """GPU hours of steps at LSP 0.1, 0.5 and 1.0: a fixed part that no truncation saves."""
    loaded = load("bespoke")
    plans = make_plan(loaded, loaded.cells(), lambda _: {}, baselines=False).cells
    hours = {plan.cell.lsp: estimate(plan, loaded, RunDirectory(tmp_path)) for plan in plans}
    steps = [float(hours[lsp].training_steps_gpu_hours or np.nan) for lsp in (0.1, 0.5, 1.0)]
    assert steps[0] > 0.2 * steps[2] and 0.5 < steps[1] / steps[2] < 0.7
    assert all(
        float(hours[lsp].training_gpu_hours or np.nan) > part for lsp, part in zip((0.1, 0.5, 1.0), steps, strict=True)
    )


def test_memory_that_was_measured_above_the_rule_is_needed(tmp_path: Path) -> None:
    """On a GPU that held half as much again as the formula says; one that held less changes nothing."""
    loaded = load("bespoke")
    plan = make_plan(loaded, loaded.cells(), lambda _: {}, baselines=False)
    point = {"rows": 1, "tokens": 9, "passes": 1, "flops": 1.0, "seconds": 1.0, "fitted_s": 1.0, "assumed_s": 1.0}
    needed = []
    for number, peak in enumerate((None, 50, 150)):
        runs = tmp_path / str(number)
        steps = [{**point, "peak_bytes": peak, "rule_bytes": 100}]
        proof(runs, "prove_training-00000000000000a1", "2026-01-01T00:00:00+00:00", "x", 1e-15, devices=4, steps=steps)
        needed.append(fits_of(plan, RunDirectory(runs), planned_room(loaded))[0])
    assert needed[0] == needed[1] and needed[0].gpu_gib and needed[2].gpu_gib
    assert needed[2].gpu_gib == pytest.approx(1.5 * needed[0].gpu_gib)
