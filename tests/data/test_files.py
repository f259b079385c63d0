"""Files of rows: order, kinds, damage, memory."""

import codecs
import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from essence.data import row_files as files
from essence.data.row_files import count_rows, read_rows
from essence.errors import InputError, disk_error
from essence.files import sha256_file


def row(number: object) -> dict[str, Any]:
    return {"prompt": f"What is {number}?", "turns": [{"role": "user", "text": "é 😀 \n"}]}


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(found, ensure_ascii=False) + "\n" for found in rows)


def test_files_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    rows = [row(number) for number in range(1300)]
    (tmp_path / "a").mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[:1200]), tmp_path / "a" / "part.parquet")
    (tmp_path / "b.json").write_text(json.dumps(rows[1200:1220], indent=1), encoding="utf-8")
    (tmp_path / "c.json").write_text(lines(rows[1220:1240]), encoding="utf-8")
    (tmp_path / "d.json.gz").write_bytes(gzip.compress(json.dumps(rows[1240:1260]).encode()))
    (tmp_path / "e.jsonl").write_text(lines(rows[1260:1280]).replace("\n", "\r\n\n"), encoding="utf-8")
    (tmp_path / "f.jsonl.gz").write_bytes(gzip.compress(lines(rows[1280:]).encode()))
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / "dataset_infos.json").write_text('{"default": {}}')
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.json").write_text("not data")
    assert list(read_rows(tmp_path)) == rows
    assert count_rows(tmp_path) == 1300


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"x": 1}\n{"x": \n', r"a\.jsonl:2: not valid JSON"),
        ("a.jsonl", b'{"x": 1}\n{"x": "\xff"}\n', r"a\.jsonl:2: not valid JSON"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl:1: not valid JSON"),
        ("a.jsonl", b"9" * 5_000, r"a\.jsonl:1: not valid JSON"),
        ("a.jsonl.gz", gzip.compress(b'{"x": 1}\n' * 1000, mtime=0)[:-9], r"a\.jsonl\.gz: damaged"),
        ("a.jsonl.gz", b'{"x": 1}\n', r"a\.jsonl\.gz: damaged"),
        ("a.json", b'{"x": 1}\n{', r"a\.json:2: not valid JSON"),
        ("a.json", b"[1", r"a\.json: not valid JSON"),
        ("a.json", b"[1, 2", r"a\.json: not valid JSON"),
        ("a.json", b"[1 2]", "wanted a comma"),
        ("a.json", b"[1,, 2]", "not valid JSON"),
        ("a.json", b"[1, 2] 3", "text after the list"),
        ("a.json", b'["\xff"]', "damaged"),
        ("a.json", b'{\n "a": 1\n}\n', r"a\.json is no file of rows; remove it, or name the files with `files`"),
        ("a.jsonl", '{"x": 1}\n'.encode("utf-16"), r"a\.jsonl: it is UTF-16"),
        ("a.jsonl", '{"x": 1}\n'.encode("utf-16-be"), r"a\.jsonl: it is UTF-16"),
        ("a.json", '[{"x": 1}]'.encode("utf-32"), r"a\.json: it is UTF-32"),
        ("a.jsonl.gz", gzip.compress('{"x": 1}\n'.encode("utf-16")), r"a\.jsonl\.gz: it is UTF-16"),
        ("a.json", b"[" * 100_000, "not valid JSON"),
        ("a.parquet", b"PAR1", "damaged Parquet"),
        ("a.txt", b"", "no rows"),
    ],
    # Not the content, of up to 100,000 bytes.
    ids=lambda value: value if isinstance(value, str) else f"{len(value)}-bytes",
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(read_rows(tmp_path))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.json.gz"])
@pytest.mark.parametrize("content", [b"", b'{"x": 1}\r\n{"x": 2}\r\n'])
def test_a_byte_order_mark_is_no_part_of_a_row(tmp_path: Path, name: str, content: bytes) -> None:
    marked = codecs.BOM_UTF8 + content
    (tmp_path / name).write_bytes(gzip.compress(marked) if name.endswith(".gz") else marked)
    assert list(read_rows(tmp_path)) == ([{"x": 1}, {"x": 2}] if content else [])
    assert count_rows(tmp_path) == (2 if content else 0)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60)
@given(st.lists(json_values, max_size=6), st.sampled_from([None, 1]), st.integers(1, 9))
def test_a_list_reads_alike_wherever_a_stretch_of_it_ends(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], indent: int | None, chunk: int
) -> None:
    folder = tmp_path_factory.mktemp("list")
    (folder / "a.json").write_text(f" \n{json.dumps(values, indent=indent)}\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(files, "CHUNK_CHARACTERS", chunk)
        assert list(read_rows(folder)) == values


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    """No more than a few stretches of a file are ever held."""
    rows = [{"prompt": f"What is {number}?"} for number in range(100_000)]
    if name == "rows.parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / name, row_group_size=5000)
    else:
        text = lines(rows) if name == "rows.jsonl" else json.dumps(rows)
        (tmp_path / name).write_text(text, encoding="utf-8")
    del rows
    tracemalloc.start()
    count = sum(1 for _ in read_rows(tmp_path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 100_000
    assert peak < 6e6


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file here whose reading fails")
def test_a_file_that_cannot_be_read_to_its_end_is_named() -> None:
    with pytest.raises(OSError) as refused:
        sha256_file(Path("/proc/self/mem"))
    assert refused.value.filename == "/proc/self/mem"
    said = disk_error(refused.value, "the run directory")
    assert said is not None and "/proc/self/mem: its disk does not answer" in str(said)
