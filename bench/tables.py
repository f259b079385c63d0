"""What the pages quote of bench/results: written between marks in docs/, so that no figure is copied by hand.

    python bench/tables.py            # after a measurement; tests/test_bench_results.py fails while a page says another

A block stands between `<!-- bench: NAME -->` and `<!-- end -->`. It begins with the machine and the day of its file.
"""

import json
import re
import statistics
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from measurement import PROJECT, RESULTS, where_and_when

WIDTH = 120
BLOCK = re.compile(r"(<!-- bench: ([a-z0-9_-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
PAGES = PROJECT / "docs"
KIT, OTHERS = "kit", {"released": "a loop like the released code's", "liger": "the same with Liger's loss"}
OTHERS["trl"] = "TRL's GKDTrainer, off-policy"
FORMS = {
    "autocast, recomputed": "float32 weights under autocast, recomputed (as before)",
    "masters, recomputed": "bfloat16 weights over float32 masters, recomputed",
    "masters, kept": "the same, activations kept",
    "compiled, recomputed": "the same with compiled layers, recomputed",
    "compiled, kept": "the same with compiled layers, kept",
}
Record = Any
"""A file of bench/results, whose own script says what is in it."""


def read(name: str) -> Record:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def measured_on(name: str, record: Record) -> str:
    """Machine, day, how quiet it was, and versions, in one sentence with the file's name."""
    versions = ", ".join(f"{package} {version}" for package, version in record["packages"].items())
    busy = record["busy_cores_at_start"]
    facts = "; ".join(filter(None, (f"{where_and_when(record)}, {busy} of them busy with other work", versions)))
    return f"`bench/results/{name}.json`: {facts}."


def loss(name: str) -> Iterator[str]:
    """Forms of the objective, then those of cross-entropy alone."""
    record = read(name)
    work, rows = record["work"], record["summary"]
    yield measured_on(name, record)
    yield ""
    yield (
        f"T {work['tokens']:,}, hidden {work['hidden']:,}, vocabulary {work['vocabulary']:,}, {work['dtype']}; medians "
        f"of {work['rounds']} rounds of the CPU time of heads and loss, forward and backward."
    )
    yield ""
    yield "| form | CPU time / its products alone | live bytes, GiB | error of the head's gradient |"
    yield "|---|---|---|---|"
    for form, row in rows.items():
        live, error = (str(row.get(key, "")) for key in ("live_gib", "head_gradient_error"))
        yield re.sub(r"  +", " ", f"| {form} | {row['it_over_products']:.2f} | {live} | {error} |")
    yield ""
    yield from pairs(rows)


def pairs(rows: dict[str, dict[str, float]]) -> Iterator[str]:
    """How much longer each form takes than the kit's, eager beside eager and compiled beside compiled."""
    for start, others in (("", ("released", "dense", "liger")), ("CE alone: ", ("torch", "torch, chunks"))):
        for ending, how in (("", "eager"), (", compiled", "compiled")):
            ours = rows.get(f"{start}{KIT}{ending}")
            found = [
                f"{other} {rows[name]['cpu_s'] / ours['cpu_s']:.2f} times"
                for other in others
                if ours and (name := compared(rows, start, other, ending))
            ]
            if found:
                yield f"- {start}CPU time of the kit's {how} form: {', '.join(found)}."


def compared(rows: dict[str, dict[str, float]], start: str, other: str, ending: str) -> str | None:
    """The form of the same kind; one that has no compiled form is compared as it is."""
    return next((name for name in (f"{start}{other}{ending}", f"{start}{other}") if name in rows), None)


def train(name: str) -> Iterator[str]:
    record = read(name)
    tokens, rounds = record["row_tokens"], record["rounds"]
    yield measured_on(name, record)
    yield ""
    yield (
        f"{len(tokens)} rows of {min(tokens):,} to {max(tokens):,} tokens in each step, students and teachers of 4 and "
        f"6 layers with the real vocabulary; medians of {len(rounds[KIT])} rounds."
    )
    yield ""
    yield "| loop | CPU time / ours | time / ours | peak above the models / ours | that peak, GiB |"
    yield "|---|---|---|---|---|"
    for other, row in [(KIT, dict.fromkeys(("cpu_s", "wall_s", "peak_gib"), 1.0)), *record["ratios"].items()]:
        peak = statistics.median(one["peak_gib"] for one in rounds[other])
        ratios = " | ".join(f"{row[key]:.2f}" for key in ("cpu_s", "wall_s", "peak_gib"))
        yield f"| {OTHERS.get(other, 'ours')} | {ratios} | {peak:.1f} |"
    yield ""
    yield "What each minimises, with its loss in the first step:"
    yield ""
    for other, objective in record["objectives"].items():
        yield f"- {OTHERS.get(other, 'ours')}: {objective}; {rounds[other][0]['losses'][0]:.3f}"


def evaluate(name: str) -> Iterator[str]:
    record = read(name)
    over = {way: f"{100 * record['overhead'][f'{way}_cpu_s']:.1f} %" for way in ("ours", "ours_cut")}
    yield (
        f"Compared with vLLM's own `LLM.generate` for the same requests, the stage costs {over['ours']} more CPU time, "
        f"{over['ours_cut']} with loops cut, on a model of two small layers that leaves little else to do (medians of "
        f"{len(record['rounds'])} rounds of {record['requests']} requests; the goal is {100 * record['goal']:g} %)."
    )
    yield measured_on(name, record)


def grade(name: str) -> Iterator[str]:
    record = read(name)
    yield f"Against math-verify called serially, with {record['workers']} workers, runs of each: {record['repeats']}:"
    yield ""
    yield "| completions | mean characters | times as fast, with start | without | CPU time / ours | longest wait, s |"
    yield "|---|---|---|---|---|---|"
    for load, found in record["workloads"].items():
        ratios = " | ".join(f"{found[clock]['ratio_of_medians']:.1f}" for clock in ("cold", "warm", "cpu"))
        what = f"{found['completions']:,} {load.replace('_', ' ')} | {found['mean_characters']:,.0f}"
        yield f"| {what} | {ratios} | {found['longest_wait_for_a_verdict_s']:.1f} |"
    yield ""
    yield measured_on(name, record)


def tokenize(name: str) -> Iterator[str]:
    record = read(name)
    ratios, (small, large), views = record["ratios"], record["large"], record["view"]
    rows = "generated rows" if record["rows_from"] == "generated" else "rows"
    yield (
        f"On {record['rows']:,} {rows}, with equal ids at all ten proportions, the stage is "
        f"{ratios['sweep_s']:.1f} times as fast as the released way for a sweep of ten proportions and "
        f"{ratios['single_s']:.1f} times for a single one, start-up included (rounds: "
        f"{len(record['rounds']['stage'])}). {large['rows']:,} rows of {large['tokens'] / large['rows']:,.0f} tokens "
        f"took {large['process_s']:.0f} s; {small['rows']:,} and {large['rows']:,} rows peak at "
        f"{small['peak_gib']:.2f} and {large['peak_gib']:.2f} GiB; a view of {views['rows']:,} rows is read in "
        f"{views['by_lsp']['0.5']['seconds']:.1f} s."
    )
    yield measured_on(name, record)


def report_page(name: str) -> Iterator[str]:
    record = read(name)
    made, opened, cpu, shown = (record[key] for key in ("report", "opened_s", "opened_cpu_s", "shown_s"))
    yield (
        f"A made-up matrix of {record['cells']} cells with {record['samples_a_cell']:,} samples each "
        f"({made['pieces_mb']:.0f} MB of pieces beside a page of {made['page_mb']:.1f} MB) opens in "
        f"{opened['median']:.1f} s, of which the page's main thread computes {cpu['median']:.2f} s, and shows two runs "
        f"side by side {shown['median']:.1f} s after the click: medians of {len(opened['all'])}. Its completions have "
        f"{record['characters_a_completion']:,} characters: their length changes the second number, not the first."
    )
    yield measured_on(name, record)


def step_counts(name: str) -> Iterator[str]:
    record = read(name)
    work, memory = record["work"], "peak above weights, gradients and optimiser | the memory rule"
    yield f"{work['teacher']} to {work['student']}, {work['tokens']:,} tokens."
    yield ""
    yield f"| weights, activations | launches | bytes beside the products | {memory} |"
    yield "|---|---|---|---|---|"
    for form, found in record["counted"].items():
        gigabytes = found["bytes_beside_products"] / 1e9
        peak = f"{found['later_peak_bytes'] / 2**30:.1f} GiB"
        rule = f"{found['rule_bytes'] / 2**30:.1f} GiB" if "rule_bytes" in found else "-"
        yield f"| {FORMS[form]} | {found['launches']:,} | {gigabytes:,.0f} GB | {peak} | {rule} |"
    yield ""
    yield measured_on(name, record)


BLOCKS: dict[str, Callable[[str], Iterator[str]]] = {
    "loss": loss,
    "loss-float32": loss,
    "train": train,
    "evaluate": evaluate,
    "grade": grade,
    "report_page": report_page,
    "step_counts": step_counts,
    "tokenize": tokenize,
}


def fill(line: str) -> str:
    return textwrap.fill(line, WIDTH, subsequent_indent="  " * line.startswith("- "), break_on_hyphens=False)


def renewed(page: str) -> str:
    """A page with its blocks as the files have them now."""

    def block(found: re.Match[str]) -> str:
        lines = (line if line.startswith("|") else fill(line) for line in BLOCKS[found[2]](found[2]))
        return found[1] + "\n".join(lines) + "\n" + found[3]

    return BLOCK.sub(block, page)


def main() -> None:
    for page in sorted(PAGES.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if (new := renewed(text)) != text:
            page.write_text(new, encoding="utf-8")
            print(f"renewed: {page.relative_to(PROJECT)}")


if __name__ == "__main__":
    main()
