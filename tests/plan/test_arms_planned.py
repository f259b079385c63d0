"""Arms in a plan: whole rows once, and what contradicts itself refused in one sentence before anything runs."""

from pathlib import Path

import pytest

from essence.errors import ExperimentError
from essence.plan.cells import teacher_settings, train_settings
from essence.plan.experiment import choose, load
from essence.plan.stage_plan import make_plan
from support.planned_sources import environment
from support.project import invoke

WHOLE = ("left", "random-span", "random-tokens", "lead+answer", "schedule")
CACHED = '[training]\nteacher = "cached"'


def experiment(folder: Path, matrix: str, more: str = "") -> str:
    file = folder / "mine.toml"
    file.write_text(
        'extends = "tiny"\ntitle = "arms"\n[axes]\nprotocol = ["corrected"]\nseed = [1]\n'
        f'[[matrix]]\ndataset = ["tiny"]\npair = ["tiny-teacher_tiny-student"]\n{matrix}\n{more}',
        encoding="utf-8",
    )
    return str(file)


def test_whole_rows_are_one_training_whatever_spans_cross_1(tmp_path: Path) -> None:
    spans = ", ".join(f'"{span}"' for span in WHOLE)
    loaded = load(experiment(tmp_path, f"lsp = [0.5, 1.0]\nspan = [{spans}]"))
    cells = loaded.cells()
    assert [cell.span for cell in cells if cell.lsp == 1.0] == ["left"]
    assert [cell.span for cell in cells if cell.lsp == 0.5] == list(WHOLE)
    plan = make_plan(loaded, cells, environment, baselines=False)
    trainings = [stage for stage in plan.stages.values() if stage.stage == "train"]
    assert len(trainings) == len(WHOLE) + 1


def test_what_reads_another_part_at_1_is_a_training_of_its_own(tmp_path: Path) -> None:
    spans = '"left", "cot-lead", "first-32", "first-64", "to-first-answer"'
    cells = load(experiment(tmp_path, f"lsp = [1.0]\nspan = [{spans}]")).cells()
    assert len({cell.name for cell in cells}) == 5


@pytest.mark.parametrize(
    ("matrix", "more", "sentence"),
    [
        ('lsp = [1.0]\nspan = ["first-32"]\nsections = ["a"]', "", "span 'first-32' never reads the answer"),
        ('lsp = [0.5]\nspan = ["first-32"]', "", "span 'first-32' takes no proportion of a row, so lsp = 0.5"),
        ('lsp = [0.9]\nspan = ["to-first-answer"]', "", "span 'to-first-answer' takes no proportion"),
        ('lsp = [0.25]\nspan = ["schedule"]', "", "those of lsp = 0.25 do not add up"),
        ('lsp = [0.625]\nspan = ["schedule"]\ntoken_budget = [9000]', "", "token_budget = 9000 names no rows"),
        (
            'lsp = [0.625]\nspan = ["schedule"]',
            "[training]\nbatch_tokens = 512",
            "batch_tokens = 512 in [training] chooses",
        ),
        ('lsp = [0.5]\nspan = ["teacher-entropy"]', "", "but teacher = 'live' in [training] stores nothing"),
        (
            'lsp = [0.5]\nspan = ["teacher-entropy"]',
            f"{CACHED}\nkd_weight = 0.0",
            "but kd_weight = 0.0 in [training] stores nothing",
        ),
        ('lsp = [1.0]\nspan = ["first-0"]', "", "first-k"),
        ('lsp = [1.0]\nspan = ["first-99999999999"]', "", "first-k"),
        ('lsp = [0.5]\nspan = ["random"]', "", "random-span"),
    ],
)
def test_arms_that_contradict_themselves_are_one_sentence(
    tmp_path: Path, matrix: str, more: str, sentence: str
) -> None:
    file = experiment(tmp_path, matrix, more)
    with pytest.raises(ExperimentError) as caught:
        load(file).cells()
    assert sentence in str(caught.value) and file in str(caught.value) and "\n" not in str(caught.value)


def test_the_splice_has_no_stored_teacher_and_every_other_arm_has(tmp_path: Path) -> None:
    spans = ", ".join(f'"{span}"' for span in (*WHOLE, "teacher-entropy"))
    loaded = load(experiment(tmp_path, f"lsp = [0.5]\nspan = [{spans}]", CACHED))
    for cell in loaded.cells():
        settings = train_settings(cell, loaded.experiment)
        if cell.span == "lead+answer":
            with pytest.raises(ExperimentError, match="leaves out the middle of the chain of thought"):
                teacher_settings(cell, settings, loaded)
        else:
            assert teacher_settings(cell, settings, loaded).rows.token_budget is None


def test_the_command_says_what_a_typed_value_leaves_out() -> None:
    done = invoke("plan", "--experiment", "tiny-controls", "--lsp", "0.35", "--json")
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("left out: ")]
    assert len(said) == 3 and all("lsp = 0.35" in line for line in said)


def test_a_typed_span_is_checked_against_the_training_too(tmp_path: Path) -> None:
    plain, by_tokens = experiment(tmp_path, "lsp = [0.625]"), "[training]\nbatch_tokens = 512"
    with pytest.raises(ExperimentError, match=r"but teacher = 'live' in \[training\]"):
        choose(load(plain), {"span": "teacher-entropy"})
    with pytest.raises(ExperimentError, match=r"batch_tokens = 512 in \[training\] chooses the rows"):
        choose(load(experiment(tmp_path, "lsp = [0.625]", by_tokens)), {"span": "schedule"})
    cells = choose(load(experiment(tmp_path, "lsp = [0.625, 1.0]", CACHED)), {"span": "teacher-entropy"}).cells
    assert [(cell.span, cell.lsp) for cell in cells] == [("teacher-entropy", 0.625), ("left", 1.0)]
