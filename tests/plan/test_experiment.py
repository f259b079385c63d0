"""Experiments as data: what a file may contain, the message for anything else, and the resulting cells."""

import ast
import copy
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from essence.errors import ExperimentError, KitError
from essence.plan.cells import train_settings
from essence.plan.experiment import EXPERIMENTS, PROJECT, available, choose, load
from essence.plan.stage_plan import make_plan
from essence.record.content import content_of
from essence.record.source_key import imported_modules
from essence.report.claims.definition import load_claims
from essence.settings import SETTINGS, StageName

BASE = """
extends = "bespoke"
title = "test"
"""


def environment(stage: str) -> dict[str, str]:
    return {"lock_sha256": "0" * 64}


def write(folder: Path, text: str) -> str:
    file = folder / "mine.toml"
    file.write_text(BASE + text, encoding="utf-8")
    return str(file)


def cells_of(name: str) -> list[str]:
    return [cell.name for cell in load(name).cells()]


@pytest.mark.parametrize("name", available())
def test_every_experiment_loads_and_plans(name: str) -> None:
    loaded = load(name)
    plan = make_plan(loaded, loaded.cells(), environment, baselines=True)
    assert plan.cells and plan.wanted()
    for stage in plan.wanted():
        assert set(stage.inputs.values()) <= set(plan.stages)


def test_the_names_of_the_issue_are_there() -> None:
    names = {"tiny", "bespoke", "openthoughts", "synthetic1", "nemotron", "skyt1"}
    names |= {"sections", "halves", "pairs", "budget-matched", "spans", "sft", "paper", "small-students"}
    names |= {"controls", "rewritten", "tiny-controls", "token-selection", "on-policy", "tiny-on-policy"}
    assert set(available()) == names


def test_the_papers_settings_are_those_of_its_primary_claim() -> None:
    claim = next(claim for claim in load_claims() if claim.primary)
    loaded = load("paper")
    cells, benchmarks = loaded.cells(), loaded.experiment.evaluation.benchmarks
    settings = {(c.dataset, f"{c.teacher}_{c.student}", name) for c in cells for name in benchmarks}
    assert {pair for _, pair, _ in settings} == set(claim.pairs)
    assert {dataset for dataset, _, _ in settings} == set(claim.datasets)
    assert set(benchmarks) == set(claim.benchmarks) and len(settings) == claim.settings == 30
    assert {cell.lsp for cell in cells} == {claim.lsp, 1.0}


def test_small_students_are_run_on_a_curve() -> None:
    claim = next(claim for claim in load_claims() if claim.id == "small-students")
    cells = load("small-students").cells()
    assert {cell.student for cell in cells} <= set(claim.students)
    assert len({cell.lsp for cell in cells if cell.lsp < 1.0}) == claim.proportions


def test_cell_names_read_as_in_the_readme() -> None:
    assert "bespoke/qwen3-8b_qwen3-4b-base/lsp-0.50/p+cot+a/released/seed-42" in cells_of("bespoke")
    assert "bespoke/qwen3-8b_qwen3-4b-base/right-0.50/p+cot+a/corrected/seed-42" in cells_of("halves")
    assert "bespoke/qwen3-8b_qwen3-4b-base/cot-lead-0.50/p+cot+a/released/seed-42" in cells_of("spans")
    assert "bespoke/tokens-5000000/qwen3-8b_qwen3-4b-base/lsp-0.50/p+cot+a/released/seed-42" in cells_of("spans")
    assert "bespoke/rows-4000/qwen3-8b_qwen3-4b-base/lsp-1.00/p+cot+a/released/seed-42" in cells_of("budget-matched")


def test_a_proportion_of_more_digits_keeps_its_own_name(tmp_path: Path) -> None:
    names = cells_of(
        write(tmp_path, '[[matrix]]\ndataset=["bespoke"]\npair=["qwen3-8b_qwen3-4b-base"]\nlsp=[0.125, 0.12]')
    )
    assert [name.split("/")[2] for name in names] == ["lsp-0.125", "lsp-0.12"]


MATRIX = '[[matrix]]\ndataset = ["bespoke"]\npair = ["qwen3-8b_qwen3-4b-base"]\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (MATRIX + "lsp = [0.0]", ["mine.toml", "matrix[0].lsp[0]", "0.0", "greater than 0"]),
        (MATRIX + "lsp = [-1]", ["matrix[0].lsp[0]", "-1", "greater than 0"]),
        (MATRIX + "lsp = [50]", ["matrix[0].lsp[0]", "50", "less than or equal to 1"]),
        (MATRIX + 'lsp = ["half"]', ["matrix[0].lsp[0]", "'half'", "number"]),
        (MATRIX + "lsp = [0.5]\nseeds = [1]", ["unknown key 'matrix[0].seeds'", "did you mean 'seed'"]),
        (MATRIX + "lsp = [0.5]\nseed = [1.5]", ["matrix[0].seed[0]", "1.5", "integer"]),
        (MATRIX + 'lsp = [0.5]\nseed = ["1"]', ["matrix[0].seed[0]", "'1'", "integer"]),
        (MATRIX + "lsp = []", ["matrix is empty", "'lsp'"]),
        (MATRIX + "lsp = [0.5, 0.5]", ["twice", "lsp-0.50"]),
        (MATRIX + 'lsp = [0.5]\nsections = ["cot+p"]', ["matrix[0].sections[0]", "'cot+p'", "p+cot"]),
        (MATRIX + 'lsp = [0.5]\nspan = ["cot-lead"]\nsections = ["a"]', ["cot-lead", "supervise nothing", "'a'"]),
        (MATRIX + 'lsp = [0.5]\nspan = ["cot_lead"]', ["matrix[0].span[0]", "'cot_lead'", "'cot-lead'"]),
        (MATRIX + "lsp = [0.5]\ntoken_budget = [0]", ["matrix[0].token_budget[0]", "0", "greater than 0"]),
        (MATRIX + 'lsp = [0.5]\nprotocol = ["relased"]', ["protocol", "'relased'", "released"]),
        (MATRIX.replace("bespoke", "bespok") + "lsp = [0.5]", ["unknown dataset 'bespok'", "did you mean 'bespoke'"]),
        (MATRIX.replace("4b-base", "4b") + "lsp = [0.5]", ["unknown model 'qwen3-4b'", "qwen3-4b-base"]),
        (MATRIX.replace("_", "-") + "lsp = [0.5]", ["pair", "teacher_student"]),
        ("[training]\nmax_lrr = 1e-5", ["unknown key 'training.max_lrr'", "did you mean 'max_lr'"]),
        ("[training]\nkd_weight = 2", ["kd_weight", "2", "less than or equal to 1"]),
        ('[training]\nparallel = "single"', ["mine.toml: training: parallel = 'single'", "processes = 4: choose ddp"]),
        (
            '[training]\nparallel = "ddp"\nteacher_placement = "sharded"',
            ["'sharded' needs parallel = 'zero2'"],
        ),
        ("[resources]\nkept_checkpoints = 1", ["resources.kept_checkpoints", "1", "greater than or equal to 2"]),
        ("[evaluation]\nsamples = 0", ["evaluation.samples", "0", "greater than 0"]),
        ('[evaluation]\nbenchmarks = ["aime26"]', ["unknown benchmark 'aime26'", "did you mean 'aime2"]),
        ("[axes]\nseeds = [1]", ["unknown key 'axes.seeds'", "did you mean 'seed'"]),
        ('[models.mine]\npath = "x"\nrepository = "a/b"', ["models.mine", "exactly one of"]),
        ('[models.mine]\nrepository = "a/b"\ncommit = "main"', ["models.mine.commit", "'main'", "40 hexadecimal"]),
        ("[matrix\n", ["mine.toml", "not valid TOML"]),
        ("[resources]\ngpus = 2", ["processes = 4", "need as many GPUs", "gpus = 2 on nodes = 1"]),
        ("[resources]\nnodes = 3", ["processes = 4", "cannot be shared out evenly to nodes = 3"]),
        ("[axes]\nseed = [1, 2]", ["seed = [1, 2] gives 2 times the same training", "split_seed = 42", '"cell"']),
        ('extend = "x"', ["unknown key 'extend'", "did you mean 'extends'"]),
    ],
)
def test_bad_input_is_one_sentence(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(KitError) as raised:
        loaded = load(write(tmp_path, text))
        make_plan(loaded, loaded.cells(), environment, baselines=True)
    message = str(raised.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_unknown_experiment_names_the_nearest() -> None:
    with pytest.raises(ExperimentError, match=r"unknown experiment 'bespok'; did you mean 'bespoke'\?"):
        load("bespok")


def test_seeds_differ_by_their_rows_or_by_their_adapters(tmp_path: Path) -> None:
    for text in ('[data.bespoke]\nsplit_seed = "cell"', "[training]\nlora.rank = 8"):
        assert len(load(write(tmp_path, f"[axes]\nseed = [1, 2]\n{text}")).cells()) == 20


def test_seeds_of_corrected_differ_by_the_order_of_their_rows(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, '[axes]\nprotocol = ["corrected"]\nseed = [1, 2]'))
    found = [train_settings(cell, loaded.experiment) for cell in loaded.cells() if cell.lsp == 0.5]
    assert [(one.rows.split_seed, one.order.seed, one.order.multiple) for one in found] == [(42, 1, 1), (42, 2, 1)]
    with pytest.raises(ExperimentError, match=r"seed = \[1, 2\] gives 2 times the same training.* released"):
        load(write(tmp_path, '[axes]\nprotocol = ["corrected", "released"]\nseed = [1, 2]'))


def test_an_experiment_replaces_the_origin_of_an_entry_below_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    text = '[datasets.tiny]\npath = "rows.jsonl"\n[models.tiny-student.options]\ndocuments = 9\n'
    file.write_text(f'extends = "tiny"\ntitle = "Mine"\n{text}', encoding="utf-8")
    mine, tiny = load(str(file)).catalogue, load("tiny").catalogue
    assert (mine.datasets["tiny"].path, mine.datasets["tiny"].builtin) == (str(tmp_path / "rows.jsonl"), None)
    assert mine.datasets["tiny"].format == tiny.datasets["tiny"].format
    assert mine.models["tiny-student"].options == {**tiny.models["tiny-student"].options, "documents": 9}


def test_what_is_not_taken_in_does_not_change_a_local_source(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    for name in ("config.json", "pytorch_model.bin", ".git/index"):
        (tmp_path / name).write_text("1")
    before = content_of(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    (tmp_path / ".git/index").write_text("12")
    assert content_of(tmp_path) == before
    (tmp_path / "config.json").write_text("12")
    assert content_of(tmp_path) != before


def test_a_file_that_extends_itself_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "loop.toml"
    file.write_text('extends = "loop.toml"\ntitle = "loop"\n', encoding="utf-8")
    with pytest.raises(ExperimentError, match="extends itself"):
        load(str(file))


def test_choosing_a_value_of_the_matrix_picks_its_cells() -> None:
    loaded = load("budget-matched")
    assert {cell.train_rows for cell in choose(loaded, {"lsp": 0.5}).cells} == {8000, 40000}
    assert [cell.dataset for cell in choose(loaded, {"lsp": 1.0, "dataset": "bespoke"}).cells] == ["bespoke"]


def test_choosing_another_value_replaces_the_axis() -> None:
    assert [cell.lsp for cell in choose(load("bespoke"), {"lsp": 0.35}).cells] == [0.35]
    seeds = {cell.seed for cell in choose(load("bespoke"), {"seed": 7}).cells}
    assert seeds == {7}


def test_a_value_that_some_spans_contradict_leaves_their_cells_out_and_says_why() -> None:
    """`--lsp 0.35` of controls: no such share of first-k, and a schedule reads at least half."""
    chosen = choose(load("controls"), {"lsp": 0.35, "seed": 1})
    assert {cell.span for cell in chosen.cells} == {"left", "random-span", "random-tokens", "lead+answer"}
    assert {cell.lsp for cell in chosen.cells} == {0.35}
    assert len({cell.name for cell in chosen.cells}) == len(chosen.cells) and {
        cell.token_budget for cell in chosen.cells
    } == {None, 5_000_000}
    spans = [
        span
        for span in ("first-128", "to-first-answer", "schedule")
        if any(f"'{span}'" in one for one in chosen.left_out)
    ]
    assert spans == ["first-128", "to-first-answer", "schedule"]
    assert all("lsp = 0.35" in sentence for sentence in chosen.left_out)
    assert choose(load("controls"), {"span": "schedule"}).cells  # at 0.5 and above


def test_a_value_that_every_cell_contradicts_is_one_error() -> None:
    with pytest.raises(ExperimentError, match="span 'first-64' takes no proportion of a row, so lsp = 0"):
        choose(load("controls"), {"span": "first-64", "lsp": 0.25})


@pytest.mark.parametrize("value", [0.0, -1.0, 50.0, float("nan")])
def test_choosing_a_proportion_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(ExperimentError, match="--lsp"):
        choose(load("bespoke"), {"lsp": value})


def test_a_pins_file_replaces_the_origin_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    pins = tmp_path / "pins.toml"
    pins.write_text('[datasets.openthoughts]\npath = "rows"\n', encoding="utf-8")
    pin = load("openthoughts", pins).catalogue.datasets["openthoughts"]
    assert pin.path == str(tmp_path / "rows") and pin.repository is None and pin.format == "conversations"


def test_a_local_path_instead_of_a_streamed_repository(tmp_path: Path) -> None:
    """The number of rows and the columns are said of the repository, not of the rows on this machine."""
    assert load("synthetic1").catalogue.datasets["synthetic1"].rows_wanted == 100_000
    pins = tmp_path / "pins.toml"
    pins.write_text('[datasets.synthetic1]\npath = "rows.jsonl"\n', encoding="utf-8")
    pin = load("synthetic1", pins).catalogue.datasets["synthetic1"]
    assert (pin.rows_wanted, pin.columns) == (None, [])
    pins.write_text('[datasets.synthetic1]\npath = "rows.jsonl"\nrows_wanted = 5\n', encoding="utf-8")
    with pytest.raises(ExperimentError, match="rows_wanted says how much of a repository is streamed"):
        load("synthetic1", pins)
    pins.write_text('[datasets.bespoke]\ncolumns = ["x"]\n', encoding="utf-8")
    with pytest.raises(ExperimentError, match="needs rows_wanted"):
        load("bespoke", pins)


def test_the_number_of_streamed_rows_is_part_of_the_key(tmp_path: Path) -> None:
    pins = tmp_path / "pins.toml"
    pins.write_text("[datasets.nemotron]\nrows_wanted = 5\n", encoding="utf-8")
    plans = [make_plan(e, e.cells(), environment, baselines=False) for e in (load("nemotron"), load("nemotron", pins))]
    first, second = (plan.cells[0].stages["tokenize"] for plan in plans)
    assert first != second


def test_protocols_differ_in_named_settings_only() -> None:
    loaded = load("halves")
    plan = make_plan(loaded, loaded.cells(), environment, baselines=False)
    by_name = {c.cell.name: plan.stages[c.stages["train"]].settings.model_dump() for c in plan.cells}
    pair = "bespoke/qwen3-8b_qwen3-4b-base/lsp-0.50/p+cot+a"
    released, corrected = by_name[f"{pair}/released/seed-42"], by_name[f"{pair}/corrected/seed-42"]
    assert released["optimizer"].pop("batch_rows") == 4
    assert corrected["optimizer"].pop("batch_rows") == 8
    assert released["optimizer"] == corrected["optimizer"]
    assert released["validation_view"] == "same" and corrected["validation_view"] == "full"


def leaves(tables: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, value in tables.items():
        found += leaves(value, (*path, key)) if isinstance(value, dict) else [(*path, key)]
    return found


def changed(value: Any) -> Any:
    """Another value of the same kind."""
    words = {
        "forward_kl": "reverse_kl",
        "row": "token",
        "float32": "weight",
        "student": "teacher",
        "bfloat16": "float32",
        "protocol": "math-verify",
        "0.5.2": "0.9.0",
        "vllm": "transformers",
        "zero2": "zero3",
        "replicated": "offloaded",
        "device": "main_memory",
        "live": "cached",
    }
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value * 2 if value > 1 or (value == 1 and isinstance(value, int)) else value / 2 if value else 4096
    if isinstance(value, list):
        return value[:1]
    return words[value]


NOT_IN_A_KEY = {
    ("evaluation", "expected_tokens"): "for estimates only",
    ("evaluation", "baselines"): "which models, not how",
    ("evaluation", "benchmarks"): "which benchmarks, not how",
}


def test_every_setting_of_an_experiment_changes_a_key() -> None:
    """The released code parsed its batch accumulation and never used it; here a setting without effect fails."""
    tables = tomllib.loads((EXPERIMENTS / "defaults.toml").read_text(encoding="utf-8"))
    rows, spoken = load("halves"), load("on-policy")
    # No other span can be taught by stored states; how a student speaks is read where it speaks.
    of_rows = [cell for cell in rows.cells() if cell.span == "left"]
    of_rollouts = [cell for cell in spoken.cells() if cell.span == "rollout-128"]
    planned = [
        (loaded, cells, set(make_plan(loaded, cells, environment, baselines=False).stages))
        for loaded, cells in ((rows, of_rows), (spoken, of_rollouts))
    ]
    for section in ("training", "evaluation", "grading", "data"):
        for path in leaves({section: tables[section] if section != "data" else {"bespoke": tables["data"]["bespoke"]}}):
            if path in NOT_IN_A_KEY:
                continue
            loaded, cells, keys = planned["rollouts" in path]
            fields = copy.deepcopy(loaded.experiment.model_dump())
            target = fields
            for part in path[:-1]:
                target = target[part]
            target[path[-1]] = changed(target[path[-1]])
            experiment = type(loaded.experiment).model_validate(fields)
            other = type(loaded)(loaded.name, loaded.file, experiment, loaded.catalogue)
            assert set(make_plan(other, cells, environment, baselines=False).stages) != keys, path


NOT_READ = {
    ("grade", "prompt"): "comes with the benchmark, whose fields grading reads; the samples were made with it",
    ("prove_training", "taken"): "a machine at another moment is another one",
    ("prove_decoding", "taken"): "the same",
}


@pytest.mark.parametrize("stage", SETTINGS)
def test_every_setting_of_a_stage_is_read_by_the_stage(stage: StageName) -> None:
    """The key says that a setting matters; this says that the stage looks at it."""
    read: set[str] = set()
    modules = imported_modules(f"essence.stages.{stage}")
    for module in {name for name in modules if not name.startswith("essence.settings")}:
        file = PROJECT.joinpath(*module.split(".")).with_suffix(".py")
        tree = ast.parse((file if file.is_file() else file.with_suffix("") / "__init__.py").read_text(encoding="utf-8"))
        read |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert fields_of(SETTINGS[stage]) - read == {field for of, field in NOT_READ if of == stage}


def fields_of(record: type[BaseModel]) -> set[str]:
    """Names of the fields of a record and of the records in it."""
    names: set[str] = set()
    for name, field in record.model_fields.items():
        inner = field.annotation
        is_record = isinstance(inner, type) and issubclass(inner, BaseModel)
        names |= {name} | (fields_of(inner) if is_record else set())
    return names


@pytest.mark.parametrize("word", ["/root", "/home", "/work"])
def test_experiments_name_no_folder_of_a_machine(word: str) -> None:
    for file in EXPERIMENTS.glob("*.toml"):
        assert word not in file.read_text(encoding="utf-8"), file.relative_to(PROJECT)
