"""The whole matrix through the command line: killed, stopped, held, damaged, started again."""

import json
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from support.processes import stage_processes, wait_for
from support.project import MICRO, PROJECT, command_line, invoke

pytestmark = pytest.mark.slow


def start(runs: Path, *arguments: str) -> subprocess.Popen[str]:
    line = command_line("reproduce", str(MICRO), "--runs", str(runs), *arguments)
    return subprocess.Popen(line, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def plan_of(runs: Path) -> dict[str, Any]:
    return json.loads((runs / "micro" / "plan.json").read_text(encoding="utf-8"))


def manifests(runs: Path) -> dict[str, dict[str, Any]]:
    stages = plan_of(runs)["stages"]
    return {i: json.loads((runs / "stages" / i / "manifest.json").read_text(encoding="utf-8")) for i in stages}


def test_everything_is_there_and_the_second_run_does_nothing(micro: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    # The run directory is held meanwhile.
    shutil.copytree(micro, runs)
    report = runs / "micro" / "report"
    assert {p.name for p in report.iterdir()} >= {"report.html", "report.md", "report.json", "figures"}
    resolved = runs / "micro" / "experiment.json"
    there = json.loads(resolved.read_text(encoding="utf-8"))
    before = {p: p.stat().st_mtime_ns for p in runs.rglob("*") if p.is_file()}
    again = invoke("reproduce", str(MICRO), "--runs", str(runs))
    assert again.returncode == 0
    assert "micro: all 15 stages were done before." in again.stdout
    after = {p: p.stat().st_mtime_ns for p in runs.rglob("*") if p.is_file()}
    # The copy lies elsewhere as seen from the experiment's file: that is noted once, and nothing else.
    assert {p for p in {*before, *after} if before.get(p) != after.get(p)} <= {resolved}
    here = json.loads(resolved.read_text(encoding="utf-8"))
    assert {key for key in {*there, *here} if there.get(key) != here.get(key)} <= {"file"}
    assert invoke("reproduce", str(MICRO), "--runs", str(runs)).returncode == 0
    assert {p: p.stat().st_mtime_ns for p in runs.rglob("*") if p.is_file()} == after


def test_every_manifest_is_whole_and_verifies(micro: Path) -> None:
    done = invoke("verify", str(micro), "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0 and found["ok"] and found["stages"] == 15 and found["unfinished"] == []
    for manifest in manifests(micro).values():
        assert manifest["code"]["source_sha256"]
        assert manifest["software"]["packages"]["torch"] == "2.13.0+cpu"
        assert manifest["cost"]["wall_s"] > 0


@pytest.mark.parametrize("pattern", ["best/model.safetensors", "samples.jsonl", "tokens.arrow"])
def test_one_changed_byte_is_found_and_named(micro: Path, tmp_path: Path, pattern: str) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(micro, runs)
    victim = sorted((runs / "stages").glob(f"*/output/{pattern}"))[0]
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    done = invoke("verify", str(runs / "micro"))
    assert done.returncode == 1
    assert f"{victim}: content differs" in done.stdout
    victim.unlink()
    assert f"{victim}: missing" in invoke("verify", str(runs)).stdout


def test_an_edited_manifest_is_found(micro: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(micro, runs)
    generate = next(c["evaluations"][0]["generate"] for c in plan_of(runs)["cells"])
    manifest = runs / "stages" / generate / "manifest.json"
    record = json.loads(manifest.read_text(encoding="utf-8"))
    record["settings"]["resolved"]["samples"] = 64
    manifest.write_text(json.dumps(record), encoding="utf-8")
    done = invoke("verify", str(runs))
    assert done.returncode == 1
    assert f"{manifest}: its settings, inputs, environment or source do not give its key" in done.stdout
    assert f"{manifest}: edited after it was written" in done.stdout
    assert f"{manifest}: changed since" in done.stdout


def test_ctrl_c_stops_the_stages_and_says_how_to_go_on(tmp_path: Path) -> None:
    host = start(tmp_path)
    wait_for(lambda: stage_processes(tmp_path))
    second = invoke("reproduce", str(MICRO), "--runs", str(tmp_path))
    assert second.returncode == 2
    assert f"run directory {tmp_path / 'micro'} is held by process {host.pid} on" in second.stderr
    status: dict[str, Any] = {}

    def one_runs() -> bool:  # which none does for a moment between two
        told = invoke("status", "--experiment", "micro", "--runs", str(tmp_path), "--json").stdout
        status.update(json.loads(told))
        return int(status["counts"]["running"]) >= 1

    wait_for(one_runs)
    assert f"process {host.pid}" in status["held_by"]
    host.send_signal(signal.SIGINT)
    output, errors = host.communicate(timeout=300)
    assert host.returncode == 130, output + errors
    assert f"to go on: invoke reproduce {MICRO} --runs {tmp_path}" in output
    assert stage_processes(tmp_path) == []


def test_a_failed_cell_does_not_stop_the_others(micro: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(micro, runs)
    experiment = tmp_path / "uneven.toml"
    matrix = '[[matrix]]\ndataset=["tiny"]\npair=["tiny-teacher_tiny-student"]\nlsp=[{}]\n'
    text = f'extends = "{MICRO}"\ntitle = "uneven"\n' + matrix.format("1.0") + matrix.format("0.5")
    experiment.write_text(text + "train_rows = [100000]\n", encoding="utf-8")
    done = invoke("run", "--experiment", str(experiment), "--runs", str(runs))
    assert done.returncode == 2
    assert "need 100008" in done.stdout and "Failed: train tiny/rows-100000" in done.stdout
    assert f"To try again: invoke run --experiment {experiment} --runs {runs}" in done.stdout
    state = json.loads(invoke("status", "--experiment", "uneven", "--runs", str(runs), "--json").stdout)
    assert len(state["failed"]) == 1 and state["failed"][0]["curable"]
    graded = [cell for cell in state["cells"] if "lsp-1.00" in cell["name"]]
    assert set(graded[0]["stages"].values()) == {"done"}


def test_clean_removes_what_only_one_experiment_needs(micro: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(micro, runs)
    stale = runs / "stages" / "train-0123456789abcdef"
    stale.mkdir()
    options = ("--runs", str(runs))
    assert f"would remove {stale}" in invoke("clean", *options).stdout and stale.exists()
    assert invoke("clean", "--yes", *options).returncode == 0
    assert not stale.exists() and len(list((runs / "stages").iterdir())) == 15
    assert invoke("clean", "--experiment", "micro", "--yes", *options).returncode == 0
    assert list((runs / "stages").iterdir()) == [] and not (runs / "micro").exists()
