"""Fetching rows from a hub, for real, over HTTP: early stop, broken connections, kills; nothing is fetched twice."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from support.local_hub import COMMIT, REPOSITORY, LocalHub, local_hub
from support.some_resources import some_resources

pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")

from essence.data.row_files import read_rows
from essence.record.manifest import Image
from essence.settings import Source, Spec

BLOCK_BYTES = 200_000
CUT_WAIT_S = 300.0


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    (tmp_path / "hub").mkdir()
    with local_hub(tmp_path / "hub") as server:
        yield server


def lines(count: int, start: int = 0) -> bytes:
    """Rows of about a kilobyte, no two of the same length."""
    rows = ({"input": f"{number}", "output": "x" * (800 + number % 397)} for number in range(start, start + count))
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def prepare(folder: Path, **changes: Any) -> Path:
    """The folder of a download stage with its spec."""
    plain = {"kind": "dataset", "name": "rows", "repository": REPOSITORY, "commit": COMMIT, "files": ["*.jsonl"]}
    source = Source.model_validate({**plain, **changes})
    spec = Spec(
        stage="download",
        key="0" * 64,
        title="download dataset rows",
        settings={"source": source.model_dump(mode="json")},
        inputs={},
        environment={},
        source_sha256="",
        resources=some_resources(threads=1),
        code={"version": "0", "commit": None, "dirty": False, "diff_sha256": None},
        image={**dict.fromkeys(Image.model_fields), "engine": "local"},
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.json").write_text(spec.model_dump_json(), encoding="utf-8")
    return folder


def start(hub: LocalHub, stage: Path) -> subprocess.Popen[str]:
    """The stage as a process of its own; with small blocks, a few megabytes are many requests; retries do not wait."""
    small = (
        f"import time; time.sleep = lambda s: None; import essence.data.hub_stream as s; s.BLOCK_BYTES = {BLOCK_BYTES}"
    )
    code = f"import sys; {small}; from essence.stages.__main__ import main; sys.exit(main())"
    line = [sys.executable, "-c", code, "download", "--spec", str(stage / "spec.json")]
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    environment |= {"HF_HOME": str(stage.parent / "hf"), "HF_HUB_DOWNLOAD_TIMEOUT": "3"}
    return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(hub: LocalHub, stage: Path) -> tuple[int, str]:
    process = start(hub, stage)
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


def fetched(hub: LocalHub, name: str) -> int:
    return sum(length for file, _, length in hub.ranges if file == name)


def manifest(stage: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((stage / "manifest.json").read_text(encoding="utf-8"))
    return read


def test_lines_stop_early_and_go_on_after_a_broken_connection(hub: LocalHub, tmp_path: Path) -> None:
    """The connection is cut inside two blocks; the hub's own library asks again, and only for those blocks."""
    (hub.folder / "a.jsonl").write_bytes(lines(900))
    (hub.folder / "b.jsonl").write_bytes(lines(9000, 900))
    hub.breaks_at = [300_000, 1_250_000]
    stage = prepare(tmp_path / "stage", rows_wanted=1500)
    code, errors = run(hub, stage)
    assert code == 0, errors
    kept = [row["input"] for row in read_rows(stage / "output" / "rows") if isinstance(row, dict)]
    assert kept == [str(n) for n in range(1500)]
    assert (stage / "output" / "rows" / "a.jsonl").read_bytes() == lines(900)
    assert (stage / "output" / "rows" / "b.jsonl").read_bytes() == lines(600, 900)
    assert manifest(stage)["results"]["rows"] == 1500
    assert fetched(hub, "b.jsonl") < len(lines(600, 900)) + 3 * BLOCK_BYTES
    assert max(length for _, _, length in hub.ranges) <= BLOCK_BYTES


def test_a_hub_that_stays_away_is_one_sentence_and_the_next_attempt_goes_on(hub: LocalHub, tmp_path: Path) -> None:
    (hub.folder / "a.jsonl").write_bytes(lines(3000))
    stage = prepare(tmp_path / "stage", rows_wanted=2000)
    hub.dead_after = 1_100_000
    code, errors = run(hub, stage)
    assert code == 2
    assert "cannot go on streaming someone/rows at 0123456789ab" in errors and "the same command goes on" in errors
    assert "Traceback" not in errors
    kept = (stage / "partial" / "rows" / "a.jsonl").stat().st_size
    assert kept == 1_000_000  # whole blocks before the cut
    hub.dead_after, hub.ranges = None, []
    code, errors = run(hub, stage)
    assert code == 0, errors
    assert min(first for _, first, _ in hub.ranges) == kept
    assert (stage / "output" / "rows" / "a.jsonl").read_bytes() == lines(2000)


def test_killed_in_the_middle_it_goes_on_at_the_byte(hub: LocalHub, tmp_path: Path) -> None:
    (hub.folder / "a.jsonl").write_bytes(lines(3000))
    stage = prepare(tmp_path / "stage", rows_wanted=2900)
    hub.waits_at = 600_000
    process = start(hub, stage)
    wait_until(lambda: fetched(hub, "a.jsonl") > 600_000)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    hub.waits_at = None
    hub.go_on.set()
    kept = (stage / "partial" / "rows" / "a.jsonl").stat().st_size
    assert 0 < kept < len(lines(2900))
    hub.ranges = []
    code, errors = run(hub, stage)
    assert code == 0, errors
    assert min(first for _, first, _ in hub.ranges) == kept
    assert (stage / "output" / "rows" / "a.jsonl").read_bytes() == lines(2900)
    assert [attempt["outcome"] for attempt in manifest(stage)["identity"]["attempts"]] == ["killed", "finished"]


def test_parquet_by_row_group_and_column(hub: LocalHub, tmp_path: Path) -> None:
    """Two shards of ten row groups; most of their bytes are a column that is not requested and not downloaded."""
    for shard in range(2):
        numbers = range(shard * 1000, shard * 1000 + 1000)
        rows = [{"prompt": f"{number}", "more": os.urandom(500).hex(), "task_type": "math"} for number in numbers]
        file = hub.folder / "data" / f"train-{shard:05d}-of-00002.parquet"
        file.parent.mkdir(exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=100)
    asked = {"files": ["data/*.parquet"], "rows_wanted": 1150, "columns": ["prompt", "task_type"]}
    stage = prepare(tmp_path / "stage", **asked)
    hub.breaks_at = [20_000]
    code, errors = run(hub, stage)
    assert code == 0, errors
    found = list(read_rows(stage / "output" / "rows"))
    assert found == [{"prompt": str(number), "task_type": "math"} for number in range(1150)]
    whole = sum(file.stat().st_size for file in hub.folder.rglob("*.parquet"))
    assert hub.sent < whole / 5
    again = prepare(tmp_path / "again", **asked)
    (again / "partial" / "rows").parent.mkdir(parents=True)
    (stage / "output" / "rows").rename(again / "partial" / "rows")
    parts = sorted((again / "partial" / "rows" / "data").rglob("*.parquet"))
    assert len(parts) == 12
    parts[-1].unlink()
    hub.sent = 0
    before = {part: part.stat().st_mtime_ns for part in parts[:-1]}
    code, errors = run(hub, again)
    assert code == 0, errors
    assert list(read_rows(again / "output" / "rows")) == found
    kept = {part: (again / "output" / part.relative_to(again / "partial")).stat().st_mtime_ns for part in parts[:-1]}
    assert kept == before


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"files": ["*.csv"]}, "holds no .jsonl or .parquet file among *.csv"),
        ({"repository": "someone/else"}, "cannot go on streaming someone/else at 0123456789ab"),
        ({"files": ["*.parquet"], "columns": ["promt"]}, "has no column 'promt'; did you mean 'prompt'?"),
    ],
)
def test_what_cannot_be_streamed_is_one_sentence(
    hub: LocalHub, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    (hub.folder / "a.jsonl").write_bytes(lines(3))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"prompt": "x"}]), hub.folder / "b.parquet")
    code, errors = run(hub, prepare(tmp_path / "stage", rows_wanted=10, **changes))
    assert code == 2
    assert sentence in errors and "Traceback" not in errors


def test_a_small_set_is_fetched_whole_by_its_patterns(hub: LocalHub, tmp_path: Path) -> None:
    (hub.folder / "data").mkdir()
    (hub.folder / "data" / "train.jsonl").write_bytes(lines(2000))
    (hub.folder / "other.jsonl").write_bytes(lines(5))
    (hub.folder / "README.md").write_text("about")
    hub.breaks_at = [700_000]
    stage = prepare(tmp_path / "stage", files=["data/*.jsonl"])
    code, errors = run(hub, stage)
    assert code == 0, errors
    rows = stage / "output" / "rows"
    assert [path.relative_to(rows).as_posix() for path in rows.rglob("*") if path.is_file()] == ["data/train.jsonl"]
    assert (rows / "data" / "train.jsonl").read_bytes() == lines(2000)


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + CUT_WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)
