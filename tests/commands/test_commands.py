"""What the commands say without running anything."""

import inspect
import json
import os
import re
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from essence.commands.options import select
from essence.engines.selected_run import Options
from essence.errors import ExitCode
from essence.files import write_json
from essence.record.manifest import Cost
from support.project import MICRO, PROJECT, invoke


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("run", "--lsp", "50"), "--lsp 50: must be a number greater than 0 and at most 1"),
        (("run", "--lsp", "half"), "--lsp half: must be a number"),
        (("run", "--lsp="), "--lsp : must be a number"),
        (("run", "--seed", "1.5"), "--seed 1.5: must be an integer"),
        (
            ("run", "--experiment", "bespoke", "--dataset", "bespok"),
            "unknown dataset 'bespok'; did you mean 'bespoke'?",
        ),
        (("run", "--seed", "9" * 5000), "must be an integer"),
        (("rnu",), "unknown command rnu; did you mean 'run'?"),
        (("--help", "rnu"), "unknown command rnu; did you mean 'run'?"),
        (("run", "--lps", "0.5"), "invoke run: unknown option --lps; did you mean '--lsp'?"),
        (("run", "--lps=0.5"), "invoke run: unknown option --lps; did you mean '--lsp'?"),
        (("run", "--lsp"), "--lsp needed value"),
        (("run", "xyzzy"), "invoke run: unknown word xyzzy; invoke --help run lists its options"),
        (("verify", "--jsn"), "unknown option --jsn; did you mean '--json'?"),
        (("verify",), "'folder'"),
        (("--lits",), "unknown option --lits; did you mean '--list'?"),
        (
            ("evaluate", "--model", "x", "--benchmark", "aime25", "--samples", "many"),
            "--samples many: must be an integer",
        ),
        (("run", "--protocol", "relased"), "'relased'"),
        (("run", "--engine", "dokcer"), "--engine dokcer: unknown engine"),
        (("run", "--site", "generic"), "--site generic: only --engine slurm has sites, not --engine local"),
        (("doctor", "--site", "generic"), "--site generic: only --engine slurm has sites, not --engine local"),
        (
            ("evaluate", "--model", f"owner/name@{'0' * 40}", "--benchmark", "math500", "--engine", "slurm"),
            "--engine slurm: queues jobs and ends, and invoke evaluate waits for its result; choose one of local",
        ),
        (("run", "--only", "trian"), "--only trian: unknown stage; did you mean 'train'?"),
        (("run", "--pins", "/no/such.toml"), "/no/such.toml: no such file"),
        (("reproduce", "tinny"), "unknown experiment 'tinny'; did you mean 'tiny'?"),
        (("status", "--experiment", "bespoke", "--runs", "/tmp/none"), "bespoke has not run in /tmp/none"),
        (("verify", "/tmp/no-such-run-directory"), "/tmp/no-such-run-directory: no such run directory"),
        (("reproduce", "skyt1"), "the pin of dataset 'skyt1'"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_2(arguments: tuple[str, ...], sentence: str) -> None:
    done = invoke(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr


def test_bespoke_on_a_small_machine_names_what_is_missing_and_the_miniature() -> None:
    from essence.record.facts import query_gpus

    if len(query_gpus()) >= 4:
        pytest.skip("this machine has the GPUs that bespoke needs")
    done = invoke("run", "--experiment", "bespoke", "--lsp", "0.5")
    assert done.returncode == 2
    assert "bespoke needs 4 GPUs of 80 GiB" in done.stderr and "make reproduce-tiny" in done.stderr


def test_a_proof_on_a_small_machine_names_all_that_is_missing_with_cures_of_a_proof(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it can be queued from."""
    from essence.record.facts import query_gpus

    if query_gpus():
        pytest.skip("this machine has a GPU")
    (tmp_path / "sbatch").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("ESSENCE_SITE", raising=False)
    runs = str(tmp_path / "runs")
    done = invoke("prove", "--experiment", "bespoke", "--engine", "local", "--runs", runs)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"login node: invoke prove --experiment bespoke --runs {runs} --engine slurm --site FILE.toml" in done.stderr
    assert f"miniature is proved here: invoke prove --experiment tiny --runs {runs}" in done.stderr
    assert "GPUs are asked for, and this environment holds the CPU build" in done.stderr
    assert " more)" not in done.stderr and "reproduce-tiny" not in done.stderr and "invoke run" not in done.stderr


def test_dry_run_prints_every_command_line_and_writes_nothing(tmp_path: Path) -> None:
    done = invoke("run", "--lsp", "0.5", "--dry-run", "--runs", str(tmp_path / "runs"))
    assert done.returncode == 0, done.stderr
    commands = [line for line in done.stdout.splitlines() if " -m essence.stages " in line]
    kinds = [line.split(" -m essence.stages ")[1].split()[0] for line in commands]
    assert kinds.count("train") == 1 and kinds.count("generate") == 2 and kinds.count("download") == 6
    assert "bespoke/qwen3-8b_qwen3-4b-base/lsp-0.50/p+cot+a/released/seed-42" in done.stdout
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_one_experiment_is_meant_by_all_commands(tmp_path: Path) -> None:
    """For a dry run bespoke, which leaves no record; then the only experiment; then the last one run."""
    runs = ("--runs", str(tmp_path / "runs"))
    assert "bespoke: " in invoke("run", "--lsp", "0.5", "--dry-run", *runs).stdout
    for command in ("status", "report", "export", "card"):
        done = invoke(command, *runs)
        assert done.returncode == 2 and done.stderr.startswith(f"bespoke has not run in {runs[1]} (ran: none)")
    root = tmp_path / "runs"
    for name in ("tiny", "halves"):
        write_json(root / name / "plan.json", {"cells": [], "baselines": [], "stages": {}})
        if name == "tiny":
            assert invoke("status", *runs).stderr == f"experiment tiny: the only one in {root}\n"
            assert "tiny: " in invoke("plan", *runs).stdout
    assert invoke("status", *runs).stderr.startswith(f"bespoke has not run in {root} (ran: halves, tiny)")
    write_json(root / "last.json", {"experiment": "halves"})
    assert invoke("status", *runs).stderr == f"experiment halves: the last one run in {root}\n"
    done = invoke("run", "--dry-run", "--json", *runs)
    assert done.returncode == 0 and "experiment halves: the last" in done.stderr


def test_help_shows_numbers_as_numbers() -> None:
    said = invoke("--help", "run").stdout
    assert "--lsp=FLOAT" in said and "--seed=INT" in said and "--dataset=STRING" in said and "--dry-run " in said


@pytest.mark.parametrize(
    "words",
    [("grade",), ("compare",), ("compare", "runs"), ("evaluate", "--model", "x"), ("evaluate", "--model"), ("run",)],
)
@pytest.mark.parametrize("asked", ["--help", "-h"])
def test_help_is_printed_whatever_a_task_waits_for(words: tuple[str, ...], asked: str) -> None:
    """invoke takes an option for the argument that a task waits for."""
    done, told = invoke(*words, asked), invoke("--help", words[0])
    assert (done.returncode, done.stderr) == (0, "") and done.stdout == told.stdout
    assert f"] {words[0]} [" in told.stdout


def test_the_docs_have_every_exit_code() -> None:
    table = re.findall(r"^\| ([0-9]+) \| ", (PROJECT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    assert [int(code) for code in table] == [code for code in ExitCode if code != ExitCode.STOPPED]


def test_dry_run_as_json(tmp_path: Path) -> None:
    done = invoke("reproduce", "bespoke", "--dry-run", "--json", "--runs", str(tmp_path))
    assert len(json.loads(done.stdout)) == 65


@pytest.mark.parametrize(("words", "more"), [((), ""), (("--json",), ""), ((), "problems")])
def test_a_plan_is_printed_and_names_the_local_file_that_is_not_there(
    tmp_path: Path, words: tuple[str, ...], more: str
) -> None:
    pins, runs = tmp_path / "pins.toml", tmp_path / "runs"
    pins.write_text(
        '[datasets.tiny]\npath = "nope.jsonl"\n' + (f'[benchmarks.tiny-sums]\npath = "{more}"\n' if more else "")
    )
    options = ("--experiment", str(MICRO), "--pins", str(pins), "--runs", str(runs))
    done = invoke("plan", *options, *words)
    assert done.returncode == 2 and not runs.exists()
    sentence = (
        f"micro: dataset 'tiny': its local path {tmp_path}/nope.jsonl does not exist; give another with --pins FILE"
    )
    assert done.stderr.strip().startswith(sentence) and done.stderr.count("\n") == 1
    assert ("(and 1 more: " in done.stderr) == bool(more)
    assert len(json.loads(done.stdout)["cells"]) == 2 if words else "2 cells" in done.stdout
    if not (words or more):
        (tmp_path / "nope.jsonl").write_text("{}\n")
        assert invoke("plan", *options).returncode == 0


def test_plan_of_the_full_size(tmp_path: Path) -> None:
    done = invoke("plan", "--experiment", "bespoke", "--runs", str(tmp_path))
    assert done.returncode == 0 and "lsp-0.10" in done.stdout and "10 cells" in done.stdout
    plan = json.loads(invoke("plan", "--experiment", "bespoke", "--runs", str(tmp_path), "--json").stdout)
    half, full = (next(c for c in plan["cells"] if f"lsp-{p}" in c["name"]) for p in ("0.50", "1.00"))
    assert 0.45 < half["training_flops"] / full["training_flops"] < 0.5
    assert plan["stages_left"] == plan["stages"] == 65 and half["rows"] == 8000


def test_the_host_side_never_imports_torch() -> None:
    code = (
        "import sys; import tasks, essence.commands.run, essence.commands.plan, essence.commands.status, "
        "essence.commands.verify, essence.commands.report, essence.commands.clean, essence.report.build; "
        "sys.exit(str([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules]) "
        "if any(m in sys.modules for m in ('torch', 'transformers', 'datasets')) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_list_of_commands_needs_nothing_but_invoke() -> None:
    code = "import sys, tasks; print(*(m for m in sys.modules if m.split('.')[0] in ('essence', 'rich', 'pydantic')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    own = ["essence", "essence.commands.command_line", "essence.commands.terminal", "essence.errors"]
    assert sorted(set(done.stdout.split()) - {"essence.commands"}) == own, done.stderr


def test_a_hub_that_cannot_be_reached_is_one_sentence(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from rich.console import Console; from essence.errors import PinError\n"
        "from essence.commands.pin import pin\n"
        "try: pin(Console(), [Path(sys.argv[1])])\n"
        "except PinError as error: print(error); sys.exit(2)"
    )
    pins = tmp_path / "pins.toml"
    text = '# mine\n[models.a]\nrepository = "nobody/nothing"\ncommit = ""\n'
    pins.write_text(text, encoding="utf-8")
    # A port of this machine at which nobody listens.
    unreachable = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, "-c", code, str(pins)], env=unreachable, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stdout.startswith("cannot look up model 'a' (nobody/nothing): ")
    assert pins.read_text(encoding="utf-8") == text


def test_a_manifest_takes_the_numbers_that_stages_compute() -> None:
    numbers = dict.fromkeys(Cost.model_fields) | {"wall_s": 1, "cpu_s": np.float32(1), "gpu_hours": 0, "more": {}}
    cost = Cost.model_validate({**numbers, "peak_memory_gib": 1, "tokens": np.int64(3)})
    assert type(cost.tokens) is int and cost.tokens == 3


def test_the_schema_in_the_repository_is_that_of_the_record() -> None:
    from essence.record.manifest import SCHEMA_FILE, json_schema

    renew = "python -c 'from essence.record.manifest import *; SCHEMA_FILE.write_text(json_schema())'"
    assert SCHEMA_FILE.read_text(encoding="utf-8") == json_schema(), f"renew it: {renew}"


def test_the_command_that_fetches_has_no_option_that_download_does_not_know() -> None:
    chosen = select(Options(experiment=str(MICRO), engine="local"), baselines=False)
    words = Options(experiment="bespoke", only="train", gpus=2, seed=1, engine="local", site="s", accept_earlier=True)
    fetching = replace(chosen, words=replace(words, lsp=0.5, pair="p", flavour="cpu", pins="p", runs="r")).fetching()
    download = runpy.run_path(str(PROJECT / "tasks.py"))["download"]
    known = {name.replace("_", "-") for name in inspect.signature(download.body).parameters}
    assert fetching.startswith("invoke download ") and "--seed 1" in fetching
    assert set(re.findall(r"--([a-z-]+)", fetching)) <= known
