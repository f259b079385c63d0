"""What writing samples down costs: our loop around vLLM against a bare `LLM.generate` of the same requests.

    python bench/evaluate.py [--problems 6] [--samples 16] [--tokens 256] [--rounds 7] [--threads 1]

One engine with a random Qwen3 (CPU, float32, no download), the same prompts, seeds and parameters. Bare: one call of
`LLM.generate`, which returns token ids and writes nothing. Ours: the stage's loop, with text, checks, the search for
loops and a line a sample on disk; with loops watched for while it generates (`cut`) and without. The ways take turns in
every round; the order is turned by one each time. The engine's prefix cache is emptied before each. Writes
bench/results/evaluate.json.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(PROJECT), str(PROJECT / "tests")]

from measurement import at_start, refuse_without_peers  # noqa: E402

from essence.evaluation.benchmarks import Problem  # noqa: E402
from essence.evaluation.decoders import DecodeSettings  # noqa: E402
from essence.evaluation.decoders.vllm import VllmDecoder  # noqa: E402
from essence.evaluation.requests import Request, plan_requests, render_prompts  # noqa: E402
from essence.evaluation.sample_lines import SampleLine, read_lines  # noqa: E402
from essence.evaluation.sampling import (  # noqa: E402
    Recorder,
    check_as_declared,
    generate_samples,
    put_in_order,
)
from essence.models.loading import load_tokenizer  # noqa: E402
from support.sampling import make_inputs, settings  # noqa: E402
from support.some_resources import some_resources  # noqa: E402

STOP_IDS = (256,)
GOAL = 0.05


def main() -> None:
    arguments = read_arguments()
    refuse_without_peers("evaluate", arguments.out)
    with tempfile.TemporaryDirectory() as folder:
        record = compare(arguments, Path(folder))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record["overhead"], indent=2))


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    for name, default in (("problems", 6), ("samples", 16), ("tokens", 256), ("rounds", 7), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, default=PROJECT / "bench" / "results" / "evaluate.json")
    return parser.parse_args()


def compare(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All rounds, and ours over bare as medians of the ratios within a round."""
    start = at_start("evaluate", arguments.threads)
    asked = settings(
        decoder="vllm",
        samples=arguments.samples,
        max_new_tokens=arguments.tokens,
        batch_sequences=arguments.samples * arguments.problems,
    )
    told = DecodeSettings(
        make_inputs(folder)["model"] / "model", STOP_IDS, asked, some_resources(threads=arguments.threads)
    )
    decoder, tokenizer = VllmDecoder(told), load_tokenizer(told.model)
    problems = [Problem(str(i), f"What is {i} + {i}?", "0") for i in range(arguments.problems)]
    requests = plan_requests(render_prompts(tokenizer, problems, "Solve: {problem}"), asked)

    def ours(cut: bool) -> Callable[[], list[int]]:
        decoder_loops = replace(told.loops, cut=cut)
        record = Recorder(tokenizer, STOP_IDS, decoder_loops)
        path = folder / f"samples-{cut}.jsonl"

        def run() -> list[int]:
            decoder.loops = decoder_loops
            path.unlink(missing_ok=True)
            for _ in generate_samples(requests, [], decoder, record, path):
                pass
            samples = put_in_order(path, read_lines(path, SampleLine), requests)
            check_as_declared(samples, requests, STOP_IDS)
            return [sample.tokens for sample in samples]

        return run

    ways = {"bare": lambda: bare(decoder, requests), "ours": ours(False), "ours_cut": ours(True)}
    rounds = [measure(ways, number, decoder) for number in range(-1, arguments.rounds)][1:]
    return {
        **start,
        "requests": len(requests),
        "tokens": sum(bare(decoder, requests)),
        "threads": arguments.threads,
        "goal": GOAL,
        "overhead": {
            f"{way}_{clock}": round(statistics.median(r[way][clock] / r["bare"][clock] for r in rounds) - 1, 4)
            for way in ("ours", "ours_cut")
            for clock in ("wall_s", "cpu_s")
        },
        "rounds": rounds,
    }


def bare(decoder: VllmDecoder, requests: list[Request]) -> list[int]:
    """vLLM's own call; tokens of each completion."""
    prompts = [{"prompt_token_ids": list(request.prompt.token_ids)} for request in requests]
    parameters = [decoder._parameters(request) for request in requests]
    outputs = decoder.llm.generate(prompts, parameters, use_tqdm=False)
    return [len(output.outputs[0].token_ids) for output in outputs]


def measure(ways: dict[str, Callable[[], list[int]]], number: int, decoder: VllmDecoder) -> dict[str, Any]:
    """One round: every way once; SystemExit unless all give completions of the same lengths."""
    names = list(ways)
    turned = names[number % len(names) :] + names[: number % len(names)]
    found: dict[str, Any] = {}
    lengths: dict[str, list[int]] = {}
    for name in turned:
        decoder.llm.reset_prefix_cache()
        wall, cpu = time.perf_counter(), time.process_time()
        lengths[name] = ways[name]()
        found[name] = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    if lengths["bare"] != lengths["ours"]:
        raise SystemExit("bare and ours gave different completions")
    print(f"round {number + 1}: " + ", ".join(f"{n} {found[n]['cpu_s']:.2f} cpu s" for n in names), flush=True)
    return found


if __name__ == "__main__":
    main()
