"""Prove the decoding side of a machine: time the decoder that evaluations use, and check that its seeds hold.

Prompts are random ids, and no token ends a completion, so each has the tokens that were asked for. A step is timed as
the difference of two calls on the same prompts, which leaves out reading them and what a call takes. The decoder is
started with nothing compiled, with little room if it has a fixed one, and as evaluations start it; but for the last in
processes of their own, whose end gives their GPUs back.
"""

import shutil
import time
from contextlib import closing

from essence.evaluation.decoders import open_decoder
from essence.files import read_json
from essence.progress import StageContext
from essence.record.outcomes import ProveDecodingOutcome
from essence.record.proof_records import CheckRecord, DecodeCoefficients, DecodePoint, ProveDecodingResults
from essence.settings.proving import ProveDecodingSettings
from essence.sizes.architecture import Architecture
from essence.sizes.speeds import DecodeWork, cache_bytes, fitted
from essence.stages import prove_crowded
from essence.stages.apart import run_apart
from essence.stages.prove_preemption import ELEMENT_BYTES, SEED
from essence.stages.prove_start import (
    COMPILED,
    LEAST_STEP_S,
    PROGRAM,
    StartOutcome,
    compile_anew,
    decode_settings,
    width_of_copy,
)


def run(asked: ProveDecodingSettings, context: StageContext) -> ProveDecodingOutcome:
    """Measure and check with the model of the input `training`.

    Raises:
        MachineError: this machine cannot run the decoder.
        Stopped: asked for between two measurements; nothing is kept.
    """
    model = context.inputs["training"] / "model"
    sizes = Architecture.from_config(read_json(model / "config.json"))
    compile_anew(context.scratch)
    first = run_apart(PROGRAM, StartOutcome, context)
    checks = [first.seeds]
    if first.key_value_tokens is not None:  # a decoder with a fixed room
        context.progress.update("prove", 1, 1, "loads", "with little room")
        checks += run_apart(prove_crowded.PROGRAM, prove_crowded.CrowdedOutcome, context).checks
    context.progress.update("prove", 1, 1, "loads", "an evaluation's start")
    started = time.perf_counter()
    with closing(open_decoder(decode_settings(asked, model, context.resources))):
        warm_start_s = time.perf_counter() - started
    shutil.rmtree(context.scratch / COMPILED, ignore_errors=True)
    return ProveDecodingOutcome(
        results=_results(asked, sizes, width_of_copy(asked, context.resources), first, checks, warm_start_s),
        seeds={"prompts": SEED},
    )


def _results(
    asked: ProveDecodingSettings,
    sizes: Architecture,
    width: int,
    first: StartOutcome,
    checks: list[CheckRecord],
    warm_start_s: float,
) -> ProveDecodingResults:
    """What was measured, and the fit: against what each of the `width` GPUs of a copy reads, as the plan counts it."""
    loads = [(load.sequences, load.prompt_tokens + asked.new_tokens // 2) for load in first.loads]
    seconds = [float(load.seconds) for load in first.loads]
    work = [
        DecodeWork(
            sizes.parameters / width, count, count * cache_bytes(sizes, behind, ELEMENT_BYTES[asked.dtype]) / width
        )
        for count, behind in loads
    ]
    # A fit is relative: one step that noise made next to nothing would decide it alone, and be the fastest.
    seen = [place for place, one in enumerate(seconds) if one > LEAST_STEP_S] or range(len(seconds))
    fit = fitted([work[place] for place in seen], [seconds[place] for place in seen])
    weight, sequence, byte = fit.coefficients
    points = [
        DecodePoint(
            sequences=count,
            context=tokens,
            seconds=measured,
            fitted_s=weight * one.parameters + sequence * one.sequences + byte * one.cache_bytes,
        )
        for (count, tokens), measured, one in zip(loads, seconds, work, strict=True)
    ]
    return ProveDecodingResults(
        checks=checks,
        decoder=first.decoder,
        start_s=first.start_s,
        warm_start_s=warm_start_s,
        key_value_tokens=first.key_value_tokens,
        tokens_per_s=max(points[place].sequences / float(points[place].seconds) for place in seen),
        points=points,
        coefficients=DecodeCoefficients(weight_s=weight, sequence_s=sequence, cache_byte_s=byte, error=fit.error),
    )
