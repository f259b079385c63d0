"""The first start of a decoder in a proof: `python -m essence.stages.prove_start --spec .../spec.json`.

With nothing compiled before; then whether seeds hold, and how long steps take.
"""

import os
import shutil
import statistics
import sys
import time
from contextlib import closing
from pathlib import Path

from essence.evaluation.decoders import Decoder, DecodeSettings, open_decoder
from essence.evaluation.decoders.kept_compilations import KEPT
from essence.files import read_json
from essence.progress import Progress
from essence.record.proof_records import CheckRecord
from essence.record.record_files import Number, Written
from essence.record.run_directory import StageFolder
from essence.settings import BenchmarkSettings, GenerateSettings, Resources, Spec
from essence.settings.proving import ProveDecodingSettings
from essence.sizes.architecture import Architecture
from essence.stages.apart import be_part
from essence.stages.prove_preemption import SEED, completed, random_requests

PROGRAM = "essence.stages.prove_start"
COMPILED = "compiled"
"""Folder under `scratch/` of what the starts compile."""
LEAST_STEP_S = 1e-7
"""A step is never taken for faster: of two calls on a small model either may be the longer one."""
TIMES = 3
"""Each pair of calls is timed; the median counts."""
NO_BENCHMARK = BenchmarkSettings(
    name="proof",
    problem_field="problem",
    answer_field="answer",
    answer_type="integer",
    prompt="{problem}",
    problems=None,
)


class TimedLoad(Written):
    """Steps that each give so many sequences a token."""

    sequences: int
    prompt_tokens: int
    seconds: Number
    """Of one step."""


class StartOutcome(Written):
    """What the first decoder found."""

    decoder: str
    start_s: Number
    key_value_tokens: int | None
    seeds: CheckRecord
    loads: list[TimedLoad]


def measure(spec: Spec, folder: StageFolder) -> StartOutcome:
    """With the model of the input `training`."""
    asked, model = ProveDecodingSettings.model_validate(spec.settings), model_of(spec, folder)
    sizes, progress = Architecture.from_config(read_json(model / "config.json")), Progress(folder.progress)
    started = time.perf_counter()
    with closing(open_decoder(decode_settings(asked, model, spec.resources))) as decoder:
        start_s = time.perf_counter() - started
        room = decoder.load().key_value_tokens
        seeds = seeds_check(decoder, asked, sizes, room)
        found, loads = [], timed_loads(asked, room)
        for place, (sequences, tokens) in enumerate(loads):
            progress.update("prove", place, len(loads), "loads", f"{sequences} sequences of {tokens} tokens")
            seconds = _step_seconds(decoder, asked, sizes, sequences, tokens)
            found.append(TimedLoad(sequences=sequences, prompt_tokens=tokens, seconds=seconds))
        return StartOutcome(
            decoder=decoder.facts["decoder"], start_s=start_s, key_value_tokens=room, seeds=seeds, loads=found
        )


def model_of(spec: Spec, folder: StageFolder) -> Path:
    """The one that the training side left."""
    return StageFolder((folder.path / spec.inputs["training"]).resolve()).output / "model"


def width_of_copy(asked: ProveDecodingSettings, resources: Resources) -> int:
    """GPUs that one copy of a model is shared out among; transformers has it whole."""
    return resources.tensor_parallel if resources.gpus and asked.decoder == "vllm" else 1


def compile_anew(scratch: Path) -> None:
    """Have this process, and what it starts, keep what a decoder compiles in an empty folder of the stage."""
    kept = os.environ.get(KEPT)
    if not kept:
        return
    folder = scratch / COMPILED
    shutil.rmtree(folder, ignore_errors=True)
    inside = {name: value for name, value in os.environ.items() if value == kept or value.startswith(f"{kept}/")}
    os.environ.update({name: str(folder) + value.removeprefix(kept) for name, value in inside.items()})


def decode_settings(
    asked: ProveDecodingSettings, model: Path, resources: Resources, key_value_bytes: int | None = None
) -> DecodeSettings:
    """As an evaluation has them, without anything that ends a completion early."""
    sampling = {
        name: getattr(asked, name) for name in GenerateSettings.model_fields if name in type(asked).model_fields
    }
    generate = GenerateSettings.model_validate(
        {
            **sampling,
            "benchmark": NO_BENCHMARK,
            "model_folder": "model",
            "stop_at_turn_end": False,
            "seed": SEED,
            "stop_loops": False,
        }
    )
    return DecodeSettings(model, (), generate, resources, key_value_bytes)


def timed_loads(asked: ProveDecodingSettings, room: int | None) -> list[tuple[int, int]]:
    """Sequences and tokens of their prompts, each pair once; of sequences no more than the decoder has room for.

    What found no room would wait, and a step would be taken for one of more sequences than it had. `room`: tokens whose
    keys and values there is room for; None = not known.
    """
    loads: dict[tuple[int, int], None] = {}
    for sequences in asked.sequences:
        for tokens in asked.contexts:
            loads[held(sequences, tokens, asked, room), tokens] = None
    return list(loads)


def held(sequences: int, tokens: int, asked: ProveDecodingSettings, room: int | None) -> int:
    """How many of them there is room for, after prompts of so many tokens; at least one."""
    return sequences if room is None else min(sequences, max(1, room // (tokens + asked.new_tokens)))


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
    longer = statistics.median(timed(asked.new_tokens) - timed(1) for _ in range(TIMES))
    return max(LEAST_STEP_S, longer / (asked.new_tokens - 1))


def seeds_check(decoder: Decoder, asked: ProveDecodingSettings, sizes: Architecture, room: int | None) -> CheckRecord:
    """The same requests twice give the same tokens: as many as there is room for, of the shortest prompts.

    Both drawings find the prompts as a first one left them. A decoder that keeps what it has read of them rounds
    otherwise where it reads for itself, and that is no fault of its seeds.
    """
    most, shortest = max(asked.sequences), min(asked.contexts)
    requests = random_requests(sizes, held(most, shortest, asked, room), shortest, asked.new_tokens)
    _, first, second = (completed(decoder, requests) for _ in range(3))
    differing = sum(first[name] != second[name] for name in first)
    told = f"{differing} of {len(first)} completions differ when they are drawn again from the same seeds"
    cure = "" if not differing else ": a run that is repeated gives other completions here"
    return CheckRecord(name="seeds", passed=not differing, sentence=told + cure)


if __name__ == "__main__":
    sys.exit(be_part(PROGRAM, (__doc__ or "").split("\n")[0], measure))
