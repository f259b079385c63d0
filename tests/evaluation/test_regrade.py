"""A changed grader judges the stored samples again; nothing is generated or trained again."""

import json
import shutil
from pathlib import Path

import pytest

from support.project import MICRO, invoke

pytest.importorskip("math_verify", reason="math-verify is not installed")

STAGES_BEFORE = ("download", "tokenize", "train", "generate")


def folders(runs: Path, *stages: str) -> dict[str, int]:
    """Stage folders by name, with the time when their samples or other output were last written."""
    found = [path for path in (runs / "stages").iterdir() if path.name.startswith(tuple(f"{s}-" for s in stages))]
    return {path.name: (path / "output").stat().st_mtime_ns for path in found}


def test_only_grade_judges_the_stored_samples_again(micro: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(micro, runs)
    variant = tmp_path / "regraded.toml"
    variant.write_text(f'extends = {json.dumps(str(MICRO))}\n\n[grading]\ngrader = "math-verify"\n')
    before, graded_before = folders(runs, *STAGES_BEFORE), folders(runs, "grade")
    done = invoke("run", "--experiment", str(variant), "--only", "grade", "--runs", str(runs))
    assert done.returncode == 0, done.stdout + done.stderr
    assert folders(runs, *STAGES_BEFORE) == before
    new = folders(runs, "grade").keys() - graded_before.keys()
    assert new and graded_before
    for name in new:
        manifest = json.loads((runs / "stages" / name / "manifest.json").read_text(encoding="utf-8"))
        assert manifest["settings"]["executed"]["grader"] == "math-verify"
