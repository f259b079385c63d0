"""The wiring of a plan: which stage reads which, with what resources, what is left, and what stands for what."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from essence.engines.recipes import check_decoder
from essence.engines.selected_run import Run
from essence.errors import MachineError
from essence.files import read_json, write_json
from essence.plan.experiment import load
from essence.plan.proof_plan import proof_plan
from essence.plan.renewal import Renewals, Wanted, earlier_work, renewal_lines
from essence.plan.stage_plan import GRADER_LOCK, VLLM_LOCK, Plan, PlannedStage, make_evaluation_plan, make_plan
from essence.record.finished_stages import Earlier, FinishedStages
from essence.record.local_sources import LocalSources
from essence.record.plan_record import PlanRecord
from essence.record.record_files import seal_of
from essence.record.run_directory import RunDirectory
from essence.settings import GenerateSettings, GradeSettings, TrainSettings
from support.finished_runs import finish_micro
from support.planned_sources import environment

HEAD = """extends = "bespoke"
title = "x"
[[matrix]]
dataset = ["bespoke"]
pair = ["qwen3-8b_qwen3-4b-base"]
lsp = [0.5]
"""


def planned(folder: Path, text: str = "", baselines: bool = False) -> Plan:
    """The plan of a variation of bespoke at one proportion."""
    (folder / "mine.toml").write_text(HEAD + text, encoding="utf-8")
    loaded = load(str(folder / "mine.toml"))
    return make_plan(loaded, loaded.cells(), environment, baselines)


def stage_of(plan: Plan, kind: str) -> PlannedStage:
    return next(stage for stage in plan.stages.values() if stage.stage == kind)


def reads(plan: Plan, stage: PlannedStage) -> dict[str, str]:
    """Input name -> title of the stage that makes it."""
    return {name: plan.stages[identifier].title for name, identifier in stage.inputs.items()}


def test_each_stage_reads_what_the_design_says(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    cell = plan.cells[0].cell.name
    train, grade = stage_of(plan, "train"), stage_of(plan, "grade")
    assert reads(plan, train) == {
        "tokens": "tokenize bespoke for qwen3-4b-base (released)",
        "student": "download model qwen3-4b-base",
        "teacher": "download model qwen3-8b",
    }
    generate = plan.stages[grade.inputs["samples"]]
    assert set(reads(plan, generate)) == {"model", "problems"} and generate.inputs["model"] == train.id
    assert grade.inputs["problems"] == generate.inputs["problems"]
    assert train.title == f"train {cell}" and generate.title.endswith(f"with {cell} (best)")
    assert {"rows", "tokenizer"} <= stage_of(plan, "tokenize").inputs.keys()


def test_a_stored_teacher_stands_between_model_and_training(tmp_path: Path) -> None:
    plan = planned(tmp_path, '[training]\nteacher = "cached"\n')
    states, train = stage_of(plan, "teacher"), stage_of(plan, "train")
    assert train.inputs["teacher"] == states.id == plan.cells[0].stages["states"]
    assert plan.cells[0].stages["teacher"] == states.inputs["teacher"]
    assert plan.stages[states.inputs["teacher"]].title == "download model qwen3-8b"
    assert list(plan.stages).index(states.id) < list(plan.stages).index(train.id)


def test_what_asks_for_no_gpu_is_given_none(tmp_path: Path) -> None:
    plan = planned(
        tmp_path,
        '[training]\nteacher = "cached"\nparallel = "zero3"\nprocesses = 8\n'
        "[resources]\ngpus = 4\nnodes = 2\ngpu_memory_gib = 80.0\n",
    )
    given = {stage.stage: (stage.resources.gpus, stage.resources.nodes) for stage in plan.stages.values()}
    assert given == {
        "download": (0, 1),
        "tokenize": (0, 1),
        "teacher": (1, 1),
        "train": (4, 2),
        "generate": (4, 1),
        "grade": (0, 1),
    }
    assert stage_of(plan, "grade").resources.gpu_memory_gib == 0.0


def test_resources_are_no_part_of_a_key(tmp_path: Path) -> None:
    assert list(planned(tmp_path).stages) == list(planned(tmp_path, "[resources]\nthreads = 3\n").stages)


def test_a_generate_stage_knows_its_graders(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    grade = stage_of(plan, "grade")
    assert isinstance(grade.settings, GradeSettings)
    told = {grade.settings.grader: grade.settings.timeout_s}
    assert plan.stages[grade.inputs["samples"]].graders == told and not grade.graders


@pytest.mark.parametrize(("rule", "seeds"), [('"cell"', {1, 2}), ("7", {7})])
def test_a_seed_is_the_cells_or_a_fixed_one(tmp_path: Path, rule: str, seeds: set[int]) -> None:
    text = f'seed = [1, 2]\n[data.bespoke]\nsplit_seed = "cell"\n[evaluation]\nseed = {rule}\n'
    plan = planned(tmp_path, text)
    of_samples = [s.settings.seed for s in plan.stages.values() if isinstance(s.settings, GenerateSettings)]
    of_rows = {s.settings.rows.split_seed for s in plan.stages.values() if isinstance(s.settings, TrainSettings)}
    assert set(of_samples) == seeds and of_rows == {1, 2}


@pytest.mark.parametrize(
    ("lock", "decoder", "renewed"),
    [
        (VLLM_LOCK, "vllm", {"generate", "grade"}),
        (VLLM_LOCK, "transformers", set()),
        (GRADER_LOCK, "vllm", set()),
    ],
)
def test_a_lock_counts_where_its_layer_is_used(tmp_path: Path, lock: str, decoder: str, renewed: set[str]) -> None:
    (tmp_path / "mine.toml").write_text(HEAD + f'[evaluation]\ndecoder = "{decoder}"\n', encoding="utf-8")
    loaded = load(str(tmp_path / "mine.toml"))

    def ids(digest: str) -> set[str]:
        return set(make_plan(loaded, loaded.cells(), lambda name: {**environment(name), lock: digest}, False).stages)

    assert {identifier.split("-")[0] for identifier in ids("1" * 64) - ids("2" * 64)} == renewed


def test_a_proof_is_told_before_its_training_side_that_an_image_has_no_vllm(tmp_path: Path) -> None:
    loaded = load("bespoke")
    plan = proof_plan(loaded, loaded.cells()[0], environment, RunDirectory(tmp_path), "2026-01-01T00:00:00")
    with pytest.raises(MachineError, match="holds no vLLM, which decoder = 'vllm' asks for"):
        check_decoder(list(plan.stages.values()), "cpu")


def test_one_model_of_the_catalogue_is_evaluated_without_a_training(tmp_path: Path) -> None:
    loaded = planned(tmp_path).loaded
    plan = make_evaluation_plan(loaded, "qwen3-8b", "released", 5, environment)
    (entry,) = plan.baselines
    assert (entry.role, entry.model, plan.cells) == ("model", "qwen3-8b", [])
    assert {stage.stage for stage in plan.wanted()} == {"download", "generate", "grade"}
    assert {evaluation.checkpoint for evaluation in entry.evaluations} == {"model"}


def test_a_plan_is_read_as_it_is_written(tmp_path: Path) -> None:
    plan = planned(tmp_path, baselines=True)
    write_json(tmp_path / "plan.json", plan.record().as_json())
    again = PlanRecord.model_validate(read_json(tmp_path / "plan.json"))
    assert again.as_json() == plan.record().as_json()
    assert [entry.title for entry in again.stages.values()] == [stage.title for stage in plan.stages.values()]
    needed = {identifier for stage in plan.wanted() for identifier in stage.inputs.values()}
    assert needed <= again.stages.keys()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return finish_micro(tmp_path_factory.mktemp("finished") / "runs")


@pytest.fixture
def run(finished: Run, tmp_path: Path) -> Run:
    """The finished matrix, in a run directory of its own."""
    shutil.copytree(finished.run_directory.root, tmp_path / "runs")
    directory = RunDirectory(tmp_path / "runs")
    return replace(finished, run_directory=directory, local=LocalSources(directory))


def test_left_is_what_is_wanted_and_not_done(run: Run) -> None:
    assert run.left() == []
    gone = run.plan.cells[0].evaluations[0]
    for identifier in (gone.grade, gone.generate):
        run.run_directory.stage(identifier).manifest.unlink()
    assert [stage.id for stage in run.left()] == [gone.generate, gone.grade]


def wanted_of(stage: PlannedStage, settings: Mapping[str, object] | None = None, source: str | None = None) -> Wanted:
    resolved = settings or stage.settings.model_dump(mode="json")
    return Wanted(stage.stage, stage.title, resolved, stage.inputs, stage.environment, source or stage.source_sha256)


def standing(run: Run, until: str) -> Renewals:
    """What is asked for the stages before one, in order."""
    renewals = Renewals(FinishedStages(run.run_directory))
    for stage in run.plan.stages.values():
        if stage.id == until:
            break
        assert renewals.find(stage.id, stage.key, wanted_of(stage)) is None, "it is done"
    return renewals


def test_of_equal_settings_the_finished_one_stands_there_and_may_be_accepted(run: Run) -> None:
    train = run.plan.stages[run.plan.cells[0].stages["train"]]
    earlier = standing(run, train.id).find("train-0000000000000000", "0" * 64, wanted_of(train, source="1" * 64))
    assert earlier and (earlier.id, earlier.under, earlier.acceptable) == (train.id, "earlier code", True)


def test_a_setting_that_is_a_resource_now_makes_no_difference(run: Run) -> None:
    train = run.plan.stages[run.plan.cells[0].stages["train"]]
    then = {**train.settings.model_dump(mode="json"), "activation_checkpointing": True}
    earlier = standing(run, train.id).find("train-0000000000000000", "0" * 64, wanted_of(train, then, "1" * 64))
    assert earlier and (earlier.id, earlier.acceptable) == (train.id, True)


def test_other_settings_are_named_and_never_accepted(run: Run) -> None:
    train = run.plan.stages[run.plan.cells[0].stages["train"]]
    assert isinstance(train.settings, TrainSettings)
    optimizer = train.settings.optimizer.model_copy(update={"epochs": train.settings.optimizer.epochs + 1})
    changed = train.settings.model_copy(update={"optimizer": optimizer}).model_dump(mode="json")
    find = standing(run, train.id).find
    earlier = find("train-0000000000000000", "0" * 64, wanted_of(train, changed, "1" * 64))
    epochs = train.settings.optimizer.epochs
    assert earlier and earlier.causes == (f"optimizer.epochs {epochs} -> {epochs + 1}",)
    assert (earlier.under, earlier.acceptable) == ("earlier code with other settings", False)
    # Under the same code another setting is another stage, and nothing was renewed.
    assert find("train-0000000000000001", "1" * 64, wanted_of(train, changed)) is None


def test_other_inputs_are_another_stage(run: Run) -> None:
    """Equal settings over other tokens: what is finished is not what is wanted."""
    train = run.plan.stages[run.plan.cells[0].stages["train"]]
    wanted = replace(wanted_of(train, source="1" * 64), inputs={**train.inputs, "tokens": "tokenize-elsewhere"})
    assert standing(run, train.id).find("train-0000000000000000", "0" * 64, wanted) is None


@pytest.mark.parametrize("damage", ["edited", "unreadable", "other key"])
def test_a_record_that_cannot_be_believed_stands_for_nothing(run: Run, damage: str) -> None:
    train = run.plan.stages[run.plan.cells[0].stages["train"]]
    folder = run.run_directory.stage(train.id)
    manifest = read_json(folder.manifest)
    if damage == "unreadable":
        folder.manifest.write_text("{")
    elif damage == "edited":
        write_json(folder.manifest, {**manifest, "hardware": {**manifest["hardware"], "host": "elsewhere"}})
    else:
        manifest["settings"]["resolved"]["seed"] += 1
        write_json(folder.manifest, {**manifest, "seal": seal_of(manifest)})
    found = standing(run, train.id).find("train-0000000000000000", "0" * 64, wanted_of(train, source="1" * 64))
    assert found is None


def test_work_of_earlier_code_is_told_from_the_plan_that_was_written(run: Run) -> None:
    entries = {stage.id: stage.entry() for stage in run.plan.stages.values()}
    assert earlier_work(run.run_directory, entries) == []
    train = run.plan.cells[0].stages["train"]
    was = Earlier("train-of-before", "", "earlier code", ("distill/objective.py changed",), True)
    entries["train-1111111111111111"] = entries[train].model_copy(update={"earlier": was.entry()})
    assert earlier_work(run.run_directory, entries) == [("train", was)]


def test_lines_count_equal_causes_once() -> None:
    def earlier(cause: str, under: str = "earlier code") -> Earlier:
        return Earlier("train-1", "", under, (cause, "2 more"), True)  # type: ignore[arg-type]

    found = [("train", earlier("a.py changed")), ("train", earlier("a.py changed")), ("grade", earlier("b.py is gone"))]
    found.append(("train", earlier("a.py changed", "another environment")))
    assert renewal_lines(found) == [
        "train: a.py changed, 2 more; 2 finished under earlier code",
        "grade: b.py is gone, 2 more; 1 finished under earlier code",
        "train: a.py changed, 2 more; 1 finished under another environment",
    ]
    assert renewal_lines([]) == []
