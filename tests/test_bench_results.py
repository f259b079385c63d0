"""Files of bench/results: each has its machine, day, code and peers, and pages have what they say."""

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from support.project import PROJECT

RESULTS = PROJECT / "bench" / "results"
FILES = sorted(RESULTS.glob("*.json"))
PAGES = sorted([*PROJECT.glob("*.md"), *(PROJECT / "docs").glob("*.md")])
FACTS = ("date", "busy_cores_at_start", "machine", "packages", "code")
SIMULATED = ("estimands", "plans", "words")
"""Made-up runs from a seed: the same on every machine, and no time."""
COMPARED = {
    "loss": (
        "summary",
        {"released", "dense", "kit", "liger", "CE alone: torch", "CE alone: torch, chunks", "CE alone: kit"},
    ),
    "train": ("rounds", {"released", "kit", "liger", "trl"}),
}
"""File -> where its forms are, and which may not lack."""


def ids(files: list[Path]) -> list[str]:
    return [file.stem for file in files]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Modules of bench/ by name, as its scripts import each other."""
    monkeypatch.syspath_prepend(PROJECT / "bench")
    return importlib.import_module


def test_a_file_of_results_is_refused_without_a_peer(
    bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measurement = bench("measurement")
    monkeypatch.setitem(measurement.PEERS, "loss", ("numpy", "no-such-peer"))
    with pytest.raises(SystemExit) as ended:
        measurement.refuse_without_peers("loss", RESULTS / "loss.json")
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "no-such-peer is not installed" in said and measurement.INSTALL in said
    assert "numpy" not in said


def test_elsewhere_a_measurement_without_a_peer_is_written(
    bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measurement = bench("measurement")
    monkeypatch.setitem(measurement.PEERS, "loss", ("no-such-peer",))
    measurement.refuse_without_peers("loss", tmp_path / "loss.json")
    assert measurement.at_start("loss", 1)["packages"] == {"no-such-peer": None}


def test_a_version_is_found_however_the_name_is_spelt(bench: Any) -> None:
    """`liger_kernel` in its metadata was `null` in the files, as it was looked up as `liger-kernel`."""
    found = bench("measurement").versions(["pydantic-core", "pydantic_core"])
    assert found["pydantic-core"] and len(set(found.values())) == 1


def test_the_command_that_installs_the_peers_names_locks(bench: Any) -> None:
    script, _, *layers = bench("measurement").INSTALL.split()
    assert (PROJECT / script).is_file()
    locks = {lock.stem.removesuffix("-cpu") for lock in (PROJECT / "locks").glob("*.txt")}
    assert {"cpu", "peers", *layers} <= locks


def test_a_page_says_where_and_when(bench: Any) -> None:
    machine = {"cpu": "Intel(R) Xeon(R) Processor", "cpu_count": 2, "memory_gib": 23.54, "gpus": []}
    record = {"machine": machine, "date": "2026-11-29T20:15:01+00:00"}
    assert bench("measurement").where_and_when(record) == "Intel Xeon, 2 cores, 24 GiB, 2026-11-29"


def test_all_forms_of_the_loss_have_the_exact_gradient(bench: Any) -> None:
    """In float32: those of the whole objective, and those of cross-entropy alone, PyTorch's own among them."""
    loss = bench("loss")
    work = {"tokens": 16, "hidden": 16, "teacher_hidden": 24, "vocabulary": 640, "dtype": "float32", "device": "cpu"}
    errors = loss.head_gradient_errors(loss.forms(compiled=False), argparse.Namespace(**work))
    assert {"released", "kit", "CE alone: torch", "CE alone: torch, chunks", "CE alone: kit"} <= errors.keys()
    assert {name: error for name, error in errors.items() if error > 1e-5} == {}


@pytest.mark.parametrize("file", FILES, ids=ids(FILES))
def test_a_file_says_where_when_and_beside_what(file: Path, bench: Any) -> None:
    record, kind = json.loads(file.read_text(encoding="utf-8")), file.stem.partition("-")[0]
    if kind in SIMULATED:
        assert "seed" in record
        return
    missing = [fact for fact in FACTS if fact not in record]
    assert missing == [], f"{file.name}: measure anew, {bench('measurement').INSTALL}"
    versions = record["packages"]
    assert versions.keys() == set(bench("measurement").PEERS[kind]), file.name
    assert all(versions.values()), f"{file.name} compares with a peer of unknown version: {versions}"
    assert record["code"]["commit"] and record["machine"]["cpu"]
    assert record["code"]["dirty"] is False, f"{file.name}: measured with changes that no commit has"


@pytest.mark.parametrize("file", FILES, ids=ids(FILES))
def test_a_file_has_a_measurement_of_each_peer(file: Path) -> None:
    where, forms = COMPARED.get(file.stem.partition("-")[0], ("", set[str]()))
    if forms:
        assert forms <= json.loads(file.read_text(encoding="utf-8"))[where].keys(), file.name


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_a_page_has_what_the_files_say(page: Path, bench: Any) -> None:
    text = page.read_text(encoding="utf-8")
    assert bench("tables").renewed(text) == text, "python bench/tables.py"


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_a_page_that_quotes_a_measurement_names_its_machine(page: Path, bench: Any) -> None:
    text = " ".join(page.read_text(encoding="utf-8").split())
    quoted = [file for file in FILES if file.stem.partition("-")[0] not in SIMULATED and f"results/{file.name}" in text]
    for file in quoted:
        assert bench("measurement").where_and_when(json.loads(file.read_text(encoding="utf-8"))) in text, file.name


@pytest.mark.assets
def test_the_stage_that_is_measured_runs(bench: Any, assets: Path, tmp_path: Path) -> None:
    """Its inputs are made for it, as finished stages."""
    arguments = argparse.Namespace(scratch=tmp_path, tokenizer=assets / "tokenizer", rows=None, threads=1)
    found = bench("tokenize_stage").large(arguments, 10)
    assert found["rows"] == 10 and found["tokens"] > 10_000 and found["encoder"].startswith("tiktoken ")
