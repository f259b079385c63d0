"""Stage `generate`: sample every problem of a benchmark from one model into samples.jsonl."""

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from essence.errors import InputError, MachineError, StageError
from essence.record.canonical import canonical_json, sha256_text
from essence.scoring.benchmarks import read_problems
from essence.scoring.generation import (
    Prompt,
    Request,
    TransformersDecoder,
    generate_samples,
    plan_requests,
    render_prompts,
    stop_token_ids,
)
from essence.scoring.lines import read_lines
from essence.settings import GenerateSettings
from essence.stages.context import StageContext, StageOutcome

SAMPLES_FILE = "samples.jsonl"


def run(settings: GenerateSettings, context: StageContext) -> StageOutcome:
    """Generate; inputs `model` (Hugging Face folder at `settings.model_folder`) and `problems`.

    Raises InputError for an input that cannot be used, Stopped between two batches, and StageError when what was
    generated is not what was declared.
    """
    torch.set_num_threads(context.resources.threads)
    problems = read_problems(context.inputs["problems"] / "problems", settings.benchmark)
    folder = context.inputs["model"] / settings.model_folder
    tokenizer = load_tokenizer(folder)
    prompts = render_prompts(tokenizer, problems, settings.benchmark.prompt)
    requests = plan_requests(prompts, settings)
    model = _load_model(folder, settings.dtype, context.resources.gpus)
    stop_ids = stop_token_ids(model, tokenizer, settings.stop_at_turn_end)
    decoder = TransformersDecoder(model, stop_ids, settings.temperature, settings.top_p)
    path = context.partial / SAMPLES_FILE
    context.progress.update("generate", 0, len(requests), "samples")
    for done in generate_samples(requests, decoder, tokenizer, stop_ids, settings.batch_sequences, path):
        context.progress.update("generate", done, len(requests), "samples")
        context.stop.check()
    samples = read_lines(path)
    _check_as_declared(samples, requests)
    return _outcome(settings, prompts, requests, samples, stop_ids, tokenizer.get_chat_template())


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a Hugging Face folder; InputError when there is none or it has no chat template."""
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} holds no model: config.json is missing; run the stage that makes it again.")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if not tokenizer.chat_template:
        raise InputError(f"The tokenizer in {folder} has no chat template, which renders the prompts.")
    return tokenizer


def _load_model(folder: Path, dtype: str, gpus: int) -> Any:
    if gpus and not torch.cuda.is_available():
        raise MachineError(f"{gpus} GPUs were given to this stage, but torch {torch.__version__} finds no CUDA device.")
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), local_files_only=True, trust_remote_code=False, use_safetensors=True
    )
    return model.to("cuda" if gpus else "cpu").eval()


def _check_as_declared(samples: list[dict[str, Any]], requests: list[Request]) -> None:
    """Every request once, in order, from its prompt and seed, within its cap; StageError otherwise."""
    if len(samples) != len(requests):
        raise StageError(f"{SAMPLES_FILE} holds {len(samples)} samples, declared: {len(requests)}.")
    for request, sample in zip(requests, samples, strict=True):
        declared = {
            "problem": request.prompt.problem,
            "sample": request.sample,
            "seed": request.seed,
            "prompt_sha256": sha256_text(request.prompt.text),
        }
        found = {key: sample.get(key) for key in declared}
        if found != declared or not 0 < sample["tokens"] <= request.max_new_tokens:
            raise StageError(
                f"{SAMPLES_FILE} holds {found} with {sample['tokens']} tokens, declared: {declared} with at most "
                f"{request.max_new_tokens} tokens."
            )


def _outcome(
    settings: GenerateSettings,
    prompts: list[Prompt],
    requests: list[Request],
    samples: list[dict[str, Any]],
    stop_ids: list[int],
    template: str,
) -> StageOutcome:
    reasons = Counter(sample["finish_reason"] for sample in samples)
    completion_tokens = sum(sample["tokens"] for sample in samples)
    caps = [request.max_new_tokens for request in requests]
    return StageOutcome(
        results={
            "samples": len(samples),
            "problems": len(prompts),
            "finish_reasons": {reason: reasons[reason] for reason in ("stop", "length")},
            "mean_completion_tokens": completion_tokens / len(samples),
        },
        data={"prompts_sha256": sha256_text(canonical_json([[p.problem, p.token_ids] for p in prompts]))},
        executed={
            "samples_per_problem": len(samples) // len(prompts),
            "max_new_tokens": max(caps),
            "smallest_max_new_tokens": min(caps),
            "stop_token_ids": stop_ids,
            "template_sha256": sha256_text(template),
            "dtype": settings.dtype,
        },
        cost={
            "tokens": completion_tokens,
            "prompt_tokens": sum(len(request.prompt.token_ids) for request in requests),
        },
        seeds={"generate": settings.seed},
    )
