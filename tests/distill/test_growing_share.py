"""A training whose share of a row grows: killed at any moment and run again it ends in the same bytes."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")
from essence.data.token_table import TokenTable
from essence.distill.row_split import growing_examples, select_rows
from essence.progress import StageContext
from essence.settings import Resources
from essence.stages import train
from support.stage_inputs import RESOURCES, context, inputs, train_settings, view

GROWING = train_settings(view=view(lsp=0.625, span="schedule"))


class Killed(Exception):
    """As a power cut: nothing in the stage expects it."""


def surroundings(folder: Path, prepared: dict[str, Path]) -> StageContext:
    """A checkpoint after each step."""
    around = context(folder, **inputs(prepared))
    every_step = Resources.model_validate({**RESOURCES.model_dump(), "checkpoint_every_s": 0.0})
    return StageContext(around.partial, around.inputs, every_step, around.progress, around.stop)


def killed_after(step: int, folder: Path, prepared: dict[str, Path]) -> None:
    around = surroundings(folder, prepared)
    update = around.progress.update

    def kill(phase: str, done: int, total: int, unit: str, note: str = "") -> None:
        update(phase, done, total, unit, note)
        if unit == "steps" and done == step:
            raise Killed

    around.progress.update = kill  # type: ignore[method-assign]
    with pytest.raises(Killed):
        train.run(GROWING, around)


MEASURED = ("seconds", "peak_memory_gib")
"""What the machine decides, not the training."""


def without_measured(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "partial" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = {(line["kind"], line["step"]): line for line in map(json.loads, lines)}
    return [{name: value for name, value in found[key].items() if name not in MEASURED} for key in sorted(found)]


def test_killed_three_times_it_ends_in_the_same_bytes(prepared: dict[str, Path], tmp_path: Path) -> None:
    undisturbed = train.run(GROWING, surroundings(tmp_path / "one", prepared))
    for step in (2, 5, 8):
        killed_after(step, tmp_path / "killed", prepared)
    resumed = train.run(GROWING, surroundings(tmp_path / "killed", prepared))
    assert without_measured(tmp_path / "killed") == without_measured(tmp_path / "one")
    assert resumed.data == undisturbed.data and resumed.results == undisturbed.results
    weights = sorted((tmp_path / "one" / "partial").rglob("*.safetensors"))
    assert weights
    for path in weights:
        again = tmp_path / "killed" / path.relative_to(tmp_path / "one")
        assert again.read_bytes() == path.read_bytes(), path.name


def test_the_share_grows_with_each_step_and_reads_as_much_as_the_constant_one(prepared: dict[str, Path]) -> None:
    table = TokenTable(prepared["tokens"] / "tokens.arrow")
    drawn = select_rows(table.lengths, GROWING.rows).train
    found = growing_examples(table, drawn, GROWING, -1)
    lengths = dict(zip(table.positions.tolist(), table.lengths.tolist(), strict=True))
    shares = [example.input_ids.size / lengths[example.row] for example in found.examples]
    assert len(found.examples) + sum(found.skipped.values()) == drawn.size * GROWING.optimizer.epochs
    batch = GROWING.optimizer.batch_rows
    first, last = shares[:batch], shares[-batch:]
    assert max(first) < 0.45 and min(last) > 0.8 and sum(first) < sum(last)
    whole = [int(lengths[example.row] * 0.625) for example in found.examples]
    assert abs(sum(example.input_ids.size for example in found.examples) - sum(whole)) <= len(whole)
