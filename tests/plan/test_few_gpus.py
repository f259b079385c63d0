"""What the main pair takes on one GPU of 80 GB, or two: the least change that fits, and how long it takes then."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from essence.commands.options import select
from essence.commands.plan import _main_memory_lines
from essence.engines.selected_run import Options
from essence.files import GIB
from essence.plan.cells import train_settings
from essence.plan.changed_times import moves_optimizer, with_times
from essence.plan.estimate import estimate
from essence.plan.experiment import Experiment, load
from essence.plan.fit import Fit, Room, fits_of
from essence.plan.gpu_count import with_gpus
from essence.plan.stage_plan import CellPlan, make_plan
from essence.record.run_directory import RunDirectory
from essence.record.stage_key import stage_key
from essence.settings import TrainSettings
from support.proof_record import proof

ROOM, CROWDED = Room(80.0, 119.0), Room(80.0, 50.0)
MOVED = "set optimizer_placement = 'main_memory'"
OF_THE_PAIR = ", for this pair alone in [by_pair.qwen3-8b_qwen3-4b-base]"


def planned(loaded: Experiment, runs: Path, room: Room = ROOM) -> tuple[CellPlan, Fit]:
    """The cell of whole rows, and whether it fits."""
    plan = make_plan(loaded, loaded.cells()[-1:], lambda _: {}, baselines=False)
    run_directory = RunDirectory(runs)
    fits = with_times(fits_of(plan, run_directory, room), plan, run_directory)
    return plan.cells[0], next(fit for fit in fits if fit.what.startswith("training "))


def bespoke(gpus: int, **training: object) -> Experiment:
    loaded = with_gpus(load("bespoke"), gpus)
    changed = loaded.experiment.training.model_copy(update=training)
    return replace(loaded, experiment=loaded.experiment.model_copy(update={"training": changed}))


def test_one_gpu_keeps_masters_and_moments_in_main_memory(tmp_path: Path) -> None:
    """And takes the time that it is told to take, which is longer than a GPU of more memory would."""
    _, unfit = planned(bespoke(1), tmp_path)
    assert unfit.change == f"{MOVED}{OF_THE_PAIR}" and moves_optimizer(unfit)
    loaded = bespoke(1, optimizer_placement="main_memory")
    cell, fit = planned(loaded, tmp_path)
    found = estimate(cell, loaded, RunDirectory(tmp_path))
    assert fit.fits and fit.main_gib is not None and 50.0 < fit.main_gib < 0.95 * ROOM.main_gib
    assert (unfit.changed_gpu_hours, unfit.changed_step_s) == (found.training_gpu_hours, found.training_step_s)
    assert f"then about {found.training_gpu_hours:.1f} GPU hours, " in unfit.sentence()
    larger = estimate(planned(bespoke(1), tmp_path)[0], bespoke(1), RunDirectory(tmp_path))
    assert larger.training_step_s and found.training_step_s and found.training_gpu_hours
    assert larger.training_step_s + 1.0 < found.training_step_s < larger.training_step_s + 3.0


def test_where_main_memory_has_no_room_more_gpus_are_asked_for(tmp_path: Path) -> None:
    """With the hours that all of them together then take."""
    _, unfit = planned(bespoke(1), tmp_path, CROWDED)
    assert unfit.change == "use 2 GPUs (--gpus 2)" and not moves_optimizer(unfit)
    found = estimate(planned(bespoke(2), tmp_path)[0], bespoke(2), RunDirectory(tmp_path))
    assert unfit.changed_gpu_hours == found.training_gpu_hours
    _, full = planned(bespoke(1, optimizer_placement="main_memory"), tmp_path, CROWDED)
    assert not full.fits and "of main memory" in full.problem and full.loads is None


def test_two_gpus_have_room_for_all(tmp_path: Path) -> None:
    cell, fit = planned(bespoke(2), tmp_path)
    assert fit.fits and fit.change == ""
    _, small = planned(bespoke(2), tmp_path, Room(48.0, 119.0))
    assert moves_optimizer(small) and small.changed_step_s is not None
    usual = estimate(cell, bespoke(2), RunDirectory(tmp_path)).training_step_s
    assert usual is not None and usual < small.changed_step_s
    _, both = planned(bespoke(2, optimizer_placement="main_memory"), tmp_path)
    assert both.fits and both.activations and fit.activations and fit.activations.recomputed
    freed = fit.activations.recomputed_bytes - both.activations.recomputed_bytes
    assert freed > 15 * GIB and both.activations.shortened, "activations are kept in what is free now"


def test_more_gpus_are_typed_and_what_they_need_besides_is_set(tmp_path: Path) -> None:
    """A table of a pair has no number of GPUs; told so, the plan finds that the training fits."""
    loaded = with_gpus(load("pairs"), 1)
    bare = replace(loaded, experiment=loaded.experiment.model_copy(update={"by_pair": {}}))
    cell = next(cell for cell in bare.cells() if cell.pair == "qwen3-32b_qwen3-8b-base" and cell.lsp == 1.0)
    plan = make_plan(bare, [cell], lambda _: {}, baselines=False)
    unfit = fits_of(plan, RunDirectory(tmp_path), Room(80.0, 1000.0))[0]
    told = re.fullmatch(
        r"use (\d+) GPUs \(--gpus \1\), and set (.+), for this pair alone in \[(by_pair\.\S+)\]", unfit.change
    )
    assert told, unfit.change
    assert (told[1], told[2]) == ("4", "teacher_placement = 'sharded'"), "a pass of each has one row there, not two"
    lines = [word.replace(f" on {told[1]} GPUs", "") for word in re.split(", | and ", told[2])]
    file = tmp_path / "more.toml"
    file.write_text("\n".join(['extends = "pairs"', 'title = "x"', f"[{told[3]}]", *lines]), encoding="utf-8")
    changed = with_gpus(load(str(file)), int(told[1]))
    plan = make_plan(changed, [cell], lambda _: {}, baselines=False)
    assert fits_of(plan, RunDirectory(tmp_path), Room(80.0, 1000.0))[0].fits


def test_what_lies_in_main_memory_goes_back_to_gpus_that_have_room(tmp_path: Path) -> None:
    """With activations as they are had then: recomputed, where they are kept beside masters in main memory."""
    small = Room(80.0, 64.0)
    _, moved = planned(bespoke(2, optimizer_placement="main_memory"), tmp_path, small)
    assert "of main memory" in moved.problem and moved.change == f"set optimizer_placement = 'device'{OF_THE_PAIR}"
    assert moved.activations and not moved.activations.recomputed
    _, cured = planned(bespoke(2), tmp_path, small)
    assert cured.fits and cured.activations and cured.activations.recomputed
    _, offloaded = planned(bespoke(2, teacher_placement="offloaded"), tmp_path, small)
    assert offloaded.change == f"set teacher_placement = 'sharded'{OF_THE_PAIR}"
    both = bespoke(2, optimizer_placement="main_memory", teacher_placement="offloaded")
    _, unfit = planned(both, tmp_path, small)
    assert unfit.change == f"set optimizer_placement = 'device' and teacher_placement = 'sharded'{OF_THE_PAIR}"
    assert planned(bespoke(2, teacher_placement="sharded"), tmp_path, small)[1].fits


def test_what_a_proof_has_not_measured_of_main_memory_is_said(tmp_path: Path) -> None:
    """Proofs of earlier versions have not timed the update there."""
    file, runs = tmp_path / "moved.toml", tmp_path / "runs"
    text = 'extends = "bespoke"\ntitle = "x"\n[training]\noptimizer_placement = "main_memory"\n'
    file.write_text(text, encoding="utf-8")
    selection = select(Options(experiment=str(file), gpus=1, engine="docker", runs=str(runs)), baselines=False)
    memory, link = "not proved: updates in main memory at 100 GB/s of it", " and 25 GB/s between it and a GPU"
    assert _main_memory_lines(selection, []) == [memory + link]
    for day, measured, said in (
        (1, {}, [memory + link]),
        (2, {"host_bytes_per_s": 5e10}, [memory]),
        (3, {"host_bytes_per_s": 5e10, "main_memory_parameter_s": 2e-10}, []),
    ):
        name, at = f"prove_training-00000000000000a{day}", f"2026-01-0{day}T00:00:00+00:00"
        proof(runs, name, at, "elsewhere", 4e-15, devices=1, **measured)
        assert _main_memory_lines(selection, []) == said
    usual = select(Options(experiment="bespoke", engine="docker", runs=str(tmp_path / "none")), baselines=False)
    assert _main_memory_lines(usual, []) == []


def test_where_masters_lie_is_in_the_key_alone_where_they_are_moved() -> None:
    """A plan of a version without the setting, and one with its default, are of one training."""
    asked = train_settings(bespoke(1).cells()[-1], bespoke(1).experiment)
    settings = asked.model_dump(mode="json")
    before = {name: value for name, value in settings.items() if name != "optimizer_placement"}
    moved = {**settings, "optimizer_placement": "main_memory"}
    keys = [stage_key("train", one, {}, {}, "source") for one in (before, settings, moved)]
    assert keys[0] == keys[1] != keys[2] and TrainSettings.model_validate(before) == asked


@pytest.mark.parametrize("changes", [{"compute_dtype": "float32"}, {"processes": 4}])
def test_it_is_offered_where_there_are_masters_and_few_gpus(tmp_path: Path, changes: dict[str, object]) -> None:
    gpus = changes.get("processes", 1)
    assert isinstance(gpus, int)
    _, unfit = planned(bespoke(gpus, **changes), tmp_path, Room(24.0, 1000.0))
    assert not unfit.fits and not moves_optimizer(unfit)
