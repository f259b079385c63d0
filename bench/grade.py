"""Graded completions a second against calling math-verify one completion after the other, on the same completions.

    python bench/grade.py --rows all.jsonl aime.jsonl

Each side grades in a process of its own, in turns: first cold (imports and the start of workers are in the time), then
the same completions again with another first line. CPU time is of both passes, of every process, imports included; it
hardly changes with what else the machine does. The files hold {"gold", "completion"} lines, repeated with distinct
first lines until there are enough; completions that are long and cut off are made here: derivations without an answer.
"""

import argparse
import contextlib
import ctypes
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from measurement import at_start, refuse_without_peers

from essence.evaluation.graders import gold_as_latex
from essence.evaluation.grading_pool import Item, grade_all
from essence.files import write_atomically

PROJECT = Path(__file__).resolve().parents[1]
Row = dict[str, str]
SLOWEST_GOAL_S = 6.0
PR_SET_CHILD_SUBREAPER = 36
STEPS = (
    "Wait, let me check that again: $x_{n} = \\frac{a}{b} + c$, so $a = k b$.\n\n",
    "So the total is d + k = e, which is not an integer.\n\n",
    "Alternatively, \\[ S = \\sum_{i=1}^{k} i = \\frac{k(k+1)}{2} \\]\n\n",
    "Let me think about the case where $k$ divides $a$ first.\n",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, nargs="+", required=True, help="JSON lines of gold and completion")
    parser.add_argument("--completions", type=int, default=1_920, help="of each file of rows")
    parser.add_argument("--long", type=int, default=64, help="long cut-off completions to make")
    parser.add_argument("--characters", type=int, default=160_000, help="of each long completion")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds a completion may take")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--side", choices=("ours", "serial"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=PROJECT / "bench" / "results" / "grade.json")
    arguments = parser.parse_args()
    if arguments.side:
        one_side(arguments)
        return
    refuse_without_peers("grade", arguments.out)
    result = compare(arguments)
    write_atomically(arguments.out, json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["workloads"], indent=2))


def compare(arguments: argparse.Namespace) -> dict[str, object]:
    """All workloads, with what is needed to read the figures."""
    start = at_start("grade", arguments.workers)
    loads = {file.stem: repeated(read_rows(file), arguments.completions) for file in arguments.rows}
    loads["long cut-off"] = cut_off(arguments.long, arguments.characters)
    return {
        **start,
        "workers": arguments.workers,
        "repeats": arguments.repeats,
        "workloads": {name: measure(load, arguments) for name, load in loads.items()},
    }


def read_rows(file: Path) -> list[Row]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def repeated(rows: list[Row], number: int) -> list[Row]:
    """The rows in turn, each text once."""
    return [another_text(rows[index % len(rows)], index // len(rows)) for index in range(number)]


def another_text(row: Row, number: int) -> Row:
    return {"gold": row["gold"], "completion": f"Attempt {number}.\n" + row["completion"]}


def measure(rows: list[Row], arguments: argparse.Namespace) -> dict[str, object]:
    """Both sides in turns; ratios are of medians."""
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "serial": []}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        for _ in range(arguments.repeats):
            for side, found in runs.items():
                found.append(run_side(side, file, arguments))
    pairs = list(zip(runs["ours"][0]["verdicts"], runs["serial"][0]["verdicts"], strict=True))
    slowest = max(run["slowest_s"] for run in runs["ours"])
    return {
        "completions": len(rows),
        "mean_characters": sum(len(row["completion"]) for row in rows) / len(rows),
        "cold": times(runs, "cold_s", len(rows)),
        "warm": times(runs, "warm_s", len(rows)),
        "cpu": times(runs, "cpu_s", 2 * len(rows)),
        "equal_verdicts": sum(ours == serial for ours, serial in pairs) / len(pairs),
        "longest_wait_for_a_verdict_s": slowest,
        "within_goal": slowest <= SLOWEST_GOAL_S,
    }


def times(runs: dict[str, list[dict[str, Any]]], clock: str, completions: int) -> dict[str, object]:
    seconds = {side: [run[clock] for run in found] for side, found in runs.items()}
    medians = {side: statistics.median(found) for side, found in seconds.items()}
    return {
        "seconds": seconds,
        "completions_per_s": {side: completions / median for side, median in medians.items()},
        "ratio_of_medians": medians["serial"] / medians["ours"],
    }


def run_side(side: str, file: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--rows", str(file), "--side", side, "--workers", str(arguments.workers)]
    before = cpu_of_ended_processes()
    done = subprocess.run(
        [*command, "--timeout", str(arguments.timeout)], stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"cpu_s": cpu_of_ended_processes() - before}


def cpu_of_ended_processes() -> float:
    """CPU seconds of all processes started so far, once the last of them has ended.

    The server that workers are forked from outlives its side for a moment, and is then a child of this process.
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def one_side(arguments: argparse.Namespace) -> None:
    """Grade twice in this process and print seconds, verdicts and the longest wait for one once the first is there."""
    rows = read_rows(arguments.rows[0])
    found: dict[str, Any] = {"slowest_s": 0.0}
    for clock, texts in (("cold_s", rows), ("warm_s", [another_text(row, -1) for row in rows])):
        started = last = time.perf_counter()
        verdicts: list[bool] = []
        for correct in ours(texts, arguments) if arguments.side == "ours" else serially(texts):
            now = time.perf_counter()
            if verdicts:
                found["slowest_s"] = max(found["slowest_s"], now - last)
            verdicts.append(correct)
            last = now
        found |= {clock: last - started, "verdicts": found.get("verdicts", []) + verdicts}
    print(json.dumps(found))


def ours(rows: list[Row], arguments: argparse.Namespace) -> Iterator[bool]:
    items = [Item(row["gold"], row["completion"]) for row in rows]
    with closing(grade_all(items, "math-verify", arguments.timeout, arguments.workers)) as graded:
        for verdict in graded:
            yield verdict.correct


def serially(rows: list[Row]) -> Iterator[bool]:
    from math_verify import parse, verify

    for row in rows:
        yield bool(verify(parse(gold_as_latex(row["gold"])), parse(row["completion"])))


def cut_off(number: int, characters: int) -> list[Row]:
    chooser = random.Random(20)
    rows = []
    for index in range(number):
        text = ""
        while len(text) < characters:
            step = chooser.choice(STEPS)
            for letter in "abcdek":
                step = step.replace(f" {letter} ", f" {chooser.randrange(2, 400)} ")
            text += step
        rows.append({"gold": str(3 * index + 7), "completion": text[:characters]})
    return rows


if __name__ == "__main__":
    main()
