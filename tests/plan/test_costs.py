"""The table of the cost claim against the paper's words and counts of whole steps."""

import json
import os
import subprocess
import sys

import pytest

from essence.plan.cost_table import COLUMNS, PROPORTIONS, cost_table, released_static_bytes
from essence.sizes.architecture import Architecture
from essence.sizes.memory import estimate_memory, gathered_parameters
from support.paper_sizes import PAPER, QWEN3
from support.project import PROJECT, invoke


@pytest.mark.parametrize(
    ("student", "teacher", "flops", "memory"),
    [("4b", "8b", 0.471, 0.79), ("8b", "32b", 0.483, 0.88), ("1.7b", "8b", 0.475, 0.73)],
)
def test_half_of_the_row(student: str, teacher: str, flops: float, memory: float) -> None:
    """Ratios of counted steps on 4 GPUs at 4,096 tokens: FLOPs halve, memory does not, chunked it hardly changes."""
    rows = {row.lsp: row for row in cost_table("pair", QWEN3[student], QWEN3[teacher], 4096, 4).rows}
    half = rows[0.5]
    assert half.flops_ratio == pytest.approx(flops, abs=1e-3)
    assert half.memory_ratio == pytest.approx(memory, abs=0.02)
    assert 0.93 < half.chunked_memory_ratio < 1.0
    assert half.time_ratio < half.time_ratio_exposed < 0.7
    assert rows[1.0].flops_ratio == rows[1.0].memory_ratio == rows[1.0].time_ratio_exposed == 1.0


def test_everything_grows_with_the_proportion_but_static_memory() -> None:
    table = cost_table("pair", QWEN3["4b"], QWEN3["8b"], 2500, 4)
    rows = table.rows
    assert [row.lsp for row in rows] == list(PROPORTIONS)
    for name in ("tokens", "flops", "dynamic_gib", "memory_ratio", "chunked_dynamic_gib", "time_ratio_exposed"):
        values = [getattr(row, name) for row in rows]
        assert values == sorted(values) and len(set(values)) > 5, name
    assert len({row.static_gib for row in rows}) == 1
    assert "At LSP 0.5, 48% of the FLOPs" in table.finding


def test_the_command_prints_a_table_for_each_pair() -> None:
    done = invoke("plan", "--experiment", "bespoke", "--costs")
    assert done.returncode == 0, done.stderr
    assert "bespoke/qwen3-8b_qwen3-4b-base: a row of 2,500 tokens" in done.stdout
    assert "At LSP 0.5, 48% of the FLOPs" in done.stdout
    (record,) = json.loads(invoke("plan", "--experiment", "bespoke", "--costs", "--json").stdout)
    assert record["name"] == "bespoke/qwen3-8b_qwen3-4b-base" and len(record["rows"]) == 10
    half, whole = (next(row for row in record["ours"] if row["lsp"] == lsp) for lsp in (0.5, 1.0))
    assert 0.5 < half["time_ratio"] == half["step_s"] / whole["step_s"] < 0.75
    assert half["static_gib"] == whole["static_gib"] and half["dynamic_gib"] < whole["dynamic_gib"]
    assert "of a step's time" in done.stdout and "the same as this experiment trains" in done.stdout
    assert (
        "Evaluations start a decoder 20 times, 2.0\u00a0min each (assumed): 2.7 of 64 GPU hours (4.2%); " in done.stdout
    )
    starts = record["decoder_starts"]
    assert starts["starts"] == 20 and starts["gpu_hours"] == pytest.approx(20 * 4 * 120 / 3600)
    assert starts["shared_gpu_hours"] == pytest.approx(starts["gpu_hours"] / 2)


def test_one_renderer_writes_a_row_for_terminal_and_report() -> None:
    table = cost_table("pair", QWEN3["4b"], QWEN3["8b"], 2500, 4)
    whole = dict(zip(COLUMNS, table.lines[-1], strict=True))
    assert whole["LSP"] == "1.00" and whole["Tokens"] == "2,500" and whole["Time"] == "1.00 to 1.00"
    assert whole["Static GiB"] == "23.7"


def test_sizes_beyond_a_hundred_gib_are_whole_numbers() -> None:
    whole = cost_table("pair", QWEN3["8b"], QWEN3["32b"], 100, 1).lines[-1]
    assert whole[list(COLUMNS).index("Static GiB")].isdigit()


def test_the_released_form_has_no_bfloat16_shards() -> None:
    """FSDP2 on four ranks of which one runs: 4 bytes a parameter at rest, and bfloat16 only while weights are whole."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    program = PROJECT / "tests" / "support" / "fsdp_program.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    sizes = Architecture(64, 4, 4, 2, 16, 160, 1000, True)
    assert told["parameters"] == sizes.parameters
    assert told["at_rest"]["torch.float32"] == pytest.approx(16 * sizes.parameters / 4, rel=0.01)
    assert told["at_rest"].get("torch.bfloat16", 0) < sizes.parameters / 100
    assert told["at_loss"]["torch.bfloat16"] > 2 * sizes.root_parameters
    taught = 2 * (QWEN3["8b"].parameters / 4 + gathered_parameters(QWEN3["8b"], trained=False))
    alone = released_static_bytes(sizes, QWEN3["8b"], 4) - taught
    assert alone == pytest.approx(
        told["at_rest"]["torch.float32"] + 2 * gathered_parameters(sizes, trained=True), rel=0.01
    )


def test_the_released_form_takes_less_than_deepspeed_s_shards() -> None:
    """By the bfloat16 shards of the student and two buckets."""
    student, teacher = QWEN3["4b"], QWEN3["8b"]
    released, ours = released_static_bytes(student, teacher, 4), estimate_memory(PAPER).static
    assert released / 2**30 == pytest.approx(23.7, abs=0.05)
    assert ours - released == pytest.approx(2 * student.parameters / 4 + 4 * 2**27, abs=2)
