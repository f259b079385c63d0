"""Cells of a student that learns from its own words: planned, keyed, estimated, and refused in one sentence."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from essence.data.selection import SectionBounds
from essence.errors import ExperimentError
from essence.plan.cells import resources_of, train_settings
from essence.plan.changed_times import changed_experiment, with_times
from essence.plan.estimate import estimate
from essence.plan.experiment import load
from essence.plan.fit import fits_of, planned_room
from essence.plan.rollout_time import rollouts_of
from essence.plan.stage_plan import Plan, make_plan
from essence.record.run_directory import RunDirectory
from essence.record.stage_key import stage_key
from essence.sizes.architecture import Architecture, forward_flops
from essence.sizes.memory import BYTES, load_of
from essence.sizes.rollout_sizes import RolloutLoad, rollout_bytes, rollout_flops
from essence.sizes.speeds import ASSUMED, Speeds, cache_bytes
from support.paper_sizes import QWEN3
from support.planned_sources import environment

ASKED = 'lsp = [1.0]\nspan = ["rollout-32"]'
TAUGHT = '[training]\nkd_weight = 1.0\ndivergence = "reverse_kl"\npacking = false\n'


def experiment(folder: Path, matrix: str = ASKED, more: str = TAUGHT, axes: str = "") -> str:
    file = folder / "mine.toml"
    file.write_text(
        'extends = "tiny"\ntitle = "arms"\n[axes]\ndataset = ["tiny"]\npair = ["tiny-teacher_tiny-student"]\n'
        + (axes or 'protocol = ["corrected"]\nseed = [1]\nsections = ["cot+a"]\n')
        + f"[[matrix]]\n{matrix}\n{more}",
        encoding="utf-8",
    )
    return str(file)


def planned(file: str) -> Plan:
    loaded = load(file)
    return make_plan(loaded, loaded.cells(), environment, baselines=False)


def trainings(plan: Plan) -> dict[str, Any]:
    return {cell.cell.name: plan.stages[cell.stages["train"]] for cell in plan.cells}


def test_rollouts_are_settings_of_their_own_cells_alone(tmp_path: Path) -> None:
    plan = planned(experiment(tmp_path, 'lsp = [1.0]\nspan = ["rollout-32", "rollout-64", "first-32", "left"]'))
    found = trainings(plan)
    assert len({stage.key for stage in found.values()}) == 4
    for name, stage in found.items():
        assert (stage.settings.rollouts is not None) == ("rollout" in name)
        assert stage.settings.view.draw_seed == (1 if "rollout" in name else 0)
    assert [name.split("/")[2] for name in found] == ["rollout-32", "rollout-64", "first-32", "lsp-1.00"]


def test_what_says_how_a_student_speaks_is_in_the_key_of_rollouts_alone(tmp_path: Path) -> None:
    matrix = 'lsp = [1.0]\nspan = ["rollout-32", "left"]'
    one = trainings(planned(experiment(tmp_path, matrix)))
    for changed in ("every_steps = 4", "temperature = 0.5"):
        other = trainings(planned(experiment(tmp_path, matrix, f"{TAUGHT}[training.rollouts]\n{changed}\n")))
        assert {name for name in one if one[name].key != other[name].key} == {name for name in one if "rollout" in name}


def test_a_training_of_earlier_versions_keeps_its_key() -> None:
    settings = {"view": {"span": "left", "draw_seed": 0}, "rollouts": None, "seed": 1}
    earlier = {"view": {"span": "left"}, "seed": 1}
    assert stage_key("train", settings, {}, {}, "") == stage_key("train", earlier, {}, {}, "")
    rule = {"every_steps": 1, "temperature": 1.0}
    assert stage_key("train", {**settings, "rollouts": rule}, {}, {}, "") != stage_key("train", earlier, {}, {}, "")


def test_seeds_of_rollouts_are_trainings_that_differ(tmp_path: Path) -> None:
    axes = 'protocol = ["corrected"]\nseed = [1, 2]\nsections = ["cot+a"]\n'
    found = trainings(planned(experiment(tmp_path, axes=axes, more=TAUGHT + "[data.tiny]\nsplit_seed = 42\n")))
    assert len({stage.key for stage in found.values()}) == 2


def with_setting(line: str) -> str:
    key = line.split(" = ")[0]
    kept = [one for one in TAUGHT.splitlines() if not one.startswith(key)]
    return "\n".join([*kept, line]) + "\n"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("kd_weight = 0.5", "kd_weight = 0.5 in [training]: cross-entropy on the student's own words"),
        ('divergence = "forward_kl"', "set divergence = 'reverse_kl'"),
        ('teacher = "cached"', "nothing stored knows what the student will say"),
        ("packing = true", "set packing = false"),
        (
            'parallel = "ddp"\nprocesses = 2',
            "'ddp' on 2 processes in [training]: rollouts are drawn by the one process",
        ),
        ("batch_tokens = 512", "not known before the student has spoken"),
    ],
)
def test_trainings_that_cannot_read_rollouts_are_one_sentence(tmp_path: Path, line: str, sentence: str) -> None:
    file = experiment(tmp_path, more=with_setting(line))
    with pytest.raises(ExperimentError) as caught:
        planned(file)
    said = str(caught.value)
    assert sentence in said and "span 'rollout-32'" in said and file in said and "\n" not in said
    planned(experiment(tmp_path, 'lsp = [1.0]\nspan = ["first-32"]', with_setting(line)))  # of no other span


def test_a_rollout_longer_than_any_row_is_one_sentence(tmp_path: Path) -> None:
    limit = load("tiny").experiment.data["tiny"].max_row_tokens
    planned(experiment(tmp_path, f'lsp = [1.0]\nspan = ["rollout-{limit}"]'))
    with pytest.raises(ExperimentError, match=rf"'rollout-{limit + 1}' is longer than .* use rollout-{limit} or"):
        planned(experiment(tmp_path, f'lsp = [1.0]\nspan = ["rollout-{limit + 1}"]'))


@pytest.mark.parametrize(
    ("matrix", "axes", "sentence"),
    [
        (ASKED, 'protocol = ["corrected"]\nseed = [1]\n', "has sections 'p+cot+a', but span 'rollout-32'"),
        (ASKED, 'protocol = ["released"]\nseed = [1]\nsections = ["cot+a"]\n', "is of protocol 'released'"),
        (f"{ASKED}\ntoken_budget = [9000]", "", "token_budget = 9000 chooses rows by their tokens"),
        ('lsp = [0.5]\nspan = ["rollout-32"]', "", "span 'rollout-32' takes no proportion of a row, so lsp = 0.5"),
        ('lsp = [1.0]\nspan = ["rollout-0"]', "", "'rollout-k' with a number of tokens"),
        ('lsp = [1.0]\nspan = ["rollout-9999999999"]', "", "'rollout-k' with a number of tokens"),
    ],
)
def test_axes_that_contradict_rollouts_are_one_sentence(tmp_path: Path, matrix: str, axes: str, sentence: str) -> None:
    file = experiment(tmp_path, matrix, axes=axes)
    with pytest.raises(ExperimentError) as caught:
        load(file).cells()
    assert sentence in str(caught.value) and file in str(caught.value) and "\n" not in str(caught.value)


def test_flops_of_a_rollout_are_those_of_its_tokens_read_once() -> None:
    model = QWEN3["4b"]
    prefix = rollout_flops(model, 200, 1)
    assert prefix == forward_flops(model, 200) - 2 * model.head_parameters * 199
    assert rollout_flops(model, 200, 0) == 0
    # Token by token: each reads the matrices once, and attends to what stands before it and to itself.
    counted = prefix + sum(
        2 * (model.linear_parameters + model.head_parameters)
        + 2 * ((200 + place) ** 2 - (199 + place) ** 2) * model.attention_width * model.layers
        for place in range(1, 50)
    )
    assert rollout_flops(model, 200, 50) == counted


def test_the_plan_counts_rollouts_and_says_what_they_take(tmp_path: Path) -> None:
    loaded = load("on-policy")
    plan = make_plan(loaded, loaded.cells(), environment, baselines=False)
    directory = RunDirectory(tmp_path / "runs")
    costs = {cell.cell.span: estimate(cell, loaded, directory) for cell in plan.cells if cell.cell.seed == 1}
    short, full, rows = costs["rollout-128"], costs["rollout-4096"], costs["first-128"]
    assert rows.rollout_flops is None and rows.rollout_gpu_hours is None
    assert short.rollout_flops and full.rollout_flops and short.training_flops and full.training_flops
    assert short.rollout_flops == 2000 * rollout_flops(QWEN3["4b"], 200, 128) < short.training_flops
    assert short.rollout_gpu_hours and full.rollout_gpu_hours and full.training_gpu_hours
    assert full.rollout_gpu_hours == pytest.approx(32 * short.rollout_gpu_hours, rel=0.5)
    assert full.rollout_gpu_hours < full.training_gpu_hours
    fits = fits_of(plan, directory, planned_room(loaded))
    assert all(fit.fits for fit in fits)


def test_hours_of_rollouts_are_those_of_the_model_of_time() -> None:
    loaded, model = load("on-policy"), QWEN3["4b"]
    cell = next(cell for cell in loaded.cells() if cell.span == "rollout-128")
    settings, row = train_settings(cell, loaded.experiment), SectionBounds.of(4000, 200, 3999)

    def seconds(speeds: Speeds) -> float:
        found = rollouts_of(settings, model, row, 2000, speeds)
        assert found is not None
        return found.seconds

    layers_s = ASSUMED.layer_s * model.layers
    prompts_s = ASSUMED.flop_s * 32 * rollout_flops(model, 200, 1) + layers_s
    assert seconds(ASSUMED) == pytest.approx(2000 / 32 * (prompts_s + 127 * layers_s))  # 32 rows are drawn together
    slow = replace(ASSUMED, weight_s=1e-10)
    cached = cache_bytes(model, 32 * (200 + 128 / 2))
    token_s = 1e-10 * model.parameters + 32 * slow.sequence_s + slow.cache_byte_s * cached
    assert token_s > layers_s
    assert seconds(slow) == pytest.approx(2000 / 32 * (prompts_s + 127 * token_s))


def test_memory_of_rollouts_is_in_the_estimate_where_it_is_the_most(tmp_path: Path) -> None:
    loaded = load("on-policy")
    crowded = loaded.experiment.training.rollouts.model_copy(update={"every_steps": 3})
    training = loaded.experiment.training.model_copy(update={"rollouts": crowded})
    changed = type(loaded)(
        loaded.name, loaded.file, loaded.experiment.model_copy(update={"training": training}), loaded.catalogue
    )
    plan = make_plan(changed, changed.cells(), environment, baselines=False)
    fits = fits_of(plan, RunDirectory(tmp_path / "runs"), planned_room(changed))
    unfit = {fit.what.split("/")[2] for fit in fits if not fit.fits}
    assert unfit == {"rollout-4096"}
    told = next(fit for fit in fits if not fit.fits)
    assert "set batch_rows x every_steps = " in told.change and "at most" in told.change
    most = int(told.change.split(" = ")[1].split()[0])
    assert 32 < most < 3 * 32
    settings = train_settings(changed.cells()[0], changed.experiment)
    assert settings.rollouts and settings.rollouts.every_steps == 3
    timed = next(fit for fit in with_times(fits, plan, RunDirectory(tmp_path / "runs")) if fit.what == told.what)
    cell = next(cell for cell in plan.cells if told.what == f"training {cell.cell.name}")
    hours = {}
    for steps in (most // 32, 3):
        section = training.model_copy(update={"rollouts": crowded.model_copy(update={"every_steps": steps})})
        asked = replace(changed, experiment=changed.experiment.model_copy(update={"training": section}))
        hours[steps] = estimate(cell, asked, RunDirectory(tmp_path / "runs")).training_gpu_hours
    assert timed.changed_gpu_hours == hours[most // 32] != hours[3]


@pytest.mark.parametrize(("most", "every_steps", "batch_rows"), [(70, 2, 32), (32, 1, 32), (31, 1, 31), (1, 1, 1)])
def test_fewer_rollouts_are_drawn_after_fewer_steps_or_else_in_smaller_ones(
    most: int, every_steps: int, batch_rows: int
) -> None:
    loaded = load("on-policy")
    crowded = loaded.experiment.training.rollouts.model_copy(update={"every_steps": 3})
    training = loaded.experiment.training.model_copy(update={"rollouts": crowded})
    loaded = replace(loaded, experiment=loaded.experiment.model_copy(update={"training": training}))
    cell = next(cell for cell in loaded.cells() if cell.span == "rollout-4096")
    settings = train_settings(cell, loaded.experiment)
    bare = load_of(settings, QWEN3["4b"], QWEN3["8b"], resources_of("train", loaded.experiment).loss)
    before = replace(bare, rollouts=RolloutLoad(96, 200, 4096))
    fewer = changed_experiment(loaded, cell.pair, before, replace(bare, rollouts=RolloutLoad(most, 200, 4096)))
    found = train_settings(cell, fewer.experiment)
    assert found.rollouts and (found.rollouts.every_steps, found.optimizer.batch_rows) == (every_steps, batch_rows)
    same = train_settings(cell, changed_experiment(loaded, cell.pair, before, before).experiment)
    assert same.rollouts == settings.rollouts and same.optimizer == settings.optimizer


def test_memory_of_rollouts_is_that_of_live_tensors() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    import numpy as np

    from essence.distill.rollouts import continue_prompts, uniforms
    from essence.models.from_sizes import random_model
    from support.live_bytes import LiveBytes

    sizes = Architecture(
        hidden=64, layers=4, heads=4, kv_heads=2, head_dim=16, intermediate=192, vocabulary=300, tied=True
    )
    model = random_model(sizes, 64, torch.float32, torch.device("cpu"), seed=0).eval()
    for asked in (RolloutLoad(4, 6, 24), RolloutLoad(4, 60, 2)):
        prompts = [np.zeros(asked.prompt, np.int32)] * asked.rows
        numbers = uniforms(1, 0, range(asked.rows), asked.tokens)
        with LiveBytes() as counter:
            continue_prompts(model, prompts, numbers, 1.0, (), torch.device("cpu"))
        estimated = rollout_bytes(sizes, asked, BYTES["float32"])
        assert 0.5 * estimated < counter.peak <= estimated, (counter.peak, estimated, asked)
