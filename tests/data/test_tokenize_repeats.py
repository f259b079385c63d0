"""The fingerprint of the tokens is the same with any number of threads, with either library, and after a kill."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from support.finished_input import write_manifest
from support.project import PROJECT
from support.stage_inputs import RESOURCES, context
from support.tokenize_settings import tokenize_settings

pytest.importorskip("torch", reason="PyTorch is not installed")

from essence.data import encode as encoding
from essence.settings import Spec
from essence.stages import tokenize
from essence.stages.tiny.problems import training_rows
from essence.stages.tiny.toy_tokenizer import TURN_END, write_tokenizer

ROWS = 6_000
MOST_BYTES = 2_000_000
"""Written of the 3 million when the stage is killed, at most."""


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished stages `rows` and `tokenizer`."""
    folder = tmp_path_factory.mktemp("stages")
    rows = folder / "rows" / "output" / "rows"
    rows.mkdir(parents=True)
    made = training_rows(300, (2, 3), 5, slip=0)
    lines = [json.dumps({**row, "number": number}) for number, row in enumerate(made * (ROWS // 300))]
    (rows / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_tokenizer(folder / "tokenizer" / "output" / "model", TURN_END)
    for name in ("rows", "tokenizer"):
        write_manifest(folder / name)
    return folder


ASKED = tokenize_settings(faulty_rows="keep")


def run_with(stages: Path, folder: Path, threads: int) -> Any:
    surroundings = context(folder, rows=stages / "rows" / "output", tokenizer=stages / "tokenizer" / "output")
    resources = RESOURCES.model_copy(update={"threads": threads})
    object.__setattr__(surroundings, "resources", resources)
    return tokenize.run(ASKED, surroundings)


def test_threads_batches_and_library_change_nothing(
    stages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_with(stages, tmp_path / "a", 1)
    assert first.executed.encoder.startswith("tiktoken")
    monkeypatch.setattr(tokenize, "BATCH_ROWS", 57)
    many = run_with(stages, tmp_path / "b", 4)

    def refuse(_self: Any, _backend: Any) -> None:
        raise encoding.NotTheSame("not today")

    monkeypatch.setattr(encoding.FastEncoding, "__init__", refuse)
    slow = run_with(stages, tmp_path / "c", 2)
    assert slow.executed.encoder.startswith("tokenizers")
    assert slow.executed.encoder_reason == "not today"
    assert first.data == many.data == slow.data
    assert first.results == many.results == slow.results


def stage_process(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "essence.stages", "tokenize", "--spec", str(folder / "spec.json")]
    return subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_killed_at_a_random_moment_and_issued_again(stages: Path, tmp_path: Path) -> None:
    folder = stages / "tokenize"
    folder.mkdir()
    spec = Spec(
        stage="tokenize",
        key="0" * 64,
        title="tokenize",
        settings=ASKED.model_dump(mode="json"),
        inputs={"rows": "../rows", "tokenizer": "../tokenizer"},
        environment={},
        source_sha256="",
        resources=RESOURCES,
        code={"version": "0", "commit": None, "dirty": None, "diff_sha256": None},
        image={"engine": "local", "engine_version": None, "digest": None, "base_digest": None, "sif_sha256": None},
    )
    (folder / "spec.json").write_text(spec.model_dump_json(), encoding="utf-8")
    process, written = stage_process(folder), folder / "partial" / ".tokens.arrow.tmp"
    enough = random.random() * MOST_BYTES
    while process.poll() is None and not (written.exists() and written.stat().st_size >= enough):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "manifest.json").exists(), "finished before it was killed: give it more rows"
    assert stage_process(folder).wait() == 0
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    undisturbed = run_with(stages, tmp_path, 2)
    assert manifest["inputs"]["data"] == undisturbed.data.model_dump()
    assert manifest["results"] == undisturbed.results.model_dump(mode="json")
    assert {output["path"] for output in manifest["outputs"]} == {"tokens.arrow", "statistics.json", "rejections.json"}
