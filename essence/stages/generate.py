"""Stage `generate`: sample every problem of a benchmark from one model into samples.jsonl."""

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from essence.errors import InputError
from essence.evaluation.benchmarks import read_problems
from essence.evaluation.decoders import DecoderFacts, DecoderLoad, DecodeSettings, open_decoder
from essence.evaluation.golds import check_golds, golds_of
from essence.evaluation.requests import (
    FINISH_REASONS,
    Prompt,
    Request,
    check_context,
    plan_requests,
    render_prompts,
    stop_token_ids,
)
from essence.evaluation.sample_lines import SampleLine, read_lines
from essence.evaluation.sampling import Recorder, check_as_declared, generate_samples, present_samples, put_in_order
from essence.files import canonical_json, sha256_text
from essence.models.loading import check_model, load_tokenizer
from essence.progress import StageContext
from essence.record.evaluation_records import (
    CountAndShare,
    GenerateData,
    GenerateExecuted,
    GenerateMore,
    GenerateResults,
)
from essence.record.outcomes import GenerateOutcome, StageCost
from essence.settings import GenerateSettings

SAMPLES_FILE = "samples.jsonl"


@dataclass(frozen=True)
class Decoding:
    """How the decoder ran in this attempt; of one that had nothing to do, that it did not."""

    facts: DecoderFacts
    decoding_s: float | None = None
    """After it could take requests."""
    load: DecoderLoad = field(default_factory=DecoderLoad)


def run(settings: GenerateSettings, context: StageContext) -> GenerateOutcome:
    """Generate; inputs `model` (Hugging Face folder at `settings.model_folder`) and `problems`.

    Where every sample is there, the model is neither checked nor loaded.

    Raises InputError for an input that cannot be used, Stopped when asked to between two looks at the decoder, and
    StageError when what was generated is not what was declared.
    """
    problems = read_problems(context.inputs["problems"] / "problems", settings.benchmark)
    check_golds(golds_of(settings.benchmark.name, problems), context.graders, context.resources.threads)
    folder = context.inputs["model"] / settings.model_folder
    present = present_samples(context.partial / SAMPLES_FILE)
    declared = {(problem.id, sample) for problem in problems for sample in range(settings.samples)}
    complete = {(line.problem, line.sample) for line in present} >= declared
    if not complete:
        check_model(folder, context.scratch)
    tokenizer = open_tokenizer(folder)
    check_context(folder, settings.max_model_tokens)
    prompts = render_prompts(tokenizer, problems, settings.benchmark.prompt)
    requests = plan_requests(prompts, settings)
    stop_ids = stop_token_ids(folder, tokenizer, settings.stop_at_turn_end)
    told = DecodeSettings(folder, tuple(stop_ids), settings, context.resources)
    context.progress.update("generate", len(present), len(requests), "samples")
    decoding = Decoding({"decoder": settings.decoder})
    if not complete:
        decoding = _generate(requests, present, told, Recorder(tokenizer, stop_ids, told.loops), context)
    path = context.partial / SAMPLES_FILE
    samples = put_in_order(path, read_lines(path, SampleLine), requests)
    check_as_declared(samples, requests, stop_ids)
    return GenerateOutcome(
        results=_results(prompts, samples),
        data=GenerateData(prompts_sha256=sha256_text(canonical_json([[p.problem, p.token_ids] for p in prompts]))),
        executed=_executed(told, prompts, requests, samples, decoding.facts, tokenizer),
        cost=_cost(decoding, requests, samples, sum(line.tokens for line in present)),
        seeds={"generate": settings.seed},
    )


def open_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model; InputError when it has no chat template."""
    tokenizer = load_tokenizer(folder)
    if not tokenizer.chat_template:
        raise InputError(f"{folder}: the tokenizer has no chat template, which renders the prompts", "use a chat model")
    return tokenizer


def _generate(
    requests: Sequence[Request],
    present: Sequence[SampleLine],
    told: DecodeSettings,
    record: Recorder,
    context: StageContext,
) -> Decoding:
    """Add to samples.jsonl what is not `present`; how the decoder ran."""
    path, began = context.partial / SAMPLES_FILE, time.perf_counter()
    with closing(open_decoder(told)) as decoder:
        for done in generate_samples(requests, present, decoder, record, path):
            context.progress.update("generate", done, len(requests), "samples")
            context.stop.check()
        load, took_s = decoder.load(), time.perf_counter() - began
        return Decoding(decoder.facts, took_s - (load.start_s or 0.0), load)


def _cost(
    decoding: Decoding, requests: Sequence[Request], samples: Sequence[SampleLine], tokens_before: int
) -> StageCost:
    """What it took. `tokens_before`: of completions that earlier attempts left."""
    tokens, load = sum(sample.tokens for sample in samples), decoding.load
    more = GenerateMore(
        prompt_tokens=sum(len(request.prompt.token_ids) for request in requests),
        decoder_start_s=load.start_s,
        decode_tokens_per_s=(tokens - tokens_before) / decoding.decoding_s if decoding.decoding_s else None,
        key_value_tokens=load.key_value_tokens,
        preemptions=load.preemptions,
    )
    return StageCost(
        tokens=tokens,
        more=more,
        peak_memory_gib=load.peak_memory_gib,
        peak_gpu_memory_gib=load.peak_gpu_memory_gib,
    )


def _executed(
    told: DecodeSettings,
    prompts: list[Prompt],
    requests: list[Request],
    samples: list[SampleLine],
    facts: DecoderFacts,
    tokenizer: Any,
) -> GenerateExecuted:
    caps = [request.max_new_tokens for request in requests]
    lengths = [len(prompt.token_ids) for prompt in prompts]
    return GenerateExecuted(
        samples_per_problem=len(samples) // len(prompts),
        max_new_tokens=max(caps),
        smallest_max_new_tokens=min(caps),
        shortest_prompt_tokens=min(lengths),
        longest_prompt_tokens=max(lengths),
        stop_loops=told.generate.stop_loops,
        **facts,
        stop_token_ids=list(told.stop_ids),
        template_sha256=sha256_text(tokenizer.get_chat_template()),
        dtype=told.generate.dtype,
    )


def _results(prompts: list[Prompt], samples: list[SampleLine]) -> GenerateResults:
    """Counts of what came out; loops and runs to the cap are what an evaluation's bill is made of."""
    reasons = Counter(sample.finish_reason for sample in samples)
    stops = Counter(str(sample.stop_token) for sample in samples if sample.stop_token is not None)
    loops = sum(sample.loop_at is not None for sample in samples)
    return GenerateResults(
        samples=len(samples),
        problems=len(prompts),
        finish_reasons={reason: reasons[reason] for reason in FINISH_REASONS},
        stop_tokens=dict(sorted(stops.items())),
        loops=CountAndShare(count=loops, share=loops / len(samples), cut=reasons["loop"]),
        at_cap=CountAndShare(count=reasons["length"], share=reasons["length"] / len(samples)),
        mean_completion_tokens=sum(sample.tokens for sample in samples) / len(samples),
    )
