"""A stage that was asked to stop, or whose parent was killed: it goes soon whatever it does, and the next goes on."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from essence.commands.options import select
from essence.engines.selected_run import Options
from essence.evaluation.benchmarks import Problem
from essence.evaluation.decoders import DecodeSettings
from essence.evaluation.decoders.transformers import TransformersDecoder
from essence.evaluation.requests import plan_requests, render_prompts
from essence.models.loading import load_tokenizer
from essence.progress import Stopped, StopRequest
from essence.record.run_directory import hold
from support.processes import HOLDER
from support.project import MICRO, PROJECT, command_line
from support.sampling import make_inputs, settings
from support.some_resources import some_resources

STAGE = """
import ctypes, os, signal, subprocess, sys, time
from essence.progress import StopRequest, die_with_launcher
from essence.stages.watcher import Watcher
die_with_launcher(signal.SIGTERM)
stop = StopRequest()
stop.install()
watcher = Watcher(stop, "generate", grace_s=0.5)
watcher.watch()
child = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(os.getpid(), child.pid, flush=True)
"""
DEAF = "for _ in range(9): ctypes.CDLL(None).sleep(60)"
"""A call of C, after which handlers of Python's run, and then another."""
BUSY = "while True: time.sleep(0.01)"
HEEDS = "while not stop: time.sleep(0.01)\nchild.kill(); child.wait(); sys.exit(75)"
FINISHES = "while not stop: time.sleep(0.01)\nwatcher.rest(); time.sleep(1.5); child.kill(); child.wait()"
PARENT = """
import os, subprocess, sys
os.environ["ESSENCE_PARENT"] = str(os.getpid())
subprocess.run([sys.executable, "-c", sys.argv[1]])
"""


def started(command: list[str]) -> tuple[subprocess.Popen[str], psutil.Process, psutil.Process]:
    """What was started, the stage in it, and the stage's child."""
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    stage, child = (psutil.Process(int(pid)) for pid in process.stdout.readline().split())
    return process, stage, child


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
@pytest.mark.parametrize("work", [DEAF, BUSY])
def test_a_stage_that_does_not_look_ends_with_all_that_it_started(work: str, number: int) -> None:
    process, _, child = started([sys.executable, "-c", STAGE + work])
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 75
    assert errors.count("\n") == 1 and f"stopped by {signal.Signals(number).name}, not at an end 0.5 s later" in errors
    child.wait(5)


@pytest.mark.parametrize(("work", "code"), [(HEEDS, 75), (FINISHES, 0)])
def test_a_stage_that_looks_or_finishes_is_left_alone(work: str, code: int) -> None:
    process, _, _ = started([sys.executable, "-c", STAGE + work])
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20)[1] == "" and process.returncode == code


@pytest.mark.parametrize("work", [DEAF, BUSY, HEEDS])
def test_a_stage_whose_parent_is_killed_ends(work: str) -> None:
    process, stage, child = started([sys.executable, "-c", PARENT, STAGE + work])
    process.kill()
    _, alive = psutil.wait_procs([stage, child], timeout=20)
    process.communicate()
    assert alive == []


def test_who_waits_for_a_lock_looks_at_its_stop(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout and other.stdout.readline() == "held\n"
        stop, started_s = StopRequest(), time.monotonic()
        stop.ask("a test")
        with pytest.raises(Stopped, match="a test"), hold(tmp_path, "it", "mine", 60.0, stop.check):
            pytest.fail("held twice")
        assert time.monotonic() - started_s < 5
        other.kill()
    with hold(tmp_path, "it", "mine"):
        assert (tmp_path / "holder.json").is_file()


def test_decoding_can_be_left_after_every_token(tmp_path: Path) -> None:
    folder = make_inputs(tmp_path)["model"] / "model"
    asked = settings(samples=1, temperature=0.0)
    problems = [Problem(str(number), "What is it?", "0") for number in range(2)]
    prompts = render_prompts(load_tokenizer(folder), problems, "{problem}")
    requests = plan_requests(prompts, asked)
    looks = list(TransformersDecoder(DecodeSettings(folder, (), asked, some_resources())).complete(requests, ()))
    assert looks[:5] == [[]] * 5 and sum(map(len, looks)) == 2
    assert len(looks) >= max(request.max_new_tokens for request in requests)


@pytest.mark.slow
def test_the_next_run_waits_for_an_orphan_and_says_so(tmp_path: Path) -> None:
    """Another process holds a stage's folder, as one does that writes its checkpoint; it lets go when it is seen."""
    words = Options(experiment=str(MICRO), only="download", runs=str(tmp_path))
    wanted = select(words, baselines=False).wanted
    stage = next(stage for stage in wanted if stage.title == "download benchmark tiny-sums")
    holder = HOLDER.replace("60", "600")
    command = [sys.executable, "-c", holder, str(tmp_path / "stages" / stage.id)]
    line = command_line("run", "--experiment", str(MICRO), "--only", "download", "--runs", str(tmp_path))
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as orphan:
        assert orphan.stdout and orphan.stdout.readline() == "held\n"
        with subprocess.Popen(line, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as run:
            assert run.stdout
            waits = next((text for text in run.stdout if " waits until " in text), "")
            assert stage.title in waits and f"process {orphan.pid} on" in waits
            orphan.kill()
            said = run.stdout.read()
        assert run.returncode == 0, said
