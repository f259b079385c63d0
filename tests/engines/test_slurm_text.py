"""Slurm jobs as text: golden files, site files, and the printed text on a Slurm of one node."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from essence.engines import make_engine
from essence.engines.recipes import recipe
from essence.engines.slurm.job_text import batch_text, submit_text, task_text
from essence.engines.slurm.jobs import StageJob
from essence.engines.slurm.queue import JobState
from essence.engines.slurm.site import SITES, Site, load_site
from essence.errors import ExperimentError
from essence.settings import Spec
from support.project import MICRO, PROJECT, invoke
from support.slurm_job import job
from support.slurm_node import SlurmNode, let_go

GOLDEN = PROJECT / "tests" / "golden"
RENEW = "ESSENCE_RENEW_GOLDEN=1 .venv/bin/pytest tests/engines/test_slurm_text.py -k golden"
SITE_NAMES = ("generic", "alliance-h100", "pyxis")
WAIT_S = 600


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("name", SITE_NAMES)
def test_golden_texts(name: str, nodes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESSENCE_SIF_FOLDER", "/opt/essence/sif")
    site = load_site(name)
    asked = replace(job(nodes=nodes), image=site.image(recipe("train", "cuda")))
    text = batch_text(asked, site)
    carried = re.findall(r"<<'ESSENCE_SPEC'\n(.*)\nESSENCE_SPEC\n", text)
    assert [Spec.model_validate_json(spec) for spec in carried] == [asked.spec]
    text = text.replace(carried[0], '{"stage": "train"}')  # what a spec holds grows with the kit
    file = GOLDEN / f"{name}-{nodes}-node{'s' * (nodes > 1)}.sbatch"
    if os.environ.get("ESSENCE_RENEW_GOLDEN"):
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8"), f"{file} differs; if it is meant: {RENEW}"


@pytest.mark.parametrize(
    ("expected_s", "asked"),
    [(None, "1-00:00:00"), (0.0, "03:10:00"), (5401.0, "03:20:00"), (30000.0, "16:50:00"), (43199.0, "1-00:00:00")],
)
def test_a_job_asks_for_twice_what_is_expected(expected_s: float | None, asked: str) -> None:
    """At least three hours and the ten minutes of signal_s, full ten minutes, at most what the site file gives."""
    site = load_site("alliance-h100")
    text = batch_text(replace(job(), expected_s=expected_s), site)
    assert f"#SBATCH --time={asked}\n" in text


def test_what_the_estimate_knows_reaches_the_jobs(tmp_path: Path) -> None:
    done = invoke("run", "--lsp", "0.5", "--engine", "slurm", "--site", "generic", "--dry-run", "--json",
                  "--runs", str(tmp_path / "runs"))  # fmt: skip
    asked = {one["id"].split("-")[0]: re.findall(r"--time=(\S+)", one["text"])[0] for one in json.loads(done.stdout)}
    assert asked["tokenize"] == "02:00:00" and asked["grade"] == "02:00:00"
    assert asked["train"] < "24:00:00" and asked["generate"] < "24:00:00"


def test_options_replace_values_of_the_site_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    typed = {"account": "def-somebody", "partition": "gpu", "sif_folder": "images"}
    site = load_site("alliance-h100", typed)
    assert site.image(recipe("train", "cuda")) == str(tmp_path / "images" / "train-cuda.sif")
    text = batch_text(job(), site)
    assert "#SBATCH --account=def-somebody\n" in text and "#SBATCH --partition=gpu\n" in text
    assert load_site("alliance-h100").account == ""
    with pytest.raises(ExperimentError, match="the command line: account = 'a b': must be one word"):
        load_site("alliance-h100", {"account": "a b"})
    with pytest.raises(ExperimentError, match="only --engine slurm has sites, not --engine local"):
        make_engine("local", "cpu", None, typed)


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("name", SITE_NAMES)
def test_shellcheck_passes_the_texts(name: str, nodes: int) -> None:
    """The text of sbatch, the task inside it, which is a string to the shell, and the text that queues both."""
    site = load_site(name)
    asked = job(nodes=nodes)
    text = batch_text(asked, site)
    shellcheck(text)
    shellcheck("#!/bin/bash\n" + task_text(asked, site))
    after = replace(job(stage="generate"), after=(asked.surroundings.stage_id,))
    shellcheck(submit_text([(asked, text), (after, batch_text(after, site))]))
    assert task_text(asked, site) in text


def test_shellcheck_is_not_deaf() -> None:
    with pytest.raises(AssertionError, match="SC2086"):
        shellcheck("#!/bin/bash\nrm -rf $work\n")


def shellcheck(text: str) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("shellcheck"), f"--rcfile={PROJECT / '.shellcheckrc'}", "-"],
        input=text,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_site_file_loads_and_a_misspelled_key_is_one_sentence(tmp_path: Path) -> None:
    assert {file.stem for file in SITES.glob("*.toml")} == set(SITE_NAMES)
    file = tmp_path / "mine.toml"
    file.write_text((SITES / "generic.toml").read_text().replace("partition", "partitoin"))
    with pytest.raises(ExperimentError, match=r"mine.toml: unknown key 'partitoin'; did you mean 'partition'\?"):
        load_site(str(file))
    with pytest.raises(ExperimentError, match="--site 'generc': unknown site; did you mean 'generic'"):
        load_site("generc")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("scratch", "/tmp/$(id)"),
        ("account", "a b"),
        ("binds", ["data"]),
        ("limits", {"train": {"time": "1 day", "memory_gib": 1, "cpus": 1}}),
        ("signal_s", 3600),
        ("images", {"train": "train.sif"}),
        ("images", {"train": "{flavor}.sif", "download": "d", "eval": "e"}),
        ("sif_folder", "sif"),
    ],
)
def test_a_site_that_would_make_another_text_is_refused(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=key if key != "signal_s" else r"limits\s.*download.time = '01:00:00' must be"):
        Site.model_validate({**load_site("generic").model_dump(), key: value})


def test_a_stage_that_keeps_nothing_is_not_stopped_to_be_queued_again() -> None:
    site = load_site("generic")
    assert "#SBATCH --signal=B:USR1@600" in batch_text(job(), site)
    assert "USR1@" not in batch_text(job(stage="tokenize"), site)
    ended = StageJob(JobState("7", "TIMEOUT"), "time-out", stage="tokenize")
    assert ended.sentence.endswith("raise limits.tokenize.time in the site file")


def test_a_path_that_no_list_of_folders_can_name_is_refused() -> None:
    with pytest.raises(ExperimentError, match="holds ',', which a batch text cannot name"):
        batch_text(job(Path("/scratch/a,b")), load_site("generic"))


def test_the_dry_run_prints_jobs_in_order_without_secrets_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_planted")
    words = ("run", "--experiment", str(MICRO), "--lsp", "0.5", "--engine", "slurm", "--runs", str(tmp_path / "runs"))
    done = invoke(*words, "--site", "generic", "--dry-run")
    assert done.returncode == 0, done.stderr
    names = re.findall(r"--job-name=(\S+)", done.stdout)
    assert len(names) == len(set(names)) and sum(name.startswith("train-") for name in names) == 1
    for name, before in re.findall(r"^(job_\S+)=\$\(sbatch .*afterok:\$\{(job_\w+)", done.stdout, re.MULTILINE):
        assert done.stdout.index(f"\n{before}=") < done.stdout.index(f"\n{name}=")
    assert "hf_planted" not in done.stdout and not (tmp_path / "runs").exists()
    assert subprocess.run(["bash", "-n"], input=done.stdout, text=True, capture_output=True).stderr == ""


# Slurm is real; in the container's place stands a program that stops once when asked, and then succeeds.
STAND_IN = """\
#!/bin/bash
echo "started with ${HF_TOKEN-no token}: ${*: -4}"
[ -e "$STOPPED" ] && exit 0
case "$*" in *train-0123*) ;; *) exit 0;; esac
trap 'touch "$STOPPED"; exit 75' TERM
echo waiting
for i in {1..600}; do sleep 0.1; done
exit 3
"""


@pytest.mark.slurm
def test_the_printed_text_queues_waits_and_queues_again(
    slurm: SlurmNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "apptainer"
    program.parent.mkdir()
    program.write_text(STAND_IN)
    program.chmod(0o755)
    (tmp_path / ".bash_profile").write_text(f"export PATH={program.parent}:$PATH\n")  # as a module would
    for name, value in {"HOME": str(tmp_path), "STOPPED": str(tmp_path / "stopped"), "HF_TOKEN": "hf_planted"}.items():
        monkeypatch.setenv(name, value)
    site = load_site("generic")
    small = {name: limits.model_copy(update={"memory_gib": 1, "cpus": 1}) for name, limits in site.limits.items()}
    site = site.model_copy(update={"limits": small})
    first = job(tmp_path, gpus=0)
    second = replace(job(tmp_path, "generate", gpus=0), after=(first.surroundings.stage_id,))
    text = submit_text([(each, batch_text(each, site)) for each in (first, second)])
    told = subprocess.run(["bash"], input=text, text=True, capture_output=True, check=True).stdout
    ids = [line.split()[0] for line in told.splitlines()]
    logs = [each.surroundings.folder.log for each in (first, second)]
    wait_for_text(logs[0], "waiting")
    assert state(ids[1]) == "PENDING"
    subprocess.run(["scancel", "--batch", "--signal=USR1", ids[0]], check=True)
    deadline = time.monotonic() + WAIT_S
    while "Restarts=1" not in show(ids[0]) or state(ids[0]) != "PENDING":
        assert time.monotonic() < deadline, show(ids[0]) + logs[0].read_text()
        time.sleep(0.2)
    let_go(ids[0])
    while state(ids[1]) != "COMPLETED":
        assert time.monotonic() < deadline, show(ids[0]) + show(ids[1]) + logs[0].read_text()
        time.sleep(0.5)
    assert state(ids[0]) == "COMPLETED" and "hf_planted" not in logs[0].read_text()
    assert logs[0].read_text().count("started with no token") == 2  # the second attempt goes on in the same log


def show(identifier: str) -> str:
    command = ["scontrol", "--oneliner", "show", "job", identifier]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def state(identifier: str) -> str:
    return re.findall(r"JobState=(\S+)", show(identifier))[0]


def wait_for_text(file: Path, text: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not (file.is_file() and text in file.read_text()):
        assert time.monotonic() < deadline, file.read_text() if file.is_file() else f"no {file}"
        time.sleep(0.1)


def test_a_proof_asks_for_what_the_stages_take_that_it_measures() -> None:
    """A site file needs no limits for it, and its own count where it has them."""
    site = load_site("generic")
    assert site.limits_of("prove_training") == site.limits["train"]
    assert site.limits_of("prove_decoding") == site.limits["generate"]
    own = {**site.model_dump(), "limits": {**site.limits, "prove_training": site.limits["grade"]}}
    assert Site.model_validate(own).limits_of("prove_training") == site.limits["grade"]
    lacking = {**site.model_dump(), "limits": {name: one for name, one in site.limits.items() if name != "train"}}
    with pytest.raises(ValueError, match="train must be there too"):
        Site.model_validate(lacking)
