"""A made-up finished run of `experiments/paper.toml`: its 30 settings, each trained at LSP 0.5 and 1.0."""

import itertools
import tomllib
from pathlib import Path
from typing import Any

from support.project import PROJECT
from support.synthetic_run import SyntheticRun

BENCHMARKS = ("aime24", "aime25")


def paper_run(root: Path, texts: bool = False) -> SyntheticRun:
    """15 pairs of trainings, each graded on two benchmarks, under one plan.

    Accuracies differ between the settings as they may: larger students and the second benchmark a little apart.
    """
    paper = tomllib.loads((PROJECT / "experiments" / "paper.toml").read_text())
    (matrix,) = paper["matrix"]
    whole: SyntheticRun | None = None
    for number, (dataset, pair) in enumerate(itertools.product(matrix["dataset"], matrix["pair"])):
        both = [_part(root, paper, dataset, pair, benchmark, number, texts) for benchmark in BENCHMARKS]
        part = _on_both(both)
        if whole is None:
            whole = part
            continue
        known = {(one["role"], one["model"]) for one in whole.plan["baselines"]}
        whole.plan["cells"] += part.plan["cells"]
        whole.plan["baselines"] += [b for b in part.plan["baselines"] if (b["role"], b["model"]) not in known]
        whole.plan["stages"] |= part.plan["stages"]
    assert whole
    whole.write_plan()
    return whole


def _part(
    root: Path, paper: dict[str, Any], dataset: str, pair: str, benchmark: str, number: int, texts: bool
) -> SyntheticRun:
    teacher, student = pair.split("_")
    whole = 0.4 + 0.05 * (student == "qwen3-8b-base") - 0.03 * (benchmark == "aime25") + 0.01 * (number % 4)
    return SyntheticRun(
        root, experiment="paper", lsps=(0.5, 1.0), seeds=(1,), protocol="released", dataset=dataset,
        teacher=teacher, student=student, benchmark=benchmark, texts=texts, title=paper["title"],
        note=paper["note"], accuracy={0.5: round(0.91 * whole, 3), 1.0: round(whole, 3)}, untrained=0.05,
        builtin=False, first_minute=100 * number,
    ).write()  # fmt: skip


def _on_both(parts: list[SyntheticRun]) -> SyntheticRun:
    """The cells and baselines of one run with the evaluations of all."""
    first, *others = parts
    for other in others:
        for kind in ("cells", "baselines"):
            for mine, theirs in zip(first.plan[kind], other.plan[kind], strict=True):
                mine["evaluations"] += theirs["evaluations"]
        first.plan["stages"] |= other.plan["stages"]
    return first
