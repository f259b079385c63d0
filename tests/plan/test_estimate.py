"""The estimate of a cell before anything runs, against the training itself."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from essence.data.selection import SectionBounds
from essence.data.token_statistics import TokenStatistics
from essence.files import GIB
from essence.plan.cells import train_settings
from essence.plan.estimate import Estimate, download_gib, estimate
from essence.plan.experiment import load
from essence.plan.model_sizes import mean_row
from essence.plan.stage_plan import make_plan
from essence.record.run_directory import RunDirectory
from essence.sizes.architecture import adapter_parameters, forward_flops
from essence.sizes.memory import estimate_memory, load_of
from support.paper_sizes import QWEN3
from support.synthetic_run import manifest as made_up


def planned(folder: Path, text: str) -> tuple[Estimate, ...]:
    """Estimates of the cells of an experiment that changes bespoke."""
    file = folder / "x.toml"
    file.write_text(f'extends = "bespoke"\ntitle = "x"\n{text}\n')
    loaded = load(str(file))
    plans = make_plan(loaded, loaded.cells(), lambda _: {}, baselines=False).cells
    return tuple(estimate(plan, loaded, RunDirectory(folder / "runs")) for plan in plans)


def test_plain_fine_tuning_has_no_teacher(tmp_path: Path) -> None:
    *_, found = planned(tmp_path, "[training]\nkd_weight = 0.0")
    *_, taught = planned(tmp_path, "")
    assert found.training_flops and taught.training_flops and found.gpu_memory_gib and taught.gpu_memory_gib
    read = found.kept_tokens // found.rows if found.kept_tokens else 0
    teaching = forward_flops(QWEN3["8b"], read) * found.rows * 2
    assert taught.training_flops - found.training_flops == pytest.approx(teaching)
    assert taught.gpu_memory_gib - found.gpu_memory_gib >= 2 * QWEN3["8b"].parameters / GIB / 8


def test_saved_folders_are_of_the_computation(tmp_path: Path) -> None:
    *_, found = planned(tmp_path, "")
    assert found.disk_gib == pytest.approx(2 * 2 * QWEN3["4b"].parameters / GIB)
    assert found.scratch_gib == pytest.approx(40 * QWEN3["4b"].parameters / GIB)


def test_adapters_are_all_that_checkpoints_hold(tmp_path: Path) -> None:
    text = '[training]\nparallel = "single"\nprocesses = 1\nlora.rank = 8\n[resources]\ngpus = 1'
    *_, found = planned(tmp_path, text)
    lora = train_settings(load(str(tmp_path / "x.toml")).cells()[0], load(str(tmp_path / "x.toml")).experiment).lora
    adapters = adapter_parameters(QWEN3["4b"], lora)
    assert found.scratch_gib == pytest.approx(40 * adapters / GIB)
    assert found.disk_gib == pytest.approx(2 * (2 * QWEN3["4b"].parameters + 4 * adapters) / GIB)


def test_gpu_memory_is_what_the_preflight_computes(tmp_path: Path) -> None:
    *_, default = planned(tmp_path, "")
    loaded = load(str(tmp_path / "x.toml"))
    settings = train_settings(loaded.cells()[-1], loaded.experiment)
    held = load_of(settings, QWEN3["4b"], QWEN3["8b"], loaded.experiment.resources.loss)
    expected = estimate_memory(replace(held, positions=4096, labels=4095)).total / GIB
    assert default.gpu_memory_gib == pytest.approx(expected) and 66 < expected < 68 and default.recomputed is False
    changes = (
        'parallel = "zero3"\nteacher_placement = "sharded"',
        'teacher = "cached"',
        'teacher_placement = "offloaded"',
        "lora.rank = 8",
    )
    for change in changes:
        *_, found = planned(tmp_path, f"[training]\n{change}")
        assert found.gpu_memory_gib and found.gpu_memory_gib < expected - 5, change
    plain_loss = '[resources.loss]\nform = "plain"'
    *_, plain = planned(tmp_path, f'[resources]\nactivation_checkpointing = "off"\n{plain_loss}')
    assert plain.gpu_memory_gib and plain.gpu_memory_gib > expected + 5
    *_, saving = planned(tmp_path, plain_loss)
    assert saving.recomputed and saving.gpu_memory_gib and saving.gpu_memory_gib < expected


def test_only_the_downloads_that_are_wanted_take_disk(tmp_path: Path) -> None:
    """Tokenizing needs the student's tokenizer and no teacher; a local folder takes the size of its files."""
    pins = tmp_path / "pins.toml"
    student = tmp_path / "student"
    (student / ".cache").mkdir(parents=True)
    for name, size in (("model.safetensors", 3000), ("config.json", 20), ("old.bin", 500), (".cache/x", 40)):
        (student / name).write_bytes(b"0" * size)
    for text, size in (("", 2 * QWEN3["4b"].parameters), (f'[models.qwen3-4b-base]\npath = "{student}"\n', 3020)):
        pins.write_text(text, encoding="utf-8")
        loaded = load("bespoke", pins=pins)
        plan = make_plan(loaded, loaded.cells(), lambda _: {}, baselines=False)
        runs = RunDirectory(tmp_path / "runs")
        assert round(download_gib(plan.wanted("tokenize"), loaded, runs) * GIB) == size
        both = size + 2 * QWEN3["8b"].parameters
        assert round(download_gib(plan.wanted(None), loaded, runs) * GIB) == both


def test_the_mean_row_is_that_of_the_rows_that_are_trained_on(tmp_path: Path) -> None:
    """Nearly half of the rows are over the limit, as of the paper's first data set, and cost nothing."""
    loaded, run_directory = load("bespoke"), RunDirectory(tmp_path)
    plan = make_plan(loaded, loaded.cells(), lambda _: {}, baselines=False).cells[-1]
    lengths = np.random.default_rng(3).lognormal(8.2, 0.6, 4000).astype(np.int64) + 100
    statistics = TokenStatistics()
    none = np.full(lengths.size, -1)
    statistics.add(SectionBounds(lengths, np.full(lengths.size, 100), lengths - 50), none)
    manifest = run_directory.stage(plan.stages["tokenize"]).manifest
    manifest.parent.mkdir(parents=True)
    rows, counts = statistics.rows, statistics.record().model_dump()
    results = {"rows_read": rows, "rows_kept": rows, "tokens": counts["tokens"], "statistics": counts}
    record = made_up("ab" * 32, "tokenize", "tokenize", {}, results, {}, {})
    manifest.write_text(json.dumps(record), encoding="utf-8")
    row, counted = mean_row(plan, loaded, run_directory)
    trained = lengths[lengths < 4096]
    assert counted and row is not None and 0.3 < trained.size / lengths.size < 0.7
    assert float(row.lengths[0]) == pytest.approx(trained.mean(), rel=0.06)
