"""An experiment whose benchmark has an answer that no grader can read."""

import json
from pathlib import Path

from support.project import MICRO

OWN = f"""
extends = "{MICRO}"
title = "Answers that are none"
[evaluation]
benchmarks = ["own"]
[decontamination]
benchmarks = []
[benchmarks.own]
path = "own.jsonl"
problem_field = "problem"
answer_field = "answer"
answer_type = "latex"
prompt = "{{problem}}"
"""
SAID = "own, problem 1: the grader {} cannot read the gold answer '?!', wanted: a number or LaTeX"


def write_experiment(folder: Path) -> Path:
    """The TOML file and its problems in a folder; returns the TOML file."""
    rows = [{"problem": "1+1?", "answer": "2"}, {"problem": "Why?", "answer": "?!"}]
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "own.toml").write_text(OWN)
    return folder / "own.toml"
