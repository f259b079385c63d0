"""Whether what is planned fits the machine that it is planned for: every cell marked, or the least change named."""

from pathlib import Path

import pytest

from essence.errors import KitError
from essence.plan.cells import resources_of, train_settings
from essence.plan.experiment import Experiment, load
from essence.plan.fit import Fit, Room, activation_lines, fits_of, planned_room
from essence.plan.stage_plan import Plan, make_plan
from essence.record.run_directory import RunDirectory

FOUR_OF_80_GB, ONE_OF_128_GB = 80.0, 119.0


def plan_of(loaded: Experiment) -> Plan:
    return make_plan(loaded, loaded.cells(), lambda _: {}, baselines=True)


def fits(loaded: Experiment, folder: Path, room: Room | None = None) -> dict[str, Fit]:
    found = fits_of(plan_of(loaded), RunDirectory(folder / "runs"), room or planned_room(loaded))
    return {fit.what: fit for fit in found}


def changed(folder: Path, base: str, text: str) -> Experiment:
    file = folder / "x.toml"
    file.write_text(f'extends = "{base}"\ntitle = "x"\n{text}\n', encoding="utf-8")
    return load(str(file))


PUBLISHED = (
    *("bespoke", "openthoughts", "skyt1", "synthetic1", "nemotron", "sections", "halves", "pairs", "paper", "spans"),
    *("small-students", "sft", "controls", "budget-matched", "rewritten"),
)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_experiment_fits_the_machine_of_the_paper(name: str, tmp_path: Path) -> None:
    loaded = load(name)
    room = planned_room(loaded)
    assert loaded.experiment.resources.gpus == 4
    assert (room.gpu_gib, room.main_gib) == (FOUR_OF_80_GB, ONE_OF_128_GB)
    found = fits(loaded, tmp_path)
    assert [fit.sentence() for fit in found.values() if not fit.fits] == []
    trainings = [what for what in found if what.startswith("training ")]
    assert trainings == [f"training {cell.name}" for cell in loaded.cells()]
    evaluated = {what.removeprefix("evaluation of ") for what in found} - set(trainings)
    asked = [
        getattr(cell, role) for cell in loaded.cells() for role in ("student", *loaded.experiment.evaluation.baselines)
    ]
    assert evaluated == set(asked)


def test_pairs_and_paper_share_their_trainings() -> None:
    """Both have 8B to 4B and the pairs of the 32B teacher on one data set."""
    plans = [
        {cell.cell.name: cell.stages["train"] for cell in plan_of(load(name)).cells} for name in ("pairs", "paper")
    ]
    both = plans[0].keys() & plans[1].keys()
    assert len(both) == 6 and all(plans[0][name] == plans[1][name] for name in both)


def test_what_does_not_fit_is_named_with_the_least_change(tmp_path: Path) -> None:
    """What `pairs` changes for each pair is what the plan would say without it."""
    pairs = load("pairs")
    bare = pairs.experiment.model_copy(update={"by_pair": {}, "by_model": {}})
    found = fits(Experiment(pairs.name, pairs.file, bare, pairs.catalogue), tmp_path)
    unfit = {what: fit for what, fit in found.items() if not fit.fits}
    evaluation = unfit.pop("evaluation of qwen3-32b")
    assert evaluation.change == "set tensor_parallel = 2 in [by_model.qwen3-32b]"
    assert {cell.pair for cell in pairs.cells() if f"training {cell.name}" in unfit} == set(pairs.experiment.by_pair)
    for cell in (cell for cell in pairs.cells() if cell.lsp == 1.0):  # the one that needs the most
        if fit := unfit.get(f"training {cell.name}"):
            section = pairs.experiment.by_pair[cell.pair]
            # Recomputation is asked for so that costs are of one form, not to fit.
            for value in section.model_dump(exclude_none=True, exclude={"activation_checkpointing"}).values():
                assert f"'{value}'" in fit.change
            assert "of each GPU, and of 80.0 GiB 73.6 can be used" in fit.problem


def test_gpus_of_which_no_memory_is_said_are_asked_for_it(tmp_path: Path) -> None:
    """A file that asks for GPUs and extends one without; of trainings and of evaluations, and no smaller model."""
    for base, more in (("tiny", "gpus = 1"), ("bespoke", "gpu_memory_gib = 0.0")):
        found = fits(changed(tmp_path, base, f"[resources]\n{more}"), tmp_path)
        assert found and {fit.change for fit in found.values()} == {"set resources.gpu_memory_gib to what each GPU has"}
        assert all("resources.gpu_memory_gib = 0.0 gives a GPU none: set" in fit.sentence() for fit in found.values())
    assert {what.split()[0] for what in found} == {"training", "evaluation"}


def test_main_memory_is_checked_apart(tmp_path: Path) -> None:
    """A checkpoint of an 8B student passes through 98 GB of it; a teacher in main memory is there for each rank."""
    what = "training bespoke/qwen3-8b_qwen3-8b-base/lsp-0.50/p+cot+a/released/seed-42"
    small = fits(load("pairs"), tmp_path, Room(80.0, 96.0))[what]
    assert not small.fits and "of main memory" in small.problem and small.change == "set nodes = 2 in [resources]"
    offloaded = changed(tmp_path, "bespoke", '[training]\nteacher_placement = "offloaded"')
    found = next(iter(fits(offloaded, tmp_path, Room(80.0, 119.0)).values()))
    assert not found.fits
    assert found.change.startswith("set teacher_placement = 'sharded'")
    assert all(fit.fits for fit in fits(offloaded, tmp_path, Room(80.0, 256.0)).values())


def test_what_a_pair_changes_reaches_its_stages_alone() -> None:
    loaded = load("pairs")
    by_pair = {cell.pair: train_settings(cell, loaded.experiment) for cell in loaded.cells()}
    assert by_pair["qwen3-32b_qwen3-8b-base"].teacher_placement == "sharded"
    assert by_pair["qwen3-8b_qwen3-4b-base"].teacher_placement == "replicated"
    assert by_pair["qwen3-8b_qwen3-4b-base"] == train_settings(
        next(cell for cell in load("bespoke").cells() if cell.lsp == loaded.cells()[-1].lsp), load("bespoke").experiment
    )
    plan = plan_of(loaded)
    shared = {
        stage.inputs["model"]: stage.resources.tensor_parallel
        for stage in plan.stages.values()
        if stage.stage == "generate"
    }
    large = [baseline for baseline in plan.baselines if baseline.model == "qwen3-32b"]
    models = {plan.stages[one.evaluations[0].generate].inputs["model"] for one in large}
    assert {model for model, gpus in shared.items() if gpus == 2} == models
    assert resources_of("generate", loaded.experiment, "qwen3-8b").tensor_parallel == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[by_pair.qwen3-8b_qwen3-4b]\nparallel = 'zero3'", "qwen3-4b"),
        ("[by_pair.nonsense]\nparallel = 'zero3'", "must read teacher_student"),
        ("[by_pair.qwen3-8b_qwen3-4b-base]\nparallel = 'single'", "parallel = 'single' is one process"),
        ("[by_pair.qwen3-8b_qwen3-4b-base]\ntensor_parallel = 2", "unknown key"),
        ("[by_pair.qwen3-8b_qwen3-4b-base]\nparallel = 'ddp'\nteacher_placement = 'sharded'", "needs parallel ="),
        ("[by_pair.qwen3-8b_qwen3-4b-base]\nparallel = 'zero3'\noptimizer_placement = 'main_memory'", "choose zero2"),
        ("[training]\noptimizer_placement = 'main_memory'\nlora.rank = 4", "adapters"),
        ("[by_model.qwen3-8b]\ntensor_parallel = 3", "does not divide"),
        ("[by_model.qwen3-9b]\ntensor_parallel = 2", "qwen3-9b"),
    ],
)
def test_a_change_that_cannot_be_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(KitError, match=said) as caught:
        changed(tmp_path, "bespoke", text)
    assert "x.toml" in str(caught.value)


def test_activations_are_kept_or_recomputed_as_each_cell_has_room(tmp_path: Path) -> None:
    """The headline keeps them at every proportion; on 80 GB an 8B student has no room. Both of 32B to 4B are asked to
    recompute, as whole rows have no room there."""
    bespoke, pairs = fits(load("bespoke"), tmp_path), fits(load("pairs"), tmp_path)
    assert activation_lines(bespoke.values()) == ["activations of 10 trainings: kept in 10"]
    recomputed = {what for what, fit in pairs.items() if fit.activations and fit.activations.recomputed}
    students = sorted(what.split("/")[1].split("_")[1] for what in recomputed)
    assert students == [*2 * ["qwen3-4b-base"], *4 * ["qwen3-8b-base"]]
    assert activation_lines(pairs.values()) == ["activations of 18 trainings: kept in 12, recomputed in 6 (↻)"]
    controls = fits(load("controls"), tmp_path)
    (line,) = activation_lines(controls.values())
    assert "in shorter passes, of 4,624 tokens or more, in" in line
    larger = fits(load("pairs"), tmp_path, Room(141.0, 512.0))
    assert activation_lines(larger.values()) == ["activations of 18 trainings: kept in 16, recomputed in 2 (↻)"]
    assert activation_lines([fit for what, fit in pairs.items() if what.startswith("evaluation")]) == []


@pytest.mark.parametrize("name", ["pairs", "paper"])
def test_both_trainings_of_a_pair_have_their_activations_in_one_form(name: str, tmp_path: Path) -> None:
    """At LSP 0.5 as at 1.0, and in passes of one length: else their costs are not compared."""
    loaded = load(name)
    found = fits(loaded, tmp_path)
    forms: dict[tuple[str, str, str], set[tuple[bool, int]]] = {}
    for cell in loaded.cells():
        chosen = found[f"training {cell.name}"].activations
        assert chosen
        forms.setdefault((cell.dataset, cell.pair, cell.protocol), set()).add(
            (chosen.recomputed, chosen.micro_batch_tokens)
        )
    assert {key: len(of) for key, of in forms.items()} == dict.fromkeys(forms, 1)


def test_a_pair_can_ask_for_recomputation(tmp_path: Path) -> None:
    text = '[by_pair.qwen3-8b_qwen3-4b-base]\nactivation_checkpointing = "on"'
    asked = changed(tmp_path, "bespoke", text)
    cell = asked.cells()[-1]
    assert resources_of("train", asked.experiment, cell).activation_checkpointing == "on"
    assert resources_of("train", asked.experiment).activation_checkpointing == "auto"
    found = fits(asked, tmp_path)[f"training {cell.name}"]
    plain = fits(load("bespoke"), tmp_path)[f"training {cell.name}"]
    assert found.gpu_gib and plain.gpu_gib and found.gpu_gib < plain.gpu_gib - 20
    assert train_settings(cell, asked.experiment) == train_settings(cell, load("bespoke").experiment)
    off = changed(tmp_path, "pairs", '[resources]\nactivation_checkpointing = "off"')
    unfit = next(fit for what, fit in fits(off, tmp_path).items() if "8b_qwen3-8b-base/lsp-0.50" in what)
    assert not unfit.fits and unfit.change.startswith(
        "set activation_checkpointing = 'on', for this pair alone in [by_"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[training]\nactivation_checkpointing = false", "activation_checkpointing is in [resources] now"),
        (
            "[resources]\nactivation_checkpointing = 'atuo'",
            "resources.activation_checkpointing = 'atuo': input should be",
        ),
        ("[resources]\nactivation_checkpointing = true", "resources.activation_checkpointing = true: input should be"),
        ("[resources]\nactivation_checkpointin = 'on'", "did you mean 'activation_checkpointing'?"),
    ],
)
def test_what_is_said_of_activations_is_strict(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(KitError) as caught:
        changed(tmp_path, "bespoke", text)
    assert said in str(caught.value) and "x.toml" in str(caught.value)
