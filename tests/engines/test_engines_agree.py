"""The small matrix under every engine, disturbed at random moments: the result of an undisturbed local run.

Two cells are distilled, generated and graded on the locks for CPUs; fingerprints of tokens, weights, completions,
verdicts and accuracies must be equal to the last bit. The models are those that the local run has made, to save
their training.
"""

import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from essence.data.truncation import fingerprint
from essence.engines.docker import FOLDER
from essence.engines.slurm import queue
from essence.record.stage_records import TrainManifest, read_manifest
from essence.settings import TrainSettings
from support.containers import DockerHost, Sifs
from support.micro_results import by_title, pins
from support.processes import stage_processes, wait_for
from support.project import MICRO, PROJECT, command_line, invoke
from support.slurm_node import let_go

ARMS = MICRO.with_name("micro-arms.toml")
HOST_END_S = 600.0
KILLED_WITHIN_S = 6.0


@dataclass(frozen=True)
class Under:
    """How the matrix runs under an engine, and how what works on a run directory is seen and killed."""

    engine: str
    working: Callable[[Path], list[Any]]
    kill: Callable[[Any], None]
    words: tuple[str, ...] = ()
    """Further words of the command."""
    recorded: str = ""
    """The container engine in the record, where it is not the one that was asked for."""


def killed(process: psutil.Process) -> None:
    if process.is_running():
        process.kill()


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("local", marks=[pytest.mark.nightly]),
        pytest.param("docker", marks=[pytest.mark.docker]),
        # SIFs are made of Docker's images.
        pytest.param("apptainer", marks=[pytest.mark.docker, pytest.mark.apptainer, pytest.mark.nightly]),
        pytest.param(
            "slurm", marks=[pytest.mark.docker, pytest.mark.apptainer, pytest.mark.slurm, pytest.mark.nightly]
        ),
    ],
)
def under(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Under]:
    engine = request.param
    if engine == "docker":
        request.getfixturevalue("images")
        yield under_docker(request.getfixturevalue("docker_host"))
    elif engine == "slurm":
        sifs = request.getfixturevalue("sifs")
        request.getfixturevalue("slurm")
        with pytest.MonkeyPatch.context() as patch:
            yield under_slurm(sifs, tmp_path_factory.mktemp("cluster"), patch)
            subprocess.run(["scancel", "--me"], check=True)
    else:
        if engine == "apptainer":
            request.getfixturevalue("sifs")
        yield Under(engine, stage_processes, killed)


def under_docker(host: DockerHost) -> Under:
    def containers(runs: Path) -> list[Any]:
        found = host.client.containers.list(all=True, filters={"label": FOLDER})
        return [container for container in found if container.labels[FOLDER].startswith(f"{runs}/")]

    return Under("docker", containers, lambda container: container.remove(force=True))


def under_slurm(sifs: Sifs, folder: Path, patch: pytest.MonkeyPatch) -> Under:
    """Jobs of the one node, small enough for it, with a login shell that has Apptainer as a module would give it."""
    text = (PROJECT / "experiments" / "sites" / "generic.toml").read_text(encoding="utf-8")
    text = re.sub(r"memory_gib = \d+, cpus = \d+", "memory_gib = 2, cpus = 2", text)
    site = folder / "site.toml"
    restricted = str(sifs.apptainer.needs_namespace).lower()
    site.write_text(re.sub("no_privileges = false", f"no_privileges = {restricted}", text), encoding="utf-8")
    (folder / ".bash_profile").write_text(f"export PATH={sifs.apptainer.program.parent}:$PATH\n", encoding="utf-8")
    patch.setenv("HOME", str(folder))

    def jobs(runs: Path) -> list[Any]:
        return [job for job in queue.queue() if not job.ended and job.folder.startswith(f"{runs}/")]

    return Under("slurm", jobs, requeued_or_cancelled, ("--site", str(site)), recorded="apptainer")


def requeued_or_cancelled(job: queue.JobState) -> None:
    """A job that runs is queued again, as one that is preempted; one that waits is cancelled."""
    if job.waiting or subprocess.run(["scontrol", "requeue", job.job], capture_output=True).returncode:
        queue.cancel([job.job])
    else:
        let_go(job.job)


def words(under: Under, micro: Path, runs: Path, experiment: Path = MICRO, *more: str) -> tuple[str, ...]:
    return (
        *("run", "--experiment", str(experiment), "--pins", str(pins(micro))),
        *("--runs", str(runs), "--engine", under.engine, *under.words, *more),
    )


def run_to_its_end(under: Under, micro: Path, runs: Path, experiment: Path = MICRO, *more: str) -> None:
    """Issue the command, and once more when what works for it outlives it."""
    done = invoke(*words(under, micro, runs, experiment, *more))
    assert done.returncode == 0, done.stdout + done.stderr
    if under.engine == "slurm":
        wait_for(lambda: not under.working(runs), HOST_END_S)
        done = invoke(*words(under, micro, runs, experiment, *more))
    assert ("stages" in done.stdout and "are done" in done.stdout) or "were done before" in done.stdout, done.stdout


def host_at_work(under: Under, micro: Path, runs: Path, chance: random.Random) -> "subprocess.Popen[str]":
    """A host process, some time after something works for it."""
    line = command_line(*words(under, micro, runs))
    host = subprocess.Popen(line, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(lambda: under.working(runs) or host.poll() is not None)
    time.sleep(chance.uniform(0.0, KILLED_WITHIN_S))
    return host


@pytest.fixture(scope="module")
def disturbed(under: Under, micro: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run directory: once the host process was killed on its way, once what works for it, with Ctrl-C."""
    runs, chance = tmp_path_factory.mktemp(under.engine), random.Random(under.engine)
    host = host_at_work(under, micro, runs, chance)
    host.send_signal(signal.SIGKILL)
    host.communicate()
    host = host_at_work(under, micro, runs, chance)
    for one in under.working(runs):
        under.kill(one)
    host.send_signal(signal.SIGINT)
    said, _ = host.communicate(timeout=HOST_END_S)
    assert host.returncode in (0, 1, 130), said
    assert under.engine == "slurm" or under.working(runs) == []
    run_to_its_end(under, micro, runs)
    yield runs


@pytest.mark.slow
def test_disturbed_under_an_engine_the_result_is_that_of_an_undisturbed_local_run(
    under: Under, micro: Path, disturbed: Path
) -> None:
    here, there = by_title(micro), by_title(disturbed)
    stages = [title for title in there if not title.startswith("download")]
    assert len(stages) == 1 + 2 * 3, stages
    for title in stages:
        assert there[title] == here[title], title
    accuracies = [there[title]["results"]["accuracy"] for title in stages if title.startswith("grade")]
    assert len(accuracies) == 2
    assert under.working(disturbed) == []
    assert not list(disturbed.glob("stages/*/scratch")) and not list(disturbed.glob("stages/*/partial"))
    assert invoke("verify", str(disturbed)).returncode == 0


@pytest.mark.slow
def test_the_record_names_engine_and_image_and_the_second_run_does_nothing(
    under: Under, micro: Path, disturbed: Path
) -> None:
    images = {}
    for file in disturbed.glob("stages/*/manifest.json"):
        manifest = json.loads(file.read_text(encoding="utf-8"))
        assert manifest["image"]["engine"] == (under.recorded or under.engine)
        assert manifest["hardware"]["host"] == os.uname().nodename
        images[manifest["identity"]["stage"]] = manifest["image"]
    contained = under.engine != "local"
    assert all((image["digest"] or "").startswith("sha256:") == contained for image in images.values())
    assert all(bool(image["sif_sha256"]) == (under.engine in ("apptainer", "slurm")) for image in images.values())
    again = invoke(*words(under, micro, disturbed))
    assert again.returncode == 0 and "were done before" in again.stdout


@pytest.mark.nightly
@pytest.mark.slow
def test_every_arm_has_the_rows_and_labels_under_an_engine_that_it_has_in_this_process(
    under: Under, micro: Path, disturbed: Path
) -> None:
    """On the tokens that are there; what is drawn is drawn anew inside."""
    if under.engine == "slurm":
        pytest.skip("its jobs have the SIF of apptainer, under which this is tried")
    from essence.distill.row_split import load_cell_rows  # imports PyTorch
    from essence.models.loading import load_tokenizer

    run_to_its_end(under, micro, disturbed, ARMS, "--only", "train")
    plan = json.loads((disturbed / ARMS.stem / "plan.json").read_text(encoding="utf-8"))
    cells = plan["cells"]
    assert len({cell["stages"]["tokenize"] for cell in cells}) == 1 and len(cells) == 5
    for cell in cells:
        manifest = read_manifest(disturbed / "stages" / cell["stages"]["train"] / "manifest.json")
        assert isinstance(manifest, TrainManifest)
        settings = TrainSettings.model_validate(manifest.resolved_json)
        tokens = disturbed / "stages" / cell["stages"]["tokenize"] / "output" / "tokens.arrow"
        eos = load_tokenizer(disturbed / "stages" / cell["stages"]["student"] / "output" / "model").eos_token_id
        expected = load_cell_rows(tokens, settings, eos).training
        recorded = manifest.inputs.data.train
        assert recorded.sha256 == fingerprint(expected.examples), cell["name"]
        assert recorded.supervised_tokens == expected.supervised_tokens
