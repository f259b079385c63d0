"""A researcher's own rows, from every kind of local file, and the example of docs/data.md unchanged."""

import gzip
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from support.project import PROJECT, invoke
from support.some_resources import some_resources

pytest.importorskip("transformers", reason="transformers is not installed")

from safetensors.numpy import save_file

from essence.errors import InputError
from essence.evaluation.benchmarks import Problem
from essence.evaluation.requests import render_prompts
from essence.models.loading import load_tokenizer
from essence.plan.catalogue import DatasetPin, to_source
from essence.progress import Progress, StageContext, StopRequest
from essence.settings import DownloadSettings, TokenizeSettings
from essence.stages import download, tokenize
from essence.stages.tiny.toy_tokenizer import END_OF_TEXT, write_tokenizer


@pytest.fixture(autouse=True)
def _without_containers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The experiments ask for GPUs, and a Docker engine of other tests may answer."""
    monkeypatch.setenv("ESSENCE_ENGINE", "local")


def messages(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def rows(count: int) -> list[dict[str, Any]]:
    return [messages(f"What is {n}+3?", f"<think>It is {n + 3}.</think>The sum is {n + 3}.") for n in range(count)]


def lines(of: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in of)


def write_rows(folder: Path, name: str, of: list[dict[str, Any]]) -> Path:
    """The rows as a file of the kind that the name says."""
    path = folder / name
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(of), path)
    else:
        text = json.dumps(of, indent=1) if name.startswith("list.") else lines(of)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def model_folder(folder: Path) -> Path:
    """A tokenizer with as little of a model as a download accepts."""
    write_tokenizer(folder, END_OF_TEXT)
    (folder / "config.json").write_text('{"model_type": "none"}')
    save_file({"none": np.zeros(1, np.float32)}, folder / "model.safetensors")
    return folder


def context(folder: Path, **inputs: Path) -> StageContext:
    (folder / "partial").mkdir(parents=True, exist_ok=True)
    progress = Progress(folder / "progress.json")
    return StageContext(folder / "partial", inputs, some_resources(threads=1), progress, StopRequest())


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    model_folder(folder / "model")
    return folder


SETTINGS = TokenizeSettings.model_validate(
    {
        "format": "messages",
        "keep_generation_header": False,
        "markers": "lenient",
        "faulty_rows": "reject",
        "max_row_characters": 10_000,
        "max_rejected_share": 0.0,
        "decontamination": {"problem_fields": {}, "overlap_words": 13, "remove": False},
    }
)


def tokenized(folder: Path, path: Path, tokenizer: Path) -> str:
    """Fingerprint of the tokens, through both stages."""
    source = to_source("dataset", "mine", DatasetPin(path=str(path), format="messages"))
    fetched = context(folder / "download")
    download.run(DownloadSettings(source=source), fetched)
    outcome = tokenize.run(SETTINGS, context(folder / "tokenize", rows=fetched.partial, tokenizer=tokenizer))
    assert outcome.results.rows_kept == 20
    return str(outcome.data.tokens_sha256)


NAMES = ["rows.jsonl", "rows.jsonl.gz", "rows.json", "list.json", "list.json.gz", "rows.parquet"]


def test_every_kind_of_file_gives_the_same_tokens(tmp_path: Path, tokenizer: Path) -> None:
    found = {}
    for name in NAMES:
        (tmp_path / name).mkdir()
        found[name] = tokenized(tmp_path / name, write_rows(tmp_path / name, name, rows(20)), tokenizer)
    folder = tmp_path / "folder"
    folder.mkdir()
    write_rows(folder, "a.parquet", rows(20)[:9])
    write_rows(folder, "b.jsonl", rows(20)[9:])
    found["folder"] = tokenized(tmp_path / "of-folder", folder, tokenizer)
    assert len(set(found.values())) == 1, found


def test_files_choose_the_rows_of_a_folder(tmp_path: Path, tokenizer: Path) -> None:
    folder = tmp_path / "own"
    (folder / "data").mkdir(parents=True)
    write_rows(folder, "data/rows.jsonl", rows(20))
    (folder / "meta.json").write_text('{\n "a": 1\n}\n')
    with pytest.raises(InputError, match=r"meta\.json is no file of rows; remove it, or name the files with `files`"):
        tokenized(tmp_path / "all", folder, tokenizer)
    chosen = DatasetPin(path=str(folder), format="messages", files=["data/*.jsonl"])
    source = to_source("dataset", "mine", chosen)
    fetched = context(tmp_path / "download")
    download.run(DownloadSettings(source=source), fetched)
    assert [p.name for p in fetched.partial.rglob("*") if p.is_file()] == ["rows.jsonl"]
    state = source.path_state
    (folder / "meta.json").write_text("{}")
    assert to_source("dataset", "mine", chosen).path_state == state
    write_rows(folder, "data/rows.jsonl", rows(21))
    assert to_source("dataset", "mine", chosen).path_state != state


def test_a_template_that_renders_nothing_is_refused_where_it_does(tmp_path: Path, tokenizer: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tokenizer / "model", model)
    for file in model.glob("*.jinja"):
        file.unlink()
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": "{# nothing #} "}))
    (tmp_path / "rows" / "rows").mkdir(parents=True)
    write_rows(tmp_path / "rows" / "rows", "rows.jsonl", rows(3))
    with pytest.raises(InputError, match="the chat template renders nothing"):
        tokenize.run(SETTINGS, context(tmp_path / "tokenize", rows=tmp_path / "rows", tokenizer=tmp_path))
    with pytest.raises(InputError, match="the chat template renders nothing"):
        render_prompts(load_tokenizer(model), [Problem("7", "1+1?", "2")], "{problem}")


def example() -> tuple[str, dict[str, Any]]:
    """The experiment and the row of docs/data.md."""
    section = (PROJECT / "docs" / "data.md").read_text(encoding="utf-8").partition("## Your own traces")[2]
    toml = re.search(r"```toml\n(.*?)```", section, re.DOTALL)
    row = re.search(r"```json\n(.*?)```", section, re.DOTALL)
    assert toml and row
    return toml.group(1), json.loads(row.group(1))


@pytest.mark.slow
def test_the_example_of_the_documentation_runs_as_it_stands(tmp_path: Path) -> None:
    """Only the student and the benchmarks, which need network, are replaced, with --pins."""
    experiment, row = example()
    (tmp_path / "mine.toml").write_text(experiment, encoding="utf-8")
    bad = [messages("What is 4+4?", "Eight."), messages("What is 1+1?", "<think>Two.</think>2.")]
    write_rows(tmp_path, "rows.jsonl", [row, *rows(98), *bad])
    model_folder(tmp_path / "student")
    write_rows(tmp_path, "problems.jsonl", [{"problem": "What is $1 + 1$?", "answer": "2"}])
    benchmarks = "".join(f'[benchmarks.{name}]\npath = "problems.jsonl"\n' for name in ("aime24", "aime25", "math500"))
    pins = f'[models.qwen3-4b-base]\npath = "student"\n{benchmarks}'
    (tmp_path / "pins.toml").write_text(pins, encoding="utf-8")
    options = ["--experiment", str(tmp_path / "mine.toml"), "--pins", str(tmp_path / "pins.toml")]
    options += ["--runs", str(tmp_path / "runs")]
    before = invoke("plan", *options)
    assert before.returncode == 0 and "rows read" not in before.stdout
    done = invoke("run", *options, "--only", "tokenize")
    assert done.returncode == 0, done.stdout + done.stderr
    after = invoke("plan", *options)
    for said in (done.stdout, after.stdout):
        assert "101 rows read, 100 kept, 1 rejected (1.0 %)" in said
        assert "1 rejected: no thought markers" in said
        assert "aime24: 1 repeat one of its 1 problems, 0 overlap" in said
    (examples,) = (tmp_path / "runs").rglob("output/rejections.json")
    assert str(examples) in done.stdout
    found = json.loads(examples.read_text(encoding="utf-8"))
    assert found["rejections"]["no thought markers"]["examples"][0]["position"] == 99


def test_too_many_bad_rows_stop_the_run_with_the_table(tmp_path: Path) -> None:
    experiment, row = example()
    tables = '\n[decontamination]\nbenchmarks = []\n\n[models.qwen3-4b-base]\npath = "student"\n'
    (tmp_path / "mine.toml").write_text(experiment + tables, encoding="utf-8")
    write_rows(tmp_path, "rows.jsonl", [row, messages("What is 4+4?", "Eight.")])
    model_folder(tmp_path / "student")
    runs = tmp_path / "runs"
    done = invoke("run", "--experiment", str(tmp_path / "mine.toml"), "--runs", str(runs), "--only", "tokenize")
    assert done.returncode == 2
    assert "1 rejected: no thought markers" in done.stdout
    assert 'row 1: {"messages": [{"role": "user", "content": "What is 4+4?"}' in done.stdout
    assert "1 of 2 rows are rejected, the share allowed is 0.05" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
