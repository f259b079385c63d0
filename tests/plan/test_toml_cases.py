"""Experiment files as people write them, mistakes included: each loads, or is refused in one sentence that names it.

The files are made from one valid experiment by one change each; then hypothesis changes any key of it to any value.
"""

import json
import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomlkit

from essence.engines.slurm.site import SITES, load_site
from essence.errors import KitError
from essence.paths import local_files
from essence.plan.cells import train_settings
from essence.plan.experiment import EXPERIMENTS, load
from essence.report.claims.definition import load_claims
from support.planned_sources import reasons
from support.project import invoke

BASE = """\
extends = "tiny"
title = "own"
[axes]
seed = [1]
[[matrix]]
dataset = ["mine"]
pair = ["myteacher_mystudent"]
lsp = [0.5]
protocol = ["released"]
[datasets.mine]
path = "rows.jsonl"
format = "messages"
[data.mine]
max_row_tokens = 256
train_rows = 16
validation_rows = 4
split_seed = 42
tokenizer = "student"
max_row_characters = 1000000
max_rejected_share = 0.05
[models.mystudent]
path = "MODELS"
[models.myteacher]
path = "MODELS"
[decontamination]
benchmarks = []
[evaluation]
benchmarks = ["sums"]
samples = 1
max_new_tokens = 8
max_model_tokens = 200
[benchmarks.sums]
path = "problems.jsonl"
problem_field = "problem"
answer_field = "answer"
answer_type = "integer"
prompt = "{problem}"
[training]
epochs = 1
validations_per_epoch = 1
"""
LAST = "validations_per_epoch = 1\n"
LSP, SEED, EPOCHS, PATH, EXTENDS = "lsp = [0.5]", "seed = [1]", "epochs = 1\n", '"rows.jsonl"', '"tiny"'
NAMES = "letters, digits"

WORKS: dict[str, tuple[str, str]] = {
    "crlf": ("\n", "\r\n"),
    "a byte-order mark": ("extends", "\ufeffextends"),
    "batch_rows_odd": (EPOCHS, "epochs = 1\nbatch_rows = 1\ngradient_accumulation = 8\n"),
    "batch_tokens_small": (EPOCHS, "epochs = 1\nbatch_tokens = 1\n"),
    "lora_rank_huge": (LAST, f"{LAST}[training.lora]\nrank = 4096\n"),
    "lsp_0.005_0.004": (LSP, "lsp = [0.005, 0.004999999]"),
    "lsp_1e-3": (LSP, "lsp = [1e-3, 1e-9]"),
    "lsp_float_noise": (LSP, "lsp = [0.30000000000000004, 0.3]"),
    "lsp_int1": (LSP, "lsp = [1, 0.5]"),
    "model_underscore": ("myteacher", "my_teacher"),
    "underscores on both sides": ("myteacher", "my__teacher_"),
    "the largest seed": (SEED, f"seed = [{2**63 - 1}]"),
    "an integer where decimals are allowed": (EPOCHS, "epochs = 1\ntemperature = 1\n"),
    "a name of 64 characters": ("mine", "d" * 64),
    "a path with a folder": (PATH, '"own/../rows.jsonl"'),
}
REFUSED: dict[str, tuple[str, str, list[str]]] = {
    # numbers out of range
    "lr_inf": (EPOCHS, "epochs = 1\nmax_lr = inf\n", ["training.max_lr = inf", "finite"]),
    "lr_huge": (EPOCHS, "epochs = 1\nmax_lr = 1e30\n", ["training.max_lr = 1e+30", "less than or equal to 10"]),
    "temp_inf": (EPOCHS, "epochs = 1\ntemperature = inf\n", ["training.temperature = inf", "finite"]),
    "temp_nan": (EPOCHS, "epochs = 1\ntemperature = nan\n", ["training.temperature = nan", "finite"]),
    "epochs_huge": (EPOCHS, "epochs = 1000000000000000000000\n", ["training.epochs", "equal to 10000"]),
    "epochs_hex": (EPOCHS, f"epochs = 0x{'f' * 9000}\n", ["training.epochs = a number of more than", "10000"]),
    "epochs_digits": (EPOCHS, f"epochs = {'9' * 9000}\n", ["not valid TOML", "digits"]),
    "clip_tiny": (EPOCHS, "epochs = 1\ngradient_clip_norm = 1e-300\n", ["gradient_clip_norm = 1e-300", "greater"]),
    "vpe_huge": ("validations_per_epoch = 1", "validations_per_epoch = 100000", ["validations_per_epoch", "10000"]),
    "mem_huge": (EPOCHS, "epochs = 1\n[resources]\nmemory_gib = 1e9\n", ["resources.memory_gib", "1000000"]),
    "threads_huge": (EPOCHS, "epochs = 1\n[resources]\nthreads = 100000\n", ["resources.threads = 100000"]),
    "validation_0": ("validation_rows = 4", "validation_rows = 0", ["data.mine.validation_rows = 0", "greater than 0"]),
    "lsp_inf": (LSP, "lsp = [inf]", ["matrix[0].lsp[0] = inf"]),
    "lsp_nan": (LSP, "lsp = [nan]", ["matrix[0].lsp[0] = nan"]),
    "seed_neg": (SEED, "seed = [-1]", ["axes.seed[0] = -1"]),
    "seed_2_63_lora": (
        SEED,
        "seed = [9223372036854775808]\n[training.lora]\nrank = 4",
        ["axes.seed[0] = 9223372036854775808", "9223372036854775807"],
    ),
    "seed_2_63": (SEED, "seed = [9223372036854775808]", ["axes.seed[0] = 9223372036854775808", "9223372036854775807"]),
    "split_seed_neg": ("split_seed = 42", "split_seed = -5", ["data.mine.split_seed = -5", "or 'cell'"]),
    "option_inf": (
        EPOCHS,
        "epochs = 1\n[models.tiny-teacher.options]\nrope_theta = inf\n",
        ["models.tiny-teacher.options", "finite"],
    ),
    "option_huge": (
        EPOCHS,
        "epochs = 1\n[datasets.tiny.options]\nrows = 1000000000000\n",
        ["datasets.tiny.options", "rows = 1000000000000", "10000000"],
    ),
    "architecture": (
        EPOCHS,
        "epochs = 1\n[models.tiny-teacher.architecture]\nlayers = true\n",
        ["models.tiny-teacher.architecture.layers = true", "integer"],
    ),
    # values of another type
    "lsp_true": (LSP, "lsp = [true]", ["matrix[0].lsp[0] = true", "number", "a boolean"]),
    "lsp_str": (LSP, 'lsp = ["0.5"]', ["matrix[0].lsp[0] = '0.5'", "number", "text in quotes"]),
    "lsp_scalar": (LSP, "lsp = 0.5", ["matrix[0].lsp = 0.5", "list"]),
    "train_rows_bool": ("train_rows = 16", "train_rows = true", ["data.mine.train_rows = true", "integer"]),
    "lr_str": (EPOCHS, 'epochs = 1\nmax_lr = "1e-4"\n', ["training.max_lr = '1e-4'", "text in quotes"]),
    "seed_bool": (SEED, "seed = [true]", ["axes.seed[0] = true", "a boolean"]),
    "seed_str": (SEED, 'seed = ["1"]', ["axes.seed[0] = '1'", "text in quotes"]),
    "epochs_half": (EPOCHS, "epochs = 0.5\n", ["training.epochs = 0.5", "integer"]),
    "epochs_float": (EPOCHS, "epochs = 1.0\n", ["training.epochs = 1.0", "integer", "decimals"]),
    "epochs_date": (EPOCHS, "epochs = 2024-01-01\n", ["training.epochs = 2024-01-01", "a date or time"]),
    "title_number": ('title = "own"', "title = 3", ["title = 3", "string"]),
    "path_number": (PATH, "3", ["datasets.mine.path = 3", "string"]),
    "matrix_table": ("[[matrix]]", "[matrix]", ["matrix", "list"]),
    "matrix_empty": ('dataset = ["mine"]', "dataset = []", ["matrix is empty", "'dataset'"]),
    "lora_all": (EPOCHS, 'epochs = 1\n[training.lora]\ntargets = "all-linear"\n', ["training.lora.targets", "list"]),
    "lora_target": (
        EPOCHS,
        'epochs = 1\n[training.lora]\ntargets = ["query"]\n',
        ["training.lora.targets[0]", "q_proj"],
    ),
    "lsp_int1_and_1.0": (LSP, "lsp = [1, 1.0]", ["twice", "lsp-1.00"]),
    "dup_table": ("[decontamination]", "[axes]\n[decontamination]", ["not valid TOML", "axes"]),
    "data_missing_key": ("validation_rows = 4\n", "", ["'data.mine.validation_rows' is missing"]),
    "data_str": ("[data.mine]", "[data]\nx = 1\n[data.mine]", ["data.x = 1"]),
    # encodings
    "latin1": ('"own"', '"caf\udce9"', ["byte 0xe9 in line 2 is not UTF-8"]),
    # what it extends
    "extends_dir": (EXTENDS, '".."', ["extends = '..'", "unknown experiment"]),
    "extends_list": (EXTENDS, '["tiny"]', ["extends = ['tiny']", "in quotes"]),
    "extends_missing": (EXTENDS, '"nope.toml"', ["extends = 'nope.toml'", "no such experiment file"]),
    "extends_number": (EXTENDS, "3", ["extends = 3", "in quotes"]),
    "extends_self": (EXTENDS, '"mine.toml"', ["extends itself"]),
    "extends_empty": (EXTENDS, '""', ["extends = ''", "unknown experiment"]),
    "extends_false": (EXTENDS, "false", ["extends = false", "in quotes"]),
    "extends_folder": (EXTENDS, '"folder.toml"', ["extends = 'folder.toml'", "no such experiment file"]),
    "extends_pins": (EXTENDS, '"pins"', ["extends = 'pins'", "unknown experiment"]),
    "extends_site": (EXTENDS, '"sites/generic"', ["extends = 'sites/generic'", "unknown experiment"]),
    "extends_nul": (EXTENDS, '"a\\u0000.toml"', ["extends = 'a\\x00.toml'", "NUL"]),
    "extends_long": (EXTENDS, f'"{"a" * 400}.toml"', ["extends = 'aaa", "is not allowed"]),
    "extends_otheruser": (EXTENDS, '"~nosuchuser/x.toml"', ["extends = '~nosuchuser", "home folder"]),
    # names
    "ds_long": ("mine", "d" * 400, ["datasets.", NAMES]),
    "ds_65": ("mine", "d" * 65, ["datasets.", NAMES]),
    "ds_slash": ('"mine"', '"a/../../b"', ["matrix[0].dataset[0] = 'a/../../b'", NAMES]),
    "name_slash": ("datasets.mine", 'datasets."a/../b"', ["datasets.'a/../b'", NAMES]),
    "ds_space": ("datasets.mine", 'datasets."my data"', ["'my data'", NAMES]),
    "ds_uni": ("datasets.mine", 'datasets."数据"', ["数据", NAMES]),
    "ds_empty": ("datasets.mine", 'datasets.""', ["datasets.''", NAMES]),
    "ds_dots": ("datasets.mine", 'datasets.".."', ["datasets...", NAMES]),
    "ds_newline": ("datasets.mine", 'datasets."mine\\n"', ["mine\\n", NAMES]),
    "model_name": ("models.mystudent", 'models."my student"', ["models.'my student'", NAMES]),
    "benchmark_name": ("benchmarks.sums", 'benchmarks."s/ums"', ["benchmarks.'s/ums'", NAMES]),
    "data_name": ("data.mine", 'data."m/ine"', ["data.'m/ine'", NAMES]),
    # paths
    "path_otheruser": (PATH, '"~nosuchuser/x.jsonl"', ["datasets.mine.path", "~nosuchuser", "home folder"]),
    "path_nul": (PATH, '"a\\u0000b"', ["datasets.mine.path", "NUL"]),
    "path_long": (PATH, f'"{"a" * 400}.jsonl"', ["datasets.mine.path", "too long"]),
    "path_longer": (PATH, f'"{"a/" * 3000}x"', ["datasets.mine.path", "too long"]),
    "path_dev": (PATH, '"/dev/zero"', ["datasets.mine.path = '/dev/zero'", "device"]),
    "path_pipe": (PATH, '"pipe"', ["datasets.mine.path = 'pipe'", "device, a pipe"]),
    "path_http": (PATH, '"https://example.org/rows.jsonl"', ["datasets.mine.path", "address"]),
    "path_empty": (PATH, '""', ["datasets.mine.path = ''", "a path is wanted"]),
    "path_loop": (PATH, '"loop"', ["datasets.mine.path = 'loop'", "cannot be followed"]),
}
MISSING: dict[str, tuple[str, str, str]] = {
    "path_missing": (PATH, '"nope.jsonl"', "nope.jsonl does not exist"),
    "path_home": (PATH, '"~/nope.jsonl"', "nope.jsonl does not exist"),
    "path_newline": (PATH, '"a\\nb"', "a\\nb' does not exist"),
    "path_below_a_file": (PATH, '"rows.jsonl/x"', "rows.jsonl/x does not exist"),
    "model_file": ('path = "MODELS"', 'path = "rows.jsonl"', "is a file, wanted: the folder of a model"),
    "files": (PATH, '"own"\nfiles = ["*.parquet"]', "has no file that fits files = ['*.parquet']"),
    "files_of_a_file": (PATH, '"rows.jsonl"\nfiles = ["*.parquet"]', "does not fit files = ['*.parquet']"),
}


def place(folder: Path) -> None:
    """What the experiment's paths name."""
    model = folder / "MODELS"
    model.mkdir()
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
    config = {**dict.fromkeys((*names, "intermediate_size", "vocab_size"), 8), "tie_word_embeddings": True}
    (model / "config.json").write_text(json.dumps(config))
    (folder / "rows.jsonl").write_text("{}\n")
    (folder / "problems.jsonl").write_text("{}\n")
    (folder / "own").mkdir()
    (folder / "own" / "rows.jsonl").write_text("{}\n")
    (folder / "folder.toml").mkdir()
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe")


def write(folder: Path, old: str, new: str) -> Path:
    assert old in BASE
    file = folder / "mine.toml"
    file.write_bytes(BASE.replace(old, new).encode("utf-8", "surrogateescape"))
    return file


@pytest.mark.parametrize("name", WORKS)
def test_what_works(tmp_path: Path, name: str) -> None:
    place(tmp_path)
    assert reasons(write(tmp_path, *WORKS[name])) == []


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_one_sentence(tmp_path: Path, name: str) -> None:
    place(tmp_path)
    old, new, words = REFUSED[name]
    with pytest.raises(KitError) as caught:
        reasons(write(tmp_path, old, new))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/mine.toml: ") and "\n" not in message and len(message) < 800
    for word in words:
        assert word in message


@pytest.mark.parametrize("name", MISSING)
def test_what_cannot_be_brought_in_is_one_sentence(tmp_path: Path, name: str) -> None:
    place(tmp_path)
    old, new, words = MISSING[name]
    sentences = reasons(write(tmp_path, old, new))
    assert sentences and all(words in sentence and "\n" not in sentence for sentence in sentences)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings_are_refused_by_name(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "mine.toml").write_bytes(BASE.encode(encoding))
    with pytest.raises(KitError, match=r"mine\.toml: it is UTF-(16|32)"):
        load(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param("", "matrix = []: at least 1 entry is wanted, found 0", id="empty_file"),
        pytest.param('title = "x"', "matrix = []: at least 1 entry is wanted, found 0", id="only_title"),
        pytest.param('title = "a"\ntitle = "b"', "not valid TOML: Cannot overwrite a value", id="dup_key"),
        pytest.param('title = "a"\n"title" = "b"', "not valid TOML: Cannot overwrite a value", id="quoted"),
        pytest.param("x = " + "[" * 100_000, "not valid TOML", id="deep"),
    ],
)
def test_files_that_hold_no_experiment(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "mine.toml").write_text(content)
    with pytest.raises(KitError) as caught:
        load(str(tmp_path / "mine.toml"))
    assert str(caught.value).startswith(f"{tmp_path}/mine.toml: {words}")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lsp_0.005_0.004", ["0.005", "0.004999999"]),
        ("lsp_1e-3", ["0.001", "1e-09"]),
        ("lsp_float_noise", ["0.30000000000000004", "0.30"]),
        ("lsp_int1", ["1.00", "0.50"]),
    ],
)
def test_proportions_that_are_almost_equal_are_cells_of_their_own(
    tmp_path: Path, name: str, expected: list[str]
) -> None:
    place(tmp_path)
    cells = load(str(write(tmp_path, *WORKS[name]))).cells()
    names = [f"mine/myteacher_mystudent/lsp-{lsp}/p+cot+a/released/seed-1" for lsp in expected]
    assert [cell.name for cell in cells] == names and [cell.lsp for cell in cells] == [float(lsp) for lsp in expected]


@pytest.mark.parametrize("name", ["model_underscore", "underscores on both sides"])
def test_underscores_in_the_name_of_a_model(tmp_path: Path, name: str) -> None:
    place(tmp_path)
    (cell,) = load(str(write(tmp_path, *WORKS[name]))).cells()
    assert (cell.teacher, cell.student) == (WORKS[name][1], "mystudent")


@pytest.mark.parametrize(
    ("rows", "tokens", "accumulation", "expected"),
    [(1, 0, 8, (1, 0)), (8, 1, 2, (4, 1)), (8, 0, 2, (4, 0)), (8, 4000, 2, (4, 2000)), (8, 3, 1000, (1, 1))],
)
def test_a_step_that_released_divides_never_becomes_one_of_another_kind(
    tmp_path: Path, rows: int, tokens: int, accumulation: int, expected: tuple[int, int]
) -> None:
    """batch_tokens = 1, divided by 2, must not be 0, which means steps of rows."""
    place(tmp_path)
    batch = f"batch_rows = {rows}\nbatch_tokens = {tokens}\ngradient_accumulation = {accumulation}\n"
    loaded = load(str(write(tmp_path, EPOCHS, f"epochs = 1\n{batch}")))
    optimizer = train_settings(loaded.cells()[0], loaded.experiment).optimizer
    assert (optimizer.batch_rows, optimizer.batch_tokens) == expected


def test_a_value_that_was_inherited_is_named_with_its_own_file(tmp_path: Path) -> None:
    place(tmp_path)
    write(tmp_path, EPOCHS, "epochs = 1.0\n")
    (tmp_path / "upper.toml").write_text('extends = "mine.toml"\n[training]\nmax_lr = 1e-3\n')
    with pytest.raises(KitError, match=r"mine\.toml: training\.epochs = 1\.0"):
        load(str(tmp_path / "upper.toml"))
    write(tmp_path, LSP, LSP)
    (tmp_path / "upper.toml").write_text('extends = "mine.toml"\n[datasets.mine]\nrows_wanted = 1.0\n')
    with pytest.raises(KitError, match=r"upper\.toml: datasets\.mine\.rows_wanted = 1\.0"):
        load(str(tmp_path / "upper.toml"))


def test_files_choose_in_a_local_folder(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    (folder / "data").mkdir(parents=True)
    for name in ("data/a.jsonl", "data/b.jsonl", "meta.json"):
        (folder / name).write_text("{}\n")
    found = {tuple(p.name for p in local_files(folder, patterns)) for patterns in (["data/*.jsonl"], ["data/"])}
    assert found == {("a.jsonl", "b.jsonl")}
    assert [p.name for p in local_files(folder)] == ["a.jsonl", "b.jsonl", "meta.json"]


def tables_of(text: str) -> dict[str, Any]:
    return tomllib.loads(text)


SITE = tables_of((SITES / "generic.toml").read_text())
CLAIMS = tables_of((EXPERIMENTS / "claims.toml").read_text())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"signal_s": True}, "signal_s = true"),
        ({"signal_s": "120"}, "signal_s = '120'"),
        ({"signal_s": 10**20}, "signal_s"),
        ({"rest_wait_s": float("inf")}, "rest_wait_s = inf"),
        ({"title": 3}, "title = 3"),
        ({"limits": {**SITE["limits"], "train": {**SITE["limits"]["train"], "cpus": 1.0}}}, "limits.train.cpus = 1.0"),
        ({"limits": {**SITE["limits"], "train": {**SITE["limits"]["train"], "time": "9" * 400 + "-00:00:00"}}}, "time"),
    ],
)
def test_numbers_of_a_site(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    file = tmp_path / "site.toml"
    file.write_text(tomlkit.dumps({**SITE, **change}))
    with pytest.raises(KitError) as caught:
        load_site(str(file))
    assert f"{file}: {words}"[:20] in str(caught.value) and words in str(caught.value)


@pytest.mark.parametrize(
    "name", ["~nosuchuser/site.toml", "a" * 400 + ".toml", "nope.toml", "../sites/generic", "a" * 400]
)
def test_sites_that_are_none(name: str) -> None:
    with pytest.raises(KitError):
        load_site(name)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tolerance", True),
        ("tolerance", "0.1"),
        ("tolerance", float("inf")),
        ("lsp", "0.5"),
        ("reported", float("nan")),
        ("accepts", [True, 2.0]),
        ("settings", 1.5),
        ("settings", False),
    ],
)
def test_numbers_of_a_claim(tmp_path: Path, field: str, value: Any) -> None:
    name = next(iter(CLAIMS["claims"]))
    claims = {**CLAIMS["claims"], name: {**CLAIMS["claims"][name], field: value}}
    file = tmp_path / "claims.toml"
    file.write_text(tomlkit.dumps({**CLAIMS, "claims": claims}))
    with pytest.raises(KitError) as caught:
        load_claims(file)
    assert f"{file}: [claims.{name}]: {field}" in str(caught.value)


def test_the_command_says_it_and_ends_with_2(tmp_path: Path) -> None:
    place(tmp_path)
    done = invoke("plan", "--experiment", str(write(tmp_path, LSP, "lsp = [true]")), "--runs", str(tmp_path / "runs"))
    assert done.returncode == 2 and "matrix[0].lsp[0] = true" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()
