"""Stages as Slurm jobs, for real, on one node; where the container would be, the stage runs in this environment."""

import json
import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from essence.commands.matrix_state import collect, see_queue
from essence.engines.slurm import queue
from essence.files import read_json, sha256_file
from essence.record.run_directory import RunDirectory
from support.containers import set_variables
from support.project import MICRO, invoke
from support.slurm_cluster import DIGEST, TOKEN, Cluster
from support.slurm_node import TWO_NODES, host_name, let_go, started_node
from support.unreadable_gold import SAID, write_experiment

pytestmark = pytest.mark.slurm
WAIT_S = 900.0


@pytest.fixture(autouse=True)
def nothing_else(cluster: Cluster) -> Iterator[None]:
    """Each test begins and ends with no job in the queue and no stage replaced."""
    yield
    subprocess.run(["scancel", "--me"], check=True)
    for file in cluster.folder.glob("act-*"):
        file.unlink()


def status(runs: Path, experiment: str = "micro") -> dict[str, Any]:
    run = RunDirectory(runs)
    return collect(run, experiment, see_queue(run, experiment)).as_json()


def wait_for(condition: Callable[[], Any], runs: Path | None = None) -> Any:
    deadline = time.monotonic() + WAIT_S
    while not (found := condition()):
        logs = "".join(f"\n{log}:\n{log.read_text()[-1500:]}" for log in runs.glob("stages/*/log.txt")) if runs else ""
        assert time.monotonic() < deadline, f"waited too long: {queue.queue()}{logs}"
        time.sleep(0.2)
    return found


def jobs_of(done: "subprocess.CompletedProcess[str]") -> dict[str, dict[str, Any]]:
    """Kind of stage -> its job, as `--json` says; of several downloads the last."""
    assert done.returncode == 0, done.stderr
    return {told["stage"].split("-")[0]: told for told in json.loads(done.stdout)["jobs"]}


def state_of(job: str) -> str:
    return next(state.state for state in queue.queue() if state.job == job)


def running() -> list[queue.JobState]:
    return [state for state in queue.queue() if state.state == "RUNNING"]


def test_how_jobs_end_is_told_by_name(cluster: Cluster, tmp_path: Path) -> None:
    cluster.act("model", "python3 -c 'b = [bytearray(1 << 26) for _ in range(100)]'; exit 9")
    cluster.act("dataset", "echo no such luck; exit 7")
    cluster.act("benchmark", "sleep 600")
    jobs = jobs_of(cluster.run(tmp_path, "--only", "tokenize", "--json"))
    wait_for(lambda: len(status(tmp_path)["failed"]) == 2, tmp_path)
    wait_for(lambda: any(str(tmp_path) in one.folder for one in running()), tmp_path)
    queue.cancel(one.job for one in running())
    wait_for(lambda: len(status(tmp_path)["failed"]) == 3, tmp_path)
    told = status(tmp_path)
    failed = {stage["title"]: stage for stage in told["failed"]}
    assert {title: stage["cause"] for title, stage in failed.items()} == {
        "download model tiny-student": "out of memory",
        "download dataset tiny": "job failure",
        "download benchmark tiny-sums": "cancelled",
    }
    assert re.fullmatch(r"job \d+: job failure, exit code 7: no such luck", failed["download dataset tiny"]["message"])
    blocked = [stage["scheduler_job"] for stage in told["blocked"]]
    assert [(job["job"], job["cause"]) for job in blocked] == [(jobs["tokenize"]["job"], "dependency never satisfied")]
    # Nobody needs Slurm to remember what was seen once; without Slurm the files are shown, and that is said.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        shown = invoke("status", "--experiment", "micro", "--runs", str(tmp_path)).stdout
    assert "out of memory; raise its memory_gib in the site file" in shown
    assert "shown from files alone, as no scheduler answers: squeue is not on PATH" in shown


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"partition": '"nope"'}, r"partition = 'nope' in site \S+: set one of those here \(closed, tests\)"),
        ({"partition": '"closed"'}, r"account = '', partition = 'closed' in site \S+: set one that you may use"),
        ({"sif_folder": '"/nonexistent"'}, r"/nonexistent/\w+-cpu.sif: no such file, the image for \w+ as the site"),
        (
            {"tokenize": '{ time = "01:00:00", memory_gib = 99999, cpus = 1 }'},
            r"limits.tokenize = 01:00:00, 99999 GiB, 1 cores in site .*; the 3 jobs queued before it were cancelled",
        ),
    ],
)
def test_a_refusal_is_one_sentence_and_leaves_nothing(
    cluster: Cluster, tmp_path: Path, changes: dict[str, str], sentence: str
) -> None:
    # Where a job began before the refusal, its folder is more than what the command made, and stays.
    with nothing_starts():
        done = cluster.run(tmp_path, "--only", "tokenize", site=cluster.site_with("refused", **changes))
    assert done.returncode == 2 and re.search(sentence, done.stderr), done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1
    wait_for(lambda: all(state.ended for state in queue.queue() if str(tmp_path) in state.folder))
    assert not list(tmp_path.glob("stages/*/jobs.jsonl"))


def test_an_answer_that_no_grader_can_read_stops_before_anything_is_queued(cluster: Cluster, tmp_path: Path) -> None:
    done = cluster.run(tmp_path / "runs", experiment=write_experiment(tmp_path))
    assert done.returncode == 2 and SAID.format("lighteval-0.10") in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@contextmanager
def nothing_starts() -> Iterator[None]:
    """Jobs are taken and wait."""
    update = ["scontrol", "update", f"NodeName={host_name()}"]
    subprocess.run([*update, "State=DRAIN", "Reason=test"], check=True)
    try:
        yield
    finally:
        subprocess.run([*update, "State=RESUME"], check=True)


def test_without_slurm_or_downloads_it_says_what_to_do(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        done = cluster.run(tmp_path / "runs")
    assert done.returncode == 2 and "squeue is not on PATH" in done.stderr and not (tmp_path / "runs").exists()
    words = ("run", "--lsp", "0.5", "--engine", "slurm", "--site", str(cluster.site), "--runs", str(tmp_path / "runs"))
    done = invoke(*words, "--experiment", "bespoke")
    assert done.returncode == 2 and not (tmp_path / "runs").exists()


def test_what_is_queued_is_not_queued_again_and_what_waits_in_vain_is(cluster: Cluster, tmp_path: Path) -> None:
    cluster.act("dataset", "sleep 600")
    first = jobs_of(cluster.run(tmp_path, "--only", "tokenize", "--json"))
    again = jobs_of(cluster.run(tmp_path, "--only", "train", "--json"))
    assert again["tokenize"]["job"] == first["tokenize"]["job"] and not again["tokenize"]["queued_now"]
    assert again["train"]["queued_now"] and first["tokenize"]["job"] in again["train"]["after"]
    # A new job for the data set; whatever waited for the old one is replaced too.
    old = wait_for(lambda: next((one.job for one in running() if is_stage(one.folder, "tiny")), None))
    cluster.act("dataset", None)
    queue.cancel([old])
    third = jobs_of(cluster.run(tmp_path, "--only", "train", "--json"))
    assert int(third["tokenize"]["job"]) > int(again["train"]["job"])
    assert third["tokenize"]["job"] in third["train"]["after"] and old not in third["tokenize"]["after"]


def is_stage(folder: str, dataset: str) -> bool:
    return f'"title": "download dataset {dataset}"' in (Path(folder) / "spec.json").read_text()


def test_doctor_asks_slurm_whether_it_would_take_the_jobs(cluster: Cluster, tmp_path: Path) -> None:
    words = ("--experiment", str(MICRO), "--lsp", "0.5", "--runs", str(tmp_path / "runs"), "--engine", "slurm")

    def checks(site: Path) -> dict[str, dict[str, Any]]:
        done = invoke("doctor", *words, "--site", str(site), "--json")
        told = json.loads(done.stdout)
        assert (done.returncode == 0) == told["ready"] == all(check["ok"] for check in told["checks"])
        return {check["name"]: check for check in told["checks"]}

    queued = {state.job for state in queue.queue()}
    ready = checks(cluster.site)
    assert all(check["ok"] for check in ready.values()), ready
    assert {"Slurm", "image train", "image eval", "a train job", "a generate job"} <= set(ready)
    elsewhere = checks(cluster.site_with("elsewhere", partition='"nowhere"', sif_folder='"/no/sifs"'))
    assert "no such file" in elsewhere["image train"]["found"] and "make sif" in elsewhere["image train"]["cure"]
    assert elsewhere["Slurm"]["ok"]
    for stage in ("train", "grade"):
        assert "nvalid partition" in elsewhere[f"a {stage} job"]["found"]
        assert "set one of those here (closed, tests)" in elsewhere[f"a {stage} job"]["cure"]
    assert not (tmp_path / "runs").exists() and {state.job for state in queue.queue()} <= queued


NANO = """\
extends = "{micro}"
title = "One small cell"
[[matrix]]
dataset = ["tiny"]
pair = ["tiny-teacher_tiny-student"]
lsp = [0.5]
[models.tiny-teacher.options]
documents = 16
[models.tiny-student.options]
documents = 16
"""


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("nano") / "nano.toml"
    file.write_text(NANO.format(micro=MICRO))
    return file


@pytest.fixture(scope="module")
def nano_runs(cluster: Cluster, nano: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished, undisturbed run of one cell; not to be changed."""
    runs = tmp_path_factory.mktemp("undisturbed")
    jobs_of(cluster.run(runs, "--json", experiment=nano))
    wait_for(lambda: finished(runs), runs)
    return runs


def left_to_train(runs: Path, to: Path) -> Path:
    """A copy without the training and what needs it."""
    shutil.copytree(runs, to)
    for kind in ("train", "generate", "grade"):
        for folder in (to / "stages").glob(f"{kind}-*"):
            shutil.rmtree(folder)
    return to


def test_disturbed_at_every_turn_it_ends_as_undisturbed(
    cluster: Cluster, nano: Path, nano_runs: Path, tmp_path: Path
) -> None:
    """Requeued while it trains, cancelled at a random moment, killed on the login node: then simply issued again."""
    chance = random.Random(11)
    runs = left_to_train(nano_runs, tmp_path / "runs")
    jobs = jobs_of(cluster.run(runs, "--json", experiment=nano))
    train = RunDirectory(runs).stage(jobs["train"]["stage"])
    wait_for(lambda: train.progress.is_file() and list(train.scratch.glob("*")), runs)
    subprocess.run(["scontrol", "requeue", jobs["train"]["job"]], check=True)
    again = wait_for(lambda: [s for s in queue.queue() if s.job == jobs["train"]["job"] and s.waiting], runs)
    assert again[0].restarts == 1
    queued = {stage["stage"]: stage["scheduler_job"]["restarts"] for stage in status(runs, "nano")["queued"]}
    assert queued[jobs["train"]["stage"]] == 1
    let_go(jobs["train"]["job"])
    time.sleep(chance.uniform(3.0, 8.0))
    queue.cancel(job["job"] for job in jobs.values())
    wait_for(lambda: all(state.ended for state in queue.queue()), runs)
    assert not status(runs, "nano")["running"]
    # Killed after sbatch took the job: its id was not written down, and the job is found all the same.
    second = jobs_of(cluster.run(runs, "--json", experiment=nano))
    (RunDirectory(runs).stage(second["grade"]["stage"]).jobs).unlink()
    third = jobs_of(cluster.run(runs, "--json", experiment=nano))
    assert third["grade"]["job"] == second["grade"]["job"]
    wait_for(lambda: finished(runs), runs)
    attempts = read_json(train.manifest)["identity"]["attempts"]
    assert attempts[0]["outcome"] != "finished" and attempts[-1]["outcome"] == "finished"
    assert results(runs) == results(nano_runs)
    # With nothing left the same command writes the report.
    last = cluster.run(runs, experiment=nano)
    assert "all 8 stages were done before" in last.stdout and (runs / "nano" / "report" / "report.html").is_file()


def test_the_record_names_image_and_job_and_nothing_holds_the_token(cluster: Cluster, nano_runs: Path) -> None:
    (train,) = (nano_runs / "stages").glob("train-*")
    manifest = read_json(train / "manifest.json")
    sif = cluster.folder / "sif" / "train-cpu.sif"
    found = [manifest["image"][name] for name in ("engine", "sif_sha256", "digest")]
    assert found == ["apptainer", sha256_file(sif), DIGEST]
    assert manifest["hardware"]["scheduler"]["SLURM_CLUSTER_NAME"] == "tests"
    assert os.environ["HF_TOKEN"] == TOKEN and "SLURM_JOB_ID" in (cluster.folder / "environment").read_text()
    for folder in (cluster.folder, cluster.node.folder, nano_runs):
        files = [file for file in folder.rglob("*") if file.is_file()]
        assert files and not [file for file in files if TOKEN.encode() in file.read_bytes()]


def test_two_nodes_train_together(cluster: Cluster, nano: Path, nano_runs: Path, tmp_path: Path) -> None:
    runs = left_to_train(nano_runs, tmp_path / "runs")
    experiment = tmp_path / "two.toml"
    both = '[training]\nparallel = "ddp"\nprocesses = 2\n[resources]\nnodes = 2\n'
    experiment.write_text(f'extends = "{nano}"\ntitle = "Two nodes"\n{both}')
    with started_node(TWO_NODES) as node, set_variables(node.variables):
        jobs = jobs_of(cluster.run(runs, "--only", "train", "--json", experiment=experiment))
        train = RunDirectory(runs).stage(jobs["train"]["stage"])
        wait_for(lambda: train.done or status(runs, "two")["failed"], runs)
    manifest = read_json(train.manifest)
    assert manifest["settings"]["executed"]["parallel"] == {"backend": "ddp", "processes": 2, "nodes": 2} | {
        "teacher": manifest["settings"]["executed"]["parallel"]["teacher"],
        "optimizer": "device",
    }
    assert manifest["hardware"]["scheduler"]["SLURM_NODELIST"] == "127.0.0.[1-2]"


def results(runs: Path) -> dict[str, Any]:
    """Results, fingerprints and weights by stage; not what holds times."""
    found = {}
    for folder in (runs / "stages").iterdir():
        manifest = read_json(folder / "manifest.json")
        weights = {o["path"]: o["sha256"] for o in manifest["outputs"] if o["path"].endswith(".safetensors")}
        told = {name: value for name, value in manifest["results"].items() if not name.endswith("_s")}
        data = {name: value for name, value in manifest["inputs"]["data"].items() if name != "samples_sha256"}
        found[folder.name] = (told, data, weights)
    return found


def finished(runs: Path) -> bool:
    """True when all eight stages are done; a failed stage fails the test at once."""
    state = status(runs, "nano")
    assert not state["failed"], state["failed"]
    return state["counts"]["done"] == 8


def test_the_time_limit_stops_at_a_checkpoint_and_queues_again_or_is_named(cluster: Cluster, tmp_path: Path) -> None:
    stop = f"echo stopped > {cluster.folder}/stopped; exit 75"
    cluster.act("dataset", f"[ ! -e {cluster.folder}/stopped ] || exit 0; trap '{stop}' TERM; sleep 600 & wait")
    cluster.act("benchmark", "trap '' TERM USR1; while :; do sleep 1; done")
    cluster.act("model", "exit 0")
    limits = '{ time = "00:01:00", memory_gib = 1, cpus = 1 }'
    done = cluster.run(tmp_path, "--only", "tokenize", site=cluster.site_with("short", download=limits, signal_s="50"))
    assert done.returncode == 0, done.stderr
    wait_for(lambda: (cluster.folder / "stopped").is_file(), tmp_path)
    wait_for(
        lambda: [stage for stage in status(tmp_path)["queued"] if stage["scheduler_job"]["restarts"] == 1], tmp_path
    )
    (failed,) = wait_for(lambda: status(tmp_path)["failed"], tmp_path)
    assert failed["title"] == "download benchmark tiny-sums" and failed["cause"] == "time-out"
    assert "raise its time or signal_s" in failed["message"]


def test_a_job_is_given_the_gpus_that_it_asks_for(cluster: Cluster, tmp_path: Path) -> None:
    experiment = tmp_path / "gpus.toml"
    experiment.write_text(f'extends = "{MICRO}"\ntitle = "GPUs"\n[resources]\ngpus = 2\n')
    for kind in ("model", "dataset", "benchmark", "tokenize", "train"):
        cluster.act(kind, "exit 0")
    site = cluster.site_with("gpus", gpu_type='"h100"')
    (cluster.folder / "devices").unlink(missing_ok=True)
    words = ("--only", "train", "--flavour", "cpu")
    done = cluster.run(tmp_path, *words, site=site, experiment=experiment)
    assert done.returncode == 0, done.stderr
    devices = cluster.folder / "devices"
    wait_for(lambda: devices.is_file() and "train" in devices.read_text(), tmp_path)
    told = dict(line.split(" ", 1) for line in devices.read_text().splitlines())
    assert told["train"] == "CUDA_VISIBLE_DEVICES=0,1" and told["tokenize"] == ""
    site = cluster.site_with("gpus", gpu_type='"h200"')
    refused = cluster.run(tmp_path / "other", *words, site=site, experiment=experiment)
    assert refused.returncode == 2 and "gpu_type = 'h200' with 2 GPUs in site" in refused.stderr
