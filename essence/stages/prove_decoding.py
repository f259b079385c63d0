"""Prove the decoding side of a machine: time the decoder that evaluations use, and check that its seeds hold.

Prompts are random ids, and no token ends a completion, so each has the tokens that were asked for. A step is timed as
the difference of two calls on the same prompts, which leaves out reading them and what a call takes.
"""

import os
import shutil
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from essence.evaluation.decoders import Decoder, DecodeSettings, open_decoder
from essence.evaluation.decoders.kept_compilations import KEPT
from essence.files import read_json
from essence.progress import StageContext
from essence.record.outcomes import ProveDecodingOutcome
from essence.record.proof_records import CheckRecord, DecodeCoefficients, DecodePoint, ProveDecodingResults
from essence.settings import BenchmarkSettings, GenerateSettings, Resources
from essence.settings.proving import ProveDecodingSettings
from essence.sizes.architecture import Architecture
from essence.sizes.speeds import DecodeWork, cache_bytes, fitted
from essence.stages.prove_preemption import (
    ELEMENT_BYTES,
    SEED,
    completed,
    little_room,
    preemption_checks,
    random_requests,
)

COMPILED = "compiled"
"""Folder under `scratch/` of what the two starts compile."""
LEAST_STEP_S = 1e-7
"""A step is never taken for faster: of two calls on a small model either may be the longer one."""
NO_BENCHMARK = BenchmarkSettings(
    name="proof",
    problem_field="problem",
    answer_field="answer",
    answer_type="integer",
    prompt="{problem}",
    problems=None,
)


def run(asked: ProveDecodingSettings, context: StageContext) -> ProveDecodingOutcome:
    """Measure and check with the model of the input `training`.

    Raises:
        MachineError: this machine cannot run the decoder.
        Stopped: asked for between two measurements; nothing is kept.
    """
    folder = context.inputs["training"] / "model"
    sizes = Architecture.from_config(read_json(folder / "config.json"))
    settings, width = DecodeSettings(folder, (), _settings(asked), context.resources), _width(asked, context.resources)
    compile_anew(context.scratch)
    started = time.perf_counter()
    with closing(open_decoder(settings)) as decoder:
        start_s = time.perf_counter() - started
        checks, room = [_seeds(decoder, asked, sizes)], decoder.load().key_value_tokens
        loads = timed_loads(asked, room)
        seconds = []
        for place, (sequences, tokens) in enumerate(loads):
            context.stop.check()
            context.progress.update("prove", place, len(loads), "loads", f"{sequences} sequences of {tokens} tokens")
            seconds.append(_step_seconds(decoder, asked, sizes, sequences, tokens))
        told = decoder.facts["decoder"]
    context.stop.check()
    context.progress.update("prove", len(loads), len(loads), "loads", "a second start")
    started = time.perf_counter()
    with closing(open_decoder(replace(settings, key_value_bytes=little_room(asked, sizes, width)))) as decoder:
        warm_start_s = time.perf_counter() - started
        checks += preemption_checks(decoder, asked, sizes)
    shutil.rmtree(context.scratch / COMPILED, ignore_errors=True)
    results = _results(asked, sizes, width, checks, told, start_s, loads, seconds)
    measured = {"warm_start_s": warm_start_s, "key_value_tokens": room}
    return ProveDecodingOutcome(results=results.model_copy(update=measured), seeds={"prompts": SEED})


def _results(
    asked: ProveDecodingSettings,
    sizes: Architecture,
    width: int,
    checks: list[CheckRecord],
    decoder: str,
    start_s: float,
    loads: Sequence[tuple[int, int]],
    seconds: Sequence[float],
) -> ProveDecodingResults:
    """What was measured, and the fit: against what each of the `width` GPUs of a copy reads, as the plan counts it."""
    behind = [tokens + asked.new_tokens // 2 for _, tokens in loads]
    work = [
        DecodeWork(
            sizes.parameters / width, count, count * cache_bytes(sizes, tokens, ELEMENT_BYTES[asked.dtype]) / width
        )
        for (count, _), tokens in zip(loads, behind, strict=True)
    ]
    fit = fitted(work, seconds)
    weight, sequence, byte = fit.coefficients
    points = [
        DecodePoint(
            sequences=count,
            context=tokens,
            seconds=measured,
            fitted_s=weight * one.parameters + sequence * one.sequences + byte * one.cache_bytes,
        )
        for (count, _), tokens, measured, one in zip(loads, behind, seconds, work, strict=True)
    ]
    return ProveDecodingResults(
        checks=checks,
        decoder=decoder,
        start_s=start_s,
        tokens_per_s=max(point.sequences / float(point.seconds) for point in points),
        points=points,
        coefficients=DecodeCoefficients(weight_s=weight, sequence_s=sequence, cache_byte_s=byte, error=fit.error),
    )


def compile_anew(scratch: Path) -> None:
    """Have the decoder keep what it compiles in an empty folder: a first start is one without anything compiled."""
    kept = os.environ.get(KEPT)
    if not kept:
        return
    folder = scratch / COMPILED
    shutil.rmtree(folder, ignore_errors=True)
    inside = {name: value for name, value in os.environ.items() if value == kept or value.startswith(f"{kept}/")}
    os.environ.update({name: str(folder) + value.removeprefix(kept) for name, value in inside.items()})


def _width(asked: ProveDecodingSettings, resources: Resources) -> int:
    """GPUs that one copy of a model is shared out among; transformers has it whole."""
    return resources.tensor_parallel if resources.gpus and asked.decoder == "vllm" else 1


def _settings(asked: ProveDecodingSettings) -> GenerateSettings:
    sampling = {
        name: getattr(asked, name) for name in GenerateSettings.model_fields if name in type(asked).model_fields
    }
    return GenerateSettings.model_validate(
        {
            **sampling,
            "benchmark": NO_BENCHMARK,
            "model_folder": "model",
            "stop_at_turn_end": False,
            "seed": SEED,
            "stop_loops": False,
        }
    )


def timed_loads(asked: ProveDecodingSettings, room: int | None) -> list[tuple[int, int]]:
    """Sequences and tokens of their prompts, each pair once; of sequences no more than the decoder has room for.

    What found no room would wait, and a step would be taken for one of more sequences than it had. `room`: tokens whose
    keys and values there is room for; None = not known.
    """
    loads: dict[tuple[int, int], None] = {}
    for sequences in asked.sequences:
        for tokens in asked.contexts:
            held = sequences if room is None else max(1, room // (tokens + asked.new_tokens))
            loads[min(sequences, held), tokens] = None
    return list(loads)


def _step_seconds(
    decoder: Decoder, asked: ProveDecodingSettings, sizes: Architecture, sequences: int, tokens: int
) -> float:
    """Of a step that gives each sequence a token."""

    def timed(new_tokens: int) -> float:
        requests = random_requests(sizes, sequences, tokens, new_tokens)
        started = time.perf_counter()
        completed(decoder, requests)
        return time.perf_counter() - started

    timed(1)  # the decoder may keep what it has read of a prompt, and would do so in one of the two calls alone
    short, long = timed(1), timed(asked.new_tokens)
    return max(LEAST_STEP_S, (long - short) / (asked.new_tokens - 1))


def _seeds(decoder: Decoder, asked: ProveDecodingSettings, sizes: Architecture) -> CheckRecord:
    """The same requests twice give the same tokens.

    Both drawings find the prompts as a first one left them. A decoder that keeps what it has read of them rounds
    otherwise where it reads for itself, and that is no fault of its seeds.
    """
    requests = random_requests(sizes, max(asked.sequences), min(asked.contexts), asked.new_tokens)
    _, first, second = (completed(decoder, requests) for _ in range(3))
    differing = sum(first[name] != second[name] for name in first)
    told = f"{differing} of {len(first)} completions differ when they are drawn again from the same seeds"
    cure = "" if not differing else ": a run that is repeated gives other completions here"
    return CheckRecord(name="seeds", passed=not differing, sentence=told + cure)
