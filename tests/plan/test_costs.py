"""The table of the cost claim against the paper's words and counts of whole steps."""

import json

import pytest

from essence.plan.cost_table import PROPORTIONS, cost_table, finding
from support.paper_sizes import QWEN3
from support.project import invoke


@pytest.mark.parametrize(
    ("student", "teacher", "flops", "memory"),
    [("4b", "8b", 0.471, 0.79), ("8b", "32b", 0.483, 0.88), ("1.7b", "8b", 0.475, 0.73)],
)
def test_half_of_the_row(student: str, teacher: str, flops: float, memory: float) -> None:
    """Ratios of counted steps on 4 GPUs at 4,096 tokens: FLOPs halve, memory does not, chunked it hardly changes."""
    rows = {row.lsp: row for row in cost_table(QWEN3[student], QWEN3[teacher], 4096, 4)}
    half = rows[0.5]
    assert half.flops_ratio == pytest.approx(flops, abs=1e-3)
    assert half.memory_ratio == pytest.approx(memory, abs=0.02)
    assert 0.93 < half.chunked_memory_ratio < 1.0
    assert half.time_ratio < half.time_ratio_exposed < 0.7
    assert rows[1.0].flops_ratio == rows[1.0].memory_ratio == rows[1.0].time_ratio_exposed == 1.0


def test_everything_grows_with_the_proportion_but_static_memory() -> None:
    rows = cost_table(QWEN3["4b"], QWEN3["8b"], 2500, 4)
    assert [row.lsp for row in rows] == list(PROPORTIONS)
    for name in ("tokens", "flops", "dynamic_gib", "memory_ratio", "chunked_dynamic_gib", "time_ratio_exposed"):
        values = [getattr(row, name) for row in rows]
        assert values == sorted(values) and len(set(values)) > 5, name
    assert len({row.static_gib for row in rows}) == 1
    assert "At LSP 0.5, 48% of the FLOPs" in finding(rows)


def test_the_command_prints_a_table_for_each_pair() -> None:
    done = invoke("plan", "--experiment", "bespoke", "--costs")
    assert done.returncode == 0, done.stderr
    assert "bespoke/qwen3-8b_qwen3-4b-base: a row of 2,500 tokens" in done.stdout
    assert "At LSP 0.5, 48% of the FLOPs" in done.stdout
    record = json.loads(invoke("plan", "--experiment", "bespoke", "--costs", "--json").stdout)
    assert len(record) == 1 and len(record[0]["rows"]) == 10
