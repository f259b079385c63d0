"""A teacher paid once: stored states give the live teacher's training; what is damaged or does not fit is named."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from support.project import MICRO, invoke

pytest.importorskip("transformers", reason="transformers is not installed")
from essence.data.token_table import TokenTable
from essence.data.truncation import Example, collect
from essence.distill.batches import Batch
from essence.distill.entropy import entropies
from essence.distill.row_split import load_cell_rows
from essence.distill.stored_states import StoredPads, StoredRows
from essence.distill.teachers import CachedTeacher, LiveTeacher
from essence.errors import ExperimentError, InputError, MachineError
from essence.models.loading import load_model
from essence.plan.experiment import load
from essence.plan.stage_plan import Plan, make_plan
from essence.plan.stored_teacher import StoredTeacher
from essence.progress import StageContext, Stopped
from essence.settings import Resources, TeacherSettings, TrainSettings
from essence.stages import teacher, train
from support.small_disk import mounted
from support.stage_inputs import RESOURCES, context, inputs, make_model, make_tokenizer, train_settings, view

CPU = torch.device("cpu")
FLOAT32_TOLERANCE = 2e-6
"""Of losses of about 4: the same sums in batches of another shape."""
BFLOAT16_TOLERANCE = 2e-2
ROW_KIB = 6.0 / 1024
"""MiB of a file that holds about one row."""


def stage_settings(**changes: Any) -> TeacherSettings:
    cell = train_settings()
    fields = {
        "rows": cell.rows,
        "compute_dtype": "float32",
        "packing": True,
        "pad_to_multiple": 16,
    }
    return TeacherSettings.model_validate({**fields, **changes})


def surroundings(folder: Path, prepared: dict[str, Path], **resources: Any) -> StageContext:
    around = context(folder, tokens=prepared["tokens"], tokenizer=prepared["student"], teacher=prepared["teacher"])
    changed = Resources.model_validate({**RESOURCES.model_dump(), "teacher_shard_mib": ROW_KIB, **resources})
    return StageContext(around.partial, around.inputs, changed, around.progress, around.stop)


def store(folder: Path, prepared: dict[str, Path], **changes: Any) -> Path:
    """The output folder of a teacher stage."""
    around = surroundings(folder, prepared)
    teacher.run(stage_settings(**changes), around)
    return around.partial


@pytest.fixture(scope="module")
def cache(prepared: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store(tmp_path_factory.mktemp("cache"), prepared)


def curve(folder: Path, prepared: dict[str, Path], settings: TrainSettings, **changes: Path) -> list[float]:
    around = context(folder, **inputs(prepared, **changes))
    train.run(settings, around)
    lines = [json.loads(line) for line in (around.partial / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if line["kind"] == "step" for name in ("loss", "kd", "gradient_norm")]


def test_what_the_stage_stores_and_tells(prepared: dict[str, Path], tmp_path: Path) -> None:
    around = surroundings(tmp_path, prepared)
    outcome = teacher.run(stage_settings(), around)
    index = json.loads((around.partial / "rows" / "index.json").read_text())
    table = TokenTable(prepared["tokens"] / "tokens.arrow")
    expected = table.positions[np.random.default_rng(42).permutation(36)[6:26]].tolist()
    stored = [load_file(around.partial / "rows" / entry["file"]) for entry in index["files"]]
    assert [position for file in stored for position in file["positions"].tolist()] == expected
    results = outcome.results
    assert results.rows == 20 and results.files == len(index["files"]) > 5
    assert results.tokens == sum(int(file["lengths"].sum()) for file in stored) == outcome.cost.tokens
    assert 0 <= results.bytes - results.tokens * (24 * 4 + 4 + 2) < 1000 * len(stored)
    assert outcome.cost.flops > 0 and outcome.executed.packed and 0.5 < outcome.executed.fill <= 1.0
    assert {path.name for path in (around.partial / "model").iterdir()} >= {
        "head.safetensors",
        "config.json",
        "tokenizer.json",
    }
    json.dumps(outcome.model_dump(mode="json"), allow_nan=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"view": view(lsp=0.3)},
        {"view": view(lsp=0.6), "packing": False},
        {"view": view(lsp=1.0, sections="cot+a")},
        {"view": view(lsp=0.3, left_pad_multiple=16)},
        {"view": view(lsp=0.6, left_pad_multiple=16), "packing": False},
        {"view": view(span="right-with-context")},
        {"view": view(span="cot-lead", sections="cot")},
        {"view": view(span="middle", keep_context=True)},
        {"view": view(lsp=1.0, span="first-9")},
        {"view": view(span="random-span", draw_seed=3), "packing": False},
        {"view": view(span="random-tokens", draw_seed=3)},
        {"view": view(lsp=1.0, span="to-first-answer")},
        {"view": view(lsp=0.625, span="schedule")},
    ],
    ids=[
        "lead 0.3 packed",
        "lead 0.6",
        "whole",
        "first tokens packed",
        "first tokens",
        "right with context",
        "cot lead",
        "middle with context",
        "first k",
        "random span",
        "random tokens",
        "to first answer",
        "schedule",
    ],
)
def test_one_cache_gives_every_cell_the_live_curve(
    prepared: dict[str, Path], cache: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    live = curve(tmp_path / "live", prepared, train_settings(**changes))
    cached = curve(tmp_path / "cached", prepared, train_settings(teacher="cached", **changes), teacher=cache)
    assert len(live) == 30 and cached == pytest.approx(live, abs=FLOAT32_TOLERANCE)


LEAST_SURE = train_settings(teacher="cached", view=view(span="teacher-entropy"))


def test_entropies_are_those_of_the_live_teacher_in_float64(prepared: dict[str, Path], cache: Path) -> None:
    model = load_model(prepared["teacher"] / "model", torch.float64, CPU)
    stored, table = StoredRows(cache / "rows"), TokenTable(prepared["tokens"] / "tokens.arrow")
    for index in np.random.default_rng(42).permutation(36)[6:26].tolist():
        (kept,) = stored.entropies([int(table.positions[index])])
        with torch.no_grad():
            logits = model(torch.tensor([table.input_ids(index).tolist()])).logits[0, :-1]
        plain = [0.0, *(float(-(row.softmax(-1) * row.log_softmax(-1)).sum()) for row in logits)]
        assert kept.dtype == np.float16 and kept.tolist() == pytest.approx(plain, rel=1e-3)
    # Of one sure and one unsure distribution of two tokens; a row of one token has none.
    sure = entropies(torch.tensor([[1e4], [0.0], [1.0]]), torch.tensor([[0.0], [1.0]]))
    assert sure.tolist() == pytest.approx([0.0, 0.0, float(np.log(2))], abs=1e-3)
    assert entropies(torch.ones(1, 1), torch.ones(2, 1)).tolist() == [0.0]


@pytest.mark.parametrize("pad", [0, 16])
def test_the_least_sure_tokens_are_labels_and_a_live_teacher_teaches_them_the_same(
    prepared: dict[str, Path], cache: Path, pad: int
) -> None:
    """The choice again, by plain sorting; and on these labels the stored states are those of a live teacher."""
    settings = LEAST_SURE.model_copy(update={"view": view(span="teacher-entropy", left_pad_multiple=pad)})
    stored = StoredRows(cache / "rows")
    whole = settings.model_copy(update={"view": view(lsp=1.0, left_pad_multiple=pad)})
    path = prepared["tokens"] / "tokens.arrow"
    found = load_cell_rows(path, settings, 1, stored.entropies).training.examples
    rows = load_cell_rows(path, whole, 1).training.examples
    for example, row in zip(found, rows, strict=True):
        (sure,) = stored.entropies([row.row])
        labels = np.flatnonzero(row.supervised).tolist()
        count = max(1, int((len(labels) + 1) * 0.5) - 1)
        least = sorted(labels, key=lambda index, sure=sure: (-float(sure[index]), index))[:count]
        assert np.flatnonzero(example.supervised).tolist() == sorted(least)
        assert example.input_ids.tolist() == row.input_ids.tolist()
    batch = Batch.of(found[:6], 16, CPU)
    model = load_model(prepared["teacher"] / "model", torch.float32, CPU)
    live, cached = LiveTeacher(model).states(batch), CachedTeacher(cache, CPU).states(batch)
    torch.testing.assert_close(cached, live, rtol=0, atol=FLOAT32_TOLERANCE * 4)


def test_a_training_on_the_least_sure_tokens(prepared: dict[str, Path], cache: Path, tmp_path: Path) -> None:
    outcomes = {}
    for name, settings in (
        ("sure", LEAST_SURE),
        ("drawn", train_settings(teacher="cached", view=view(span="random-tokens"))),
    ):
        outcomes[name] = train.run(settings, context(tmp_path / name, **inputs(prepared, teacher=cache)))
    sure, drawn = (outcomes[name].data.train for name in ("sure", "drawn"))
    assert (sure.tokens, sure.supervised_tokens) == (drawn.tokens, drawn.supervised_tokens)
    assert sure.sha256 != drawn.sha256
    with pytest.raises(InputError, match="reads what a teacher stage has stored, but teacher = 'live'"):
        curve(tmp_path / "live", prepared, LEAST_SURE.model_copy(update={"teacher": "live"}))
    shutil.copytree(cache, tmp_path / "earlier")
    file = tmp_path / "earlier" / "rows" / "rows-00000.safetensors"
    tensors = load_file(file)
    tensors["entropiez"] = tensors.pop("entropies")  # of as many bytes
    save_file(tensors, file)
    with pytest.raises(InputError, match=r"rows-00000.safetensors: holds no entropies, .* remove this stage"):
        curve(tmp_path / "none", prepared, LEAST_SURE, teacher=tmp_path / "earlier")


def test_bfloat16_states_are_those_of_the_live_teacher(prepared: dict[str, Path], tmp_path: Path) -> None:
    cache = store(tmp_path / "cache", prepared, compute_dtype="bfloat16")
    model = load_model(prepared["teacher"] / "model", torch.bfloat16, CPU)
    live, stored = LiveTeacher(model, torch.bfloat16), CachedTeacher(cache, CPU)
    table = TokenTable(prepared["tokens"] / "tokens.arrow")
    indices = np.random.default_rng(42).permutation(36)[6:12]
    rows = collect(table.examples(indices, view(lsp=0.5), -1)).examples
    batch = Batch.of(rows, 16, CPU)
    assert stored.head.dtype == stored.states(batch).dtype == torch.bfloat16 and torch.equal(stored.head, live.head)
    torch.testing.assert_close(
        stored.states(batch).float(), live.states(batch).float(), rtol=0, atol=BFLOAT16_TOLERANCE
    )


def test_stopped_between_files_goes_on_to_the_same_bytes(
    prepared: dict[str, Path], cache: Path, tmp_path: Path
) -> None:
    around = surroundings(tmp_path, prepared)
    update, seen = around.progress.update, []

    def after_four(phase: str, done: int, total: int, unit: str, note: str = "") -> None:
        seen.append(done)
        update(phase, done, total, unit, note)
        if len(seen) == 4:
            around.stop.signal_name = "SIGTERM"

    around.progress.update = after_four  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        teacher.run(stage_settings(), around)
    files = sorted(path.name for path in (around.partial / "rows").glob("*.safetensors"))
    assert files and files[-1] < "rows-00006"
    (around.partial / "rows" / "rows-00077.safetensors").write_bytes(b"of a file that was being written")
    first_time = (around.partial / "rows" / files[0]).stat().st_mtime_ns
    again = surroundings(tmp_path, prepared)
    outcome = teacher.run(stage_settings(), again)
    assert (around.partial / "rows" / files[0]).stat().st_mtime_ns == first_time
    assert outcome.executed.tokens < outcome.results.tokens, "what was stored before is not computed again"
    assert outcome.cost.tokens == outcome.results.tokens, "as FLOPs and wall time, of all attempts"
    nothing_left = teacher.run(stage_settings(), surroundings(tmp_path, prepared)).executed
    assert (nothing_left.tokens, nothing_left.fill) == (0, None)
    for path in sorted(cache.rglob("*.*")):
        assert (around.partial / path.relative_to(cache)).read_bytes() == path.read_bytes(), path.name
    assert len(list(around.partial.rglob("*.*"))) == len(list(cache.rglob("*.*")))


def test_damage_is_named(prepared: dict[str, Path], cache: Path, tmp_path: Path) -> None:
    def refused(message: str, folder: Path) -> None:
        with pytest.raises(InputError, match=message):
            curve(tmp_path / "work", prepared, train_settings(teacher="cached"), teacher=folder)

    def copy(name: str) -> Path:
        shutil.copytree(cache, tmp_path / name)
        return tmp_path / name / "rows" / "rows-00003.safetensors"

    changed = copy("changed")
    content = bytearray(changed.read_bytes())
    content[-1] ^= 1
    changed.write_bytes(content)
    refused(r"rows-00003.safetensors: damaged, its sha256 is", tmp_path / "changed")
    torn = copy("torn")
    torn.write_bytes(torn.read_bytes()[:-40])
    refused(r"rows-00003.safetensors: has \d+ bytes, not \d+: remove this stage", tmp_path / "torn")
    copy("lost").unlink()
    refused(r"rows-00003.safetensors: is missing", tmp_path / "lost")
    (copy("unknown").parent / "index.json").unlink()
    refused(r"index.json: missing or damaged", tmp_path / "unknown")
    (copy("odd").parent / "index.json").write_text('{"files": [{"file": "a", "rows": "3"}]}')
    refused(r"index.json: missing or damaged \(.*'dtype' is missing\)", tmp_path / "odd")
    head = copy("head").parent.parent / "model" / "head.safetensors"
    content = bytearray(head.read_bytes())
    content[-1] ^= 1
    head.write_bytes(content)
    refused(r"head.safetensors: damaged, its sha256 is", tmp_path / "head")
    (copy("pads").parent.parent / "model" / "pads.safetensors").unlink()
    refused(r"pads.safetensors: is missing", tmp_path / "pads")


def test_rows_that_are_not_stored_are_refused(prepared: dict[str, Path], cache: Path, tmp_path: Path) -> None:
    rows = {**train_settings().rows.model_dump(), "split_seed": 7}
    with pytest.raises(InputError, match=r"row \d+ of the data set is not stored"):
        curve(tmp_path / "a", prepared, train_settings(teacher="cached", rows=rows), teacher=cache)
    with pytest.raises(InputError, match=r"read from token \d+ on, .* the first of its \d+ tokens alone"):
        curve(tmp_path / "b", prepared, train_settings(teacher="cached", view=view(span="right")), teacher=cache)
    unknown = [Example(0, np.array([5], np.int32), np.array([True]), pad=60)]
    with pytest.raises(
        InputError, match=r"the padding token 60 is none of the stored ones \[0, 1, 2, 3\]: use teacher"
    ):
        StoredPads(cache).check(unknown)
    stored = StoredRows(cache / "rows")
    row = next(iter(TokenTable(prepared["tokens"] / "tokens.arrow").examples(np.array([0]), view(), -1)))
    position = int(load_file(cache / "rows" / "rows-00000.safetensors")["positions"][0])
    assert isinstance(row, Example)
    with pytest.raises(InputError, match=f"row {position} has other tokens than the training reads"):
        stored.check([Example(position, row.input_ids[:3] + 1, row.supervised[:3])], threads=1)


def test_what_the_stage_refuses(prepared: dict[str, Path], tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", 2)
    make_tokenizer(other / "model", special=["<|im_end|>", "<|im_start|>", "<think>", "</think>"])
    with pytest.raises(InputError, match="different tokenizers: 2 tokens differ"):
        store(tmp_path / "a", {**prepared, "teacher": other})
    with (
        mounted(tmp_path / "small", "size=2m"),
        pytest.raises(MachineError, match=r"take 0.1 GiB more, but .* has 0.0 GiB left: make room .* 'live'"),
    ):
        store(tmp_path / "small" / "stage", prepared)


def plan_of(file: Path, text: str) -> Plan:
    file.write_text(text)
    loaded = load(str(file))
    return make_plan(loaded, loaded.cells(), lambda _: {}, baselines=False)


def caches(plan: Plan) -> list[TeacherSettings]:
    return [stage.settings for stage in plan.stages.values() if isinstance(stage.settings, TeacherSettings)]


def test_a_sweep_shares_one_cache(tmp_path: Path) -> None:
    sweep = 'extends = "bespoke"\ntitle = "x"\n[training]\nteacher = "cached"\n'
    plan = plan_of(tmp_path / "sweep.toml", sweep)
    (settings,) = caches(plan)
    assert settings.rows.train_rows == 8000
    trainings = [stage for stage in plan.stages.values() if stage.stage == "train"]
    assert len({stage.inputs["teacher"] for stage in trainings}) == 1 and len(trainings) == 10
    (stage,) = (stage for stage in plan.stages.values() if stage.stage == "teacher")
    assert set(stage.inputs) == {"tokens", "tokenizer", "teacher"} and stage.resources.gpus == 1
    fewer = plan_of(tmp_path / "fewer.toml", sweep + "temperature = 2.0\n[axes]\ntrain_rows = [100, 4000]\n")
    assert caches(fewer) == [settings], "arms of fewer rows, or another temperature, read the same states"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kd_weight = 0.0", "kd_weight = 0.0 reads no teacher: leave it out"),
        ('teacher_placement = "offloaded"', "teacher_placement = 'offloaded' places a live teacher"),
        ('[axes]\nspan = ["middle"]', r"middle-0.10/p\+cot\+a/released/seed-42 drops what comes before its span"),
    ],
)
def test_cells_that_cannot_be_taught_so_are_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ExperimentError, match=words):
        plan_of(tmp_path / "x.toml", f'extends = "bespoke"\ntitle = "x"\n[training]\nteacher = "cached"\n{text}\n')


def test_the_plan_tells_what_a_cache_takes_and_saves(tmp_path: Path) -> None:
    """Ten proportions, twice each, are 11 times the whole rows: one reading of them saves that, and the rest of what a
    teacher takes in a step: its fixed part, and that ranks wait for the longest rows."""
    file = tmp_path / "sweep.toml"
    file.write_text('extends = "bespoke"\ntitle = "x"\n[training]\nteacher = "cached"\n')
    options = ("--runs", str(tmp_path / "runs"), "--json")
    live = json.loads(invoke("plan", "--experiment", "bespoke", *options).stdout)
    cached = json.loads(invoke("plan", "--experiment", str(file), *options).stdout)
    (would,), (does,) = live["stored_teachers"], cached["stored_teachers"]
    assert does.pop("stage").startswith("teacher-") and would.pop("stage") is None
    assert (would.pop("form"), does.pop("form")) == ("live", "cached") and would == does
    assert does["bytes_per_token"] == 2 * 4096 + 4 + 2
    assert does["disk_gib"] == pytest.approx(does["tokens"] * 8198 / 2**30) and does["rows"] == 8000
    assert cached["disk_gib"] - live["disk_gib"] == pytest.approx(does["disk_gib"])
    hours = [sum(cell["training_gpu_hours"] for cell in plan["cells"]) for plan in (live, cached)]
    assert hours[0] - hours[1] == pytest.approx(does["saved_gpu_hours"] + does["gpu_hours"])
    one = StoredTeacher(**{**would, "form": "live", "stage": None, "cells": 1, "saved_gpu_hours": -0.1})
    assert one.sentence().endswith("and saves nothing over 1 training")
    assert does["cells"] == 10 and 15.0 < 1 + does["saved_gpu_hours"] / does["gpu_hours"] < 25.0


@pytest.mark.nightly
@pytest.mark.slow
def test_the_small_matrix_from_a_cache_is_the_live_one(micro: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(micro, runs)
    file = MICRO.with_name("micro-cached.toml")
    done = invoke("run", "--experiment", str(file), "--only", "train", "--runs", str(runs))
    assert done.returncode == 0, done.stdout + done.stderr
    plans = [json.loads((runs / name / "plan.json").read_text()) for name in ("micro", "micro-cached")]
    cells = [cell["stages"] for cell in plans[1]["cells"]]
    assert len({stages["states"] for stages in cells}) == 1
    states = runs / "stages" / cells[0]["states"]
    assert json.loads((states / "manifest.json").read_text())["results"]["files"] > 5
    for live, cached in zip((cell["stages"]["train"] for cell in plans[0]["cells"]), cells, strict=True):
        both = [losses_of(runs / "stages" / stage / "output") for stage in (live, cached["train"])]
        assert len(both[0]) == 24 and both[1] == pytest.approx(both[0], abs=FLOAT32_TOLERANCE)
    found = json.loads(invoke("verify", str(runs / "micro-cached"), "--json").stdout)
    assert found["ok"] and found["unchecked"] == []


def losses_of(output: Path) -> list[float]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "step"]
