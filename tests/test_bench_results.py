"""Files of bench/results: a script writes none that lacks a peer, and its forms do the same work."""

import argparse
import importlib
from pathlib import Path
from typing import Any

import pytest

from support.project import PROJECT

RESULTS = PROJECT / "bench" / "results"


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
