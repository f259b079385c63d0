"""The tokenize stage against the way of the released code: rows a second, peak memory, time to load a view.

    python bench/tokenize_stage.py --tokenizer FOLDER [--rows FILE] [--count 1000] [--rounds 3] [--large 20000]

The released way is `datasets.map(batched=True, batch_size=1)` with one tokenizer call a row, once for each proportion;
reading the rows is not counted for it, but is for the stage. Each measurement is a process of its own; a round takes
one of each. FOLDER holds tokenizer.json, tokenizer_config.json and a chat template; FILE holds rows with
`conversations`, one JSON object a line; without it rows are generated. Writes bench/results/tokenize.json.
"""

import argparse
import hashlib
import json
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(PROJECT), str(PROJECT / "tests")]

from measurement import at_start, refuse_without_peers  # noqa: E402

from essence.record.facts import code_facts  # noqa: E402
from support.finished_input import write_manifest  # noqa: E402

RELEASED_REPLACEMENTS = (
    ("<|begin_of_thought|>", "<think>"),
    ("<|end_of_thought|>", "</think>"),
    ("<|begin_of_solution|>\n\n", ""),
    ("\n\n<|end_of_solution|>", ""),
)
LSPS = [k / 10 for k in range(1, 11)]
SINGLE_LSP = 0.5
VIEW_ROWS = 40_000
MEAN_TOKENS = 2_500
WORDS = r"""
the of and to we is that in a for so if then let be it this can as by with have since now need find first second
number sum product equation triangle square circle value solve factor prime integer even odd digit angle side length
area because therefore wait check again maybe actually consider case general substitute both sides expand simplify
divide multiply subtract remainder modulo polynomial root coefficient sequence series term converge probability
expected choose arrange order distinct symmetric function maximum minimum bound inequality holds contradiction
assume suppose \frac \sqrt \cdot \leq \pi x^2 y_1 a_n (n+1) = + - * 2^k f(x) $x$ $n$ alternatively hmm geometry
coordinates
""".split()  # noqa: SIM905


def main() -> None:
    arguments = read_arguments()
    if arguments.measure:
        print(json.dumps(MEASURES[arguments.measure](arguments)))
        return
    refuse_without_peers("tokenize", arguments.out)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        arguments.scratch = Path(folder)
        record = compare(arguments)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record["ratios"], indent=2))


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of the tokenizer, with a chat template")
    parser.add_argument("--rows", type=Path, help="rows with `conversations`, one JSON object a line")
    parser.add_argument("--count", type=int, default=1000, help="rows that both ways are compared on")
    parser.add_argument("--large", type=int, default=20_000, help="rows of the stage alone; also a quarter of them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()), help="for rows and tokens")
    parser.add_argument("--out", type=Path, default=PROJECT / "bench" / "results" / "tokenize.json")
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    return parser.parse_args()


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """All measurements; both ways interleaved, their ids compared by hash."""
    start = at_start("tokenize", arguments.threads)
    prepare(arguments, arguments.scratch / "small", arguments.count)
    rounds: dict[str, list[dict[str, Any]]] = {"released": [], "stage": []}
    for number in range(arguments.rounds):
        for name, found in rounds.items():
            found.append(measure(arguments, name))
            print(f"round {number + 1} {name}: {found[-1]['sweep_s']:.1f} s for {len(LSPS)} proportions", flush=True)
    hashes = {json.dumps(one["sha256"]) for found in rounds.values() for one in found}
    if len(hashes) != 1:
        raise SystemExit("the two ways gave different ids")
    return {
        **start,
        "rows": arguments.count,
        "rows_from": "a file" if arguments.rows else "generated",
        "tokens": rounds["stage"][0]["tokens"],
        "threads": arguments.threads,
        "ratios": ratios(rounds),
        "rounds": rounds,
        "view": measure(arguments, "view"),
        "large": [large(arguments, count) for count in (arguments.large // 4, arguments.large)],
    }


def ratios(rounds: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Released over stage, of medians over the rounds; start-up is counted unless the name says otherwise."""

    def ratio(key: str) -> float:
        ours, theirs = (statistics.median(one[key] for one in rounds[name]) for name in ("stage", "released"))
        return round(theirs / ours, 2)

    keys = ("sweep_s", "sweep_cpu_s", "single_s", "single_cpu_s", "sweep_rows_s", "single_rows_s", "peak_gib")
    return {key: ratio(key) for key in keys}


def measure(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """One measurement in a process of its own."""
    command = [sys.executable, __file__, "--tokenizer", str(arguments.tokenizer), "--measure", name]
    command += ["--scratch", str(arguments.scratch), "--threads", str(arguments.threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure_released(arguments: argparse.Namespace) -> dict[str, Any]:
    """One `map` for each proportion over the rows, with one call of the tokenizer a row."""
    import datasets

    from essence.models.loading import load_tokenizer

    datasets.disable_progress_bars()
    datasets.disable_caching()
    started = Clock()
    tokenizer = load_tokenizer(arguments.scratch / "small" / "tokenizer" / "output" / "model")
    start = started.read()
    rows = [json.loads(line) for line in (arguments.scratch / "small/rows/output/rows/rows.jsonl").open()]
    data = datasets.Dataset.from_list(rows)

    def encode(batch: dict[str, Any], lsp: float) -> dict[str, Any]:
        user, assistant = (turn["value"] for turn in batch["conversations"][0])
        for old, new in RELEASED_REPLACEMENTS:
            assistant = assistant.replace(old, new)
        turns = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, enable_thinking=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return {"input_ids": [ids[: max(1, int(len(ids) * lsp))]]}

    times, hashes = [], {}
    for lsp in LSPS:
        clock = Clock()
        cut = data.map(encode, batched=True, batch_size=1, remove_columns=data.column_names, fn_kwargs={"lsp": lsp})
        times.append(clock.read())
        hashes[str(lsp)] = sha256_of(row["input_ids"] for row in cut)
    single = times[LSPS.index(SINGLE_LSP)]
    sweep = tuple(sum(part) for part in zip(*times, strict=True))
    return {**timings(start, single, sweep), "peak_gib": peak_gib(), "sha256": hashes}


def measure_stage(arguments: argparse.Namespace) -> dict[str, Any]:
    """The stage's own `run`, and a view of all rows for each proportion."""
    import numpy as np

    from essence.data.token_table import TokenTable
    from essence.data.truncation import Example
    from essence.progress import Progress, StageContext, StopRequest
    from essence.stages import tokenize

    folder = arguments.scratch / "small"
    inputs = {name: folder / name / "output" for name in ("rows", "tokenizer")}
    clock = Clock()
    tokenize.Renderer(inputs["tokenizer"] / "model", True, arguments.threads).close()
    start = clock.read()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as partial:
        context = StageContext(
            partial=Path(partial) / "partial",
            inputs=inputs,
            resources=resources(arguments.threads),
            progress=Progress(Path(partial) / "progress.json"),
            stop=StopRequest(),
        )
        context.partial.mkdir()
        clock = Clock()
        outcome = tokenize.run(stage_settings(), context)
        whole = clock.read()
        views, hashes = [], {}
        for lsp in LSPS:
            clock = Clock()
            table = TokenTable(context.partial / "tokens.arrow")
            found = list(table.examples(np.arange(len(table)), view(lsp), 151_645))
            views.append(clock.read())
            hashes[str(lsp)] = sha256_of(one.input_ids.tolist() for one in found if isinstance(one, Example))
    rest = tuple(total - part for total, part in zip(whole, start, strict=True))
    single = tuple(a + b for a, b in zip(rest, views[LSPS.index(SINGLE_LSP)], strict=True))
    sweep = tuple(a + sum(part) for a, part in zip(rest, zip(*views, strict=True), strict=True))
    found_by = {"encoder": outcome.executed.encoder, "tokens": outcome.results.tokens}
    return {**timings(start, single, sweep), "peak_gib": peak_gib(), "sha256": hashes, **found_by}


def measure_view(arguments: argparse.Namespace) -> dict[str, Any]:
    """Opening `tokens.arrow` and cutting 40,000 rows in shuffled order, at proportions 0.5 and 1.0."""
    import numpy as np

    from essence.data.token_table import TokenRow, TokenTable, TokenWriter
    from essence.data.truncation import collect

    drawn = np.random.default_rng(0)
    path = arguments.scratch / "view.arrow"
    with TokenWriter(path) as writer:
        for first in range(0, VIEW_ROWS, 250):
            lengths = drawn.integers(MEAN_TOKENS // 2, MEAN_TOKENS * 3 // 2, 250)
            rows = [drawn.integers(0, 151_643, length, dtype=np.int32) for length in lengths]
            writer.write([TokenRow(first + i, ids, 50, ids.size - 300) for i, ids in enumerate(rows)])
    order, found = drawn.permutation(VIEW_ROWS), {}
    for lsp in (0.5, 1.0):
        times = []
        for _ in range(5):
            clock = Clock()
            examples = collect(TokenTable(path).examples(order, view(lsp), 151_645))
            times.append(clock.read())
        seconds, cpu_s = (statistics.median(part) for part in zip(*times, strict=True))
        found[str(lsp)] = {"tokens": examples.tokens, "seconds": round(seconds, 3), "cpu_s": round(cpu_s, 3)}
    path.unlink()
    return {"rows": VIEW_ROWS, "by_lsp": found}


def large(arguments: argparse.Namespace, count: int) -> dict[str, Any]:
    """`python -m essence.stages tokenize` on many generated rows."""
    from essence.settings import Spec

    folder = arguments.scratch / f"large-{count}"
    prepare(arguments, folder, count)
    spec = Spec(
        stage="tokenize",
        key="0" * 64,
        title="bench",
        settings=stage_settings().model_dump(mode="json"),
        inputs={"rows": "../rows", "tokenizer": "../tokenizer"},
        environment={},
        source_sha256="",
        resources=resources(arguments.threads),
        code=code_facts(PROJECT)[0],
        image={"engine": "local", "engine_version": None, "digest": None, "base_digest": None, "sif_sha256": None},
    )
    stage = folder / "tokenize"
    stage.mkdir()
    (stage / "spec.json").write_text(spec.model_dump_json(), encoding="utf-8")
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "essence.stages", "tokenize", "--spec", str(stage / "spec.json")],
        cwd=PROJECT,
        check=True,
    )
    seconds = time.perf_counter() - started
    manifest = json.loads((stage / "manifest.json").read_text(encoding="utf-8"))
    shutil.rmtree(folder)
    cost, results = manifest["cost"], manifest["results"]
    return {
        "rows": results["rows_kept"],
        "tokens": results["tokens"],
        "process_s": round(seconds, 2),
        "stage_s": cost["wall_s"],
        "cpu_s": cost["cpu_s"],
        "rows_a_second": round(results["rows_kept"] / cost["wall_s"], 1),
        "peak_gib": cost["peak_memory_gib"],
        "tokens_sha256": manifest["inputs"]["data"]["tokens_sha256"],
        "encoder": manifest["settings"]["executed"]["encoder"],
    }


def prepare(arguments: argparse.Namespace, folder: Path, count: int) -> None:
    """`rows` and `tokenizer` as finished stages."""
    rows, model = folder / "rows" / "output" / "rows", folder / "tokenizer" / "output" / "model"
    rows.mkdir(parents=True)
    shutil.copytree(arguments.tokenizer, model)
    templates = sorted(model.glob("*.jinja"))
    if templates and not (model / "chat_template.jinja").is_file():
        shutil.copy(templates[0], model / "chat_template.jinja")
    with (rows / "rows.jsonl").open("w", encoding="utf-8") as file:
        for row in given_rows(arguments.rows, count) if arguments.rows else generated_rows(count):
            file.write(json.dumps(row) + "\n")
    for name in ("rows", "tokenizer"):
        write_manifest(folder / name)


def given_rows(path: Path, count: int) -> Iterator[dict[str, Any]]:
    rows = [json.loads(line) for line in path.open(encoding="utf-8")]
    for number in range(count):
        yield rows[number % len(rows)]


def generated_rows(count: int) -> Iterator[dict[str, Any]]:
    """Rows of about 2,500 tokens that look like mathematics; no two are equal."""
    drawn = random.Random(0)
    for number in range(count):
        words = drawn.choices(WORDS, k=drawn.randint(900, 2100))
        for place in range(0, len(words), 9):
            words[place] = str(drawn.randint(0, 10 ** drawn.randint(1, 6)))
        for place in range(5, len(words), 14):
            words[place] += drawn.choice([".", ",", ".\n\n", ":\n", "?"])
        for place in range(3, len(words), 37):
            words[place] = "".join(drawn.choices("abcdefghijklmnopqrstuvwxyz", k=drawn.randint(4, 9)))
        thought = f"<|begin_of_thought|>\n\n{' '.join(words)}\n\n<|end_of_thought|>\n\n"
        answer = f"<|begin_of_solution|>\n\nThe answer is $\\boxed{{{number}}}$.\n\n<|end_of_solution|>"
        question = f"Return your final response within \\boxed{{}}. Problem {number}: {' '.join(words[20:50])}"
        yield {
            "system": "",
            "conversations": [{"from": "user", "value": question}, {"from": "assistant", "value": thought + answer}],
        }


def stage_settings() -> Any:
    from essence.settings import TokenizeSettings

    return TokenizeSettings.model_validate(
        {
            "format": "conversations",
            "keep_generation_header": True,
            "markers": "exact",
            "faulty_rows": "keep",
            "max_row_characters": 1_000_000,
            "max_rejected_share": 0.0,
            "decontamination": {"problem_fields": {}, "overlap_words": 13, "remove": False},
        }
    )


def resources(threads: int) -> Any:
    """Those of an experiment, without a GPU."""
    from essence.plan.cells import part
    from essence.plan.experiment import load
    from essence.settings import Resources

    asked = part(load("tiny").experiment.resources, Resources)
    return Resources.model_validate({**asked, "threads": threads})


def view(lsp: float) -> Any:
    from essence.settings import ViewSettings

    return ViewSettings(
        lsp=lsp,
        span="left",
        sections="p+cot+a",
        cot_includes_next_token=True,
        supervise_end_of_sequence=False,
        keep_context=False,
        left_pad_multiple=16,
        misordered_markers="train",
    )


class Clock:
    """Wall and CPU seconds since it was made."""

    def __init__(self) -> None:
        self._started = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self._started[0], time.process_time() - self._started[1]


def timings(start: tuple[float, ...], single: tuple[float, ...], sweep: tuple[float, ...]) -> dict[str, float]:
    """`_s` with start-up, `_rows_s` without; start-up is loading the tokenizer, and checking it for the stage."""
    found = {"start_s": start[0], "start_cpu_s": start[1]}
    for name, (wall, cpu) in (("single", single), ("sweep", sweep)):
        found |= {f"{name}_s": start[0] + wall, f"{name}_cpu_s": start[1] + cpu, f"{name}_rows_s": wall}
    return {name: round(value, 3) for name, value in found.items()}


def sha256_of(rows: Iterator[list[int]]) -> str:
    digest = hashlib.sha256()
    for ids in rows:
        digest.update(json.dumps(ids).encode())
    return digest.hexdigest()


def peak_gib() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20), 3)


MEASURES = {"released": measure_released, "stage": measure_stage, "view": measure_view}

if __name__ == "__main__":
    main()
