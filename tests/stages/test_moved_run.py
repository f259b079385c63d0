"""A finished run, touched, moved with its data to another machine's path, and copied back: no stage is ever left."""

import json
import os
import shutil
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")

from support.model_folders import make_folder
from support.project import MICRO, invoke

OWN = """
extends = "{micro}"
title = "All of it lies beside this file"

[[matrix]]
dataset = ["mine"]
pair = ["own-teacher_own-student"]
lsp = [0.5]

[data.mine]
max_row_tokens = 400
split_seed = 1
tokenizer = "student"
max_row_characters = 10000
max_rejected_share = 0.0
train_rows = 8
validation_rows = 4

[decontamination]
benchmarks = ["own"]

[evaluation]
benchmarks = ["own"]
samples = 1
max_new_tokens = 4
max_model_tokens = 64

[datasets.mine]
path = "{data}/rows"
format = "messages"

[models.own-teacher]
path = "{data}/teacher"

[models.own-student]
path = "{data}/student"

[benchmarks.own]
path = "{data}/problems.jsonl"
problem_field = "problem"
answer_field = "answer"
answer_type = "integer"
prompt = "{{problem}}"
"""


def make_sources(folder: Path) -> None:
    make_folder(folder / "teacher")
    make_folder(folder / "student", intermediate_size=48)
    (folder / "rows" / "more").mkdir(parents=True)
    for number in range(16):
        turns = [f"What is {number} + 1?", f"<think>\n{number} and 1.\n</think>\n\nIt is {number + 1}."]
        roles = zip(("user", "assistant"), turns, strict=True)
        row = {"messages": [{"role": role, "content": content} for role, content in roles]}
        place = folder / "rows" / ("more" if number % 2 else "") / f"{number}.jsonl"
        place.write_text(json.dumps(row) + "\n")
    (folder / "problems.jsonl").write_text('{"problem": "1+1?", "answer": 2}\n{"problem": "2+2?", "answer": 4}\n')


def left(place: Path, data: str = "data") -> int:
    """Stages that a run of the experiment would start, as its dry run says."""
    (place / "mine.toml").write_text(OWN.format(micro=MICRO, data=data))
    done = invoke("reproduce", str(place / "mine.toml"), "--runs", str(place / "runs"), "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    return len(json.loads(done.stdout))


def touch(folder: Path) -> None:
    for number, path in enumerate([folder, *folder.rglob("*")]):
        os.utime(path, (number + 1, number + 1))


@pytest.mark.nightly
@pytest.mark.slow
def test_touched_moved_and_copied_back_nothing_is_left(tmp_path: Path) -> None:
    here = tmp_path / "here"
    make_sources(here / "data")
    stages = left(here)
    done = invoke("reproduce", str(here / "mine.toml"), "--runs", str(here / "runs"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert stages == len(list(here.glob("runs/stages/*/manifest.json"))) > 8 and left(here) == 0
    touch(here)
    assert left(here) == 0, "touched"
    there = tmp_path / "another" / "machine's path" / "of mine"
    there.parent.mkdir(parents=True)
    shutil.move(here, there)
    assert left(there) == 0, "moved"
    assert left(there, str(there / "data")) == 0, "named by its absolute path"
    shutil.copytree(there, here, copy_function=shutil.copyfile)
    shutil.rmtree(there)
    assert left(here) == 0, "copied back, with new times"
    (here / "data").rename(here / "renamed")
    assert left(here, "renamed") == 0, "the data alone have another name"
    again = invoke("reproduce", str(here / "mine.toml"), "--runs", str(here / "runs"))
    assert again.returncode == 0 and f"all {stages} stages were done before" in again.stdout
    verified = invoke("verify", str(here / "runs"))
    assert verified.returncode == 0, verified.stdout
    (here / "renamed" / "rows" / "0.jsonl").write_text((here / "renamed" / "rows" / "2.jsonl").read_text())
    assert left(here, "renamed") > 0, "other rows are other work"
