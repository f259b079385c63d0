"""The pieces of the sample browser, from samples and verdicts to what the page unpacks."""

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from essence.report.build import write_report
from essence.report.page import samples
from essence.report.page.samples import Pieces, longest_kept, packed, write_pieces
from essence.report.results.read import read_results
from support.synthetic_run import PROBLEMS, SAMPLES, SyntheticRun


@pytest.fixture
def run(tmp_path: Path) -> SyntheticRun:
    return SyntheticRun(tmp_path, lsps=(0.5, 1.0), seeds=(1,)).write()


def pieces(run: SyntheticRun, name: str = "new", old: str = "old") -> tuple[Pieces, Path]:
    folder = run.root / name
    folder.mkdir()
    return write_pieces(read_results(run.root, "tiny"), folder, run.root / old), folder


def unpacked(text: str) -> dict[str, Any]:
    piece: dict[str, Any] = json.loads(gzip.decompress(base64.b64decode(text)))
    return piece


def test_a_piece_holds_every_sample_with_its_verdict(run: SyntheticRun) -> None:
    found, folder = pieces(run)
    piece = unpacked(found.embedded[run.stage_of(0, "grade")])
    assert not found.beside and not (folder / "samples").exists()
    assert len(piece["text"]) == len(piece["correct"]) == len(piece["problem"]) == PROBLEMS * SAMPLES
    manifest = json.loads((run.root / "stages" / run.stage_of(0, "grade") / "manifest.json").read_text())
    assert sum(piece["correct"]) / len(piece["correct"]) == manifest["results"]["accuracy"]
    assert piece["problems"][3] == ["sum-03", "6"] and piece["left_out"] == [0] * PROBLEMS * SAMPLES
    statements = [unpacked(text) for id, text in found.embedded.items() if id.startswith("download-")]
    assert statements == [{f"sum-{n:02d}": f"What is {n} + {n}?" for n in range(PROBLEMS)}]


def test_the_same_piece_gives_the_same_text() -> None:
    assert packed({"text": ["ä" * 1000]}) == packed({"text": ["ä" * 1000]})


def test_many_pieces_lie_beside_the_page_and_are_not_made_twice(
    run: SyntheticRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "MOST_EMBEDDED_BYTES", 1000)
    first = write_report(run.root, "tiny").parent.rename(run.root / "first")
    changed, edited = (run.stage_of(cell, "grade") for cell in (0, 1))
    run.damage(changed, seeds={"sampling": 9})
    with (first / "samples" / f"{edited}.js").open("a") as file:
        file.write("// a line by hand\n")
    found, newer = pieces(run, "newer", "first")
    assert found.beside and not found.embedded
    assert {file.stem for file in (newer / "samples").iterdir()} == found.ids
    same = {id for id in found.ids if (newer / "samples" / f"{id}.js").samefile(first / "samples" / f"{id}.js")}
    assert found.ids - same == {changed, edited}
    assert "by hand" not in (newer / "samples" / f"{edited}.js").read_text()


def test_an_evaluation_without_its_files_has_no_piece(run: SyntheticRun) -> None:
    """As in a copy without samples, or with a file that was cut off."""
    whole = pieces(run)[0].ids
    generate, grade = run.stage_of(0, "generate"), run.stage_of(1, "grade")
    (run.root / "stages" / generate / "output" / "samples.jsonl").unlink()
    verdicts = run.root / "stages" / grade / "output" / "verdicts.jsonl"
    verdicts.write_bytes(verdicts.read_bytes()[:-20])
    assert whole - pieces(run, "newer")[0].ids == {run.stage_of(0, "grade"), grade}


def test_long_completions_lose_their_middle_and_short_ones_nothing(
    run: SyntheticRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "PIECE_CHARACTERS", 60 * PROBLEMS * SAMPLES)
    file = run.root / "stages" / run.stage_of(0, "generate") / "output" / "samples.jsonl"
    whole = [json.loads(line)["completion"] for line in file.read_text().splitlines()]
    piece = unpacked(pieces(run)[0].embedded[run.stage_of(0, "grade")])
    assert sum(len(a) + len(b) for a, b in zip(piece["text"], piece["end"], strict=True)) <= 60 * PROBLEMS * SAMPLES
    for text, begin, end, left in zip(whole, piece["text"], piece["end"], piece["left_out"], strict=True):
        assert text.startswith(begin) and text.endswith(end) and len(text) == len(begin) + len(end) + left
    assert min(piece["left_out"]) == 0 < max(piece["left_out"])


@pytest.mark.parametrize(
    ("lengths", "most", "kept"),
    [([3, 3], 6, None), ([], 6, None), ([10, 10], 6, 3), ([1, 10, 10], 9, 4), ([9, 0, 9], 2, 1)],
)
def test_the_length_kept_fills_what_there_is_room_for(lengths: list[int], most: int, kept: int | None) -> None:
    assert longest_kept(lengths, most) == kept
