"""From cells to stages: what is shared, what is repeated when something changes, what --only takes with it."""

from pathlib import Path

import pytest

from essence.plan.experiment import choose, load
from essence.plan.stage_plan import ONLY, Plan, make_plan
from essence.record.source_key import imported_modules, source_sha256
from essence.settings import StageName


def environment(stage: StageName) -> dict[str, str]:
    return {"lock_sha256": "0" * 64}


def plan_of(name: str, baselines: bool = True, **wanted: object) -> Plan:
    loaded = load(name)
    return make_plan(loaded, choose(loaded, wanted).cells if wanted else loaded.cells(), environment, baselines)


def kinds(plan: Plan, only: str | None = None) -> dict[str, int]:
    stages = [stage.stage for stage in plan.wanted(only)]
    return {kind: stages.count(kind) for kind in sorted(set(stages))}


def test_ten_proportions_share_downloads_and_one_tokenization() -> None:
    assert kinds(plan_of("bespoke")) == {"download": 6, "tokenize": 1, "train": 10, "generate": 24, "grade": 24}


def test_experiments_share_the_cells_they_have_in_common() -> None:
    bespoke, halves, sections = (set(plan_of(name).stages) for name in ("bespoke", "halves", "sections"))
    assert {i.split("-")[0] for i in bespoke & halves} == {"download", "tokenize", "train", "generate", "grade"}
    assert len([i for i in bespoke & sections if i.startswith("train")]) == 1


def test_the_left_half_is_proportion_one_half() -> None:
    left = [c for c in plan_of("halves").cells if c.cell.span == "left" and c.cell.protocol == "released"]
    half = plan_of("bespoke", lsp=0.5).cells[0]
    assert half.stages["train"] in [cell.stages["train"] for cell in left]


def test_plain_fine_tuning_reads_no_teacher(tmp_path: Path) -> None:
    """Nor does it depend on which one the pair names."""
    file = tmp_path / "plain.toml"
    pairs = '["qwen3-8b_qwen3-4b-base", "qwen3-32b_qwen3-4b-base"]'
    file.write_text(f'extends = "sft"\ntitle = "x"\n[[matrix]]\ndataset = ["bespoke"]\nlsp = [0.5]\npair = {pairs}\n')
    plan = plan_of(str(file), baselines=False)
    assert len(plan.cells) == 2 and kinds(plan)["train"] == 1
    assert not [
        stage for stage in plan.wanted() if stage.title in ("download model qwen3-8b", "download model qwen3-32b")
    ]
    assert all("teacher" not in cell.stages for cell in plan.cells)


def test_stages_stand_after_what_they_need() -> None:
    plan, seen = plan_of("pairs"), set[str]()
    for stage in plan.wanted():
        assert set(stage.inputs.values()) <= seen
        seen.add(stage.id)


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ("download", {"download": 6}),
        ("tokenize", {"download": 5, "tokenize": 1}),
        ("train", {"download": 6, "tokenize": 1, "train": 1}),
        ("generate", {"download": 6, "tokenize": 1, "train": 1, "generate": 2}),
        ("evaluate", {"download": 6, "tokenize": 1, "train": 1, "generate": 2, "grade": 2}),
    ],
)
def test_only_takes_what_it_needs_with_it(only: str, expected: dict[str, int]) -> None:
    assert only in ONLY
    assert kinds(plan_of("bespoke", baselines=False, lsp=0.5), only) == expected


def test_one_cell_runs_without_baselines() -> None:
    assert not plan_of("bespoke", baselines=False, lsp=0.5).baselines
    assert {b.role for b in plan_of("bespoke").baselines} == {"student", "teacher"}


def test_another_environment_is_another_stage() -> None:
    loaded = load("bespoke")
    other = make_plan(loaded, loaded.cells(), lambda stage: {"lock_sha256": "1" * 64}, baselines=True)
    shared = set(other.stages) & set(plan_of("bespoke").stages)
    assert {identifier.split("-")[0] for identifier in shared} == {"download"}, "what a commit holds is the same"


def test_corrected_evaluates_the_last_checkpoint_beside_the_best() -> None:
    cells = {c.cell.protocol: c for c in plan_of("halves", span="left").cells}
    assert {e.checkpoint for e in cells["released"].evaluations} == {"best"}
    assert {e.checkpoint for e in cells["corrected"].evaluations} == {"best", "last"}


def test_a_stage_depends_on_the_modules_it_imports_and_no_others() -> None:
    train, grade = imported_modules("essence.stages.train"), imported_modules("essence.stages.grade")
    assert {"essence.distill.objective", "essence.data.truncation", "essence.progress"} <= train
    assert "essence.evaluation.grading_pool" in grade and "essence.distill.objective" not in grade
    assert not any(name.startswith(("essence.report", "essence.commands")) for name in train | grade)


def test_host_modules_reach_neither_torch_nor_the_stages() -> None:
    for entry in ("essence.commands.run", "essence.commands.plan", "essence.commands.status"):
        reached = imported_modules(entry)
        stages = {name for name in reached if name.startswith("essence.stages")}
        assert stages == {"essence.stages", "essence.stages.tiny", "essence.stages.tiny.source_options"}, entry
        assert "essence.distill.trainer" not in reached


def test_source_hash_is_stable_within_a_process() -> None:
    assert source_sha256("train") == source_sha256("train") != source_sha256("grade")


def test_a_changed_local_folder_is_another_input(tmp_path: Path) -> None:
    pins, rows = tmp_path / "pins.toml", tmp_path / "rows.jsonl"
    pins.write_text('[datasets.bespoke]\npath = "rows.jsonl"\n', encoding="utf-8")

    def keys() -> set[str]:
        loaded = load("bespoke", pins)
        return set(make_plan(loaded, loaded.cells(), environment, baselines=False).stages)

    rows.write_text("{}\n", encoding="utf-8")
    before = keys()
    assert keys() == before
    rows.write_text("{}\n{}\n", encoding="utf-8")
    assert {i.split("-")[0] for i in keys() - before} == {"download", "tokenize", "train", "generate", "grade"}
