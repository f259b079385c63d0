"""Whole optimiser steps: the kit's loop against the way of the released code, Liger's loss in it, and TRL's trainer.

    python bench/train.py                                  # a small Qwen3 with the real vocabulary, on a CPU
    python bench/train.py --device cuda --student qwen3-4b-base --teacher qwen3-8b --tokens 2048

All models have random weights. *released*: one row a forward pass, padded on the left, both models' whole logits,
`log(softmax())`, activation checkpointing, AdamW one tensor after the other. *liger*: the same with Liger's chunked
divergence. *trl*: TRL's GKDTrainer, off-policy. *kit*: `essence.distill.trainer.train`, packed. What each of them
minimises is in `objectives` of the file. Each loop is a process of its own; a round takes one of each, on the same
rows. Prints ratios of medians over the rounds (another loop / kit) and writes bench/results/train.json, which needs all
peers: `locks/install.sh cpu dev vllm peers`.
"""

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from measurement import Start, at_start, installed, refuse_without_peers  # noqa: E402
from training_loops import OBJECTIVES, LoopWork, Losses, liger, released, trl  # noqa: E402

from essence.data.truncation import Example  # noqa: E402
from essence.distill.devices import peak_of_device  # noqa: E402
from essence.distill.teachers import LiveTeacher  # noqa: E402
from essence.distill.trainer import train  # noqa: E402
from essence.plan.cells import part, train_settings  # noqa: E402
from essence.plan.experiment import load  # noqa: E402
from essence.progress import Progress, StopRequest  # noqa: E402
from essence.settings import Resources  # noqa: E402
from essence.sizes.architecture import Architecture, distillation_flops  # noqa: E402

GIB = 1 << 30
ACHIEVABLE_FLOPS = 790e12
"""Dense bfloat16 FLOP/s that an H100 or H200 reaches in large matrix products."""
SMALL = {
    "student": Architecture(256, 4, 4, 2, 64, 768, 151_936, True),
    "teacher": Architecture(512, 6, 8, 4, 64, 1536, 151_936, True),
}
WARM_UP_STEPS = 1
A_YEAR_S = 31_536_000.0
"""Between two checkpoints: none is written while steps are measured."""
DISTRIBUTION_OF = {"liger": "liger-kernel", "trl": "trl"}
MODULE_OF = {"liger": "liger_kernel.chunked_loss", "trl": "trl.experimental.gkd"}


def main() -> None:
    arguments = read_arguments()
    if arguments.measure:
        print(json.dumps(measure(arguments)))
        return
    refuse_without_peers("train", arguments.out)
    start = at_start("train", arguments.threads)
    names = [name for name in LOOPS if installed(DISTRIBUTION_OF.get(name, "torch"))]
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(arguments.rounds):
        for name in names:
            rounds[name].append(run_in_a_process(name))
            found = rounds[name][-1]
            spent = f"{found['cpu_s']:.2f} CPU s, {found['wall_s']:.2f} s, {found['peak_gib']:.2f} GiB"
            print(f"round {number + 1} {name}: {spent}", flush=True)
    compared = ratios(rounds)
    record = {**describe(arguments, start), "ratios": compared, "rounds": rounds}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(compared, indent=2))


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--student", default="small", help="`small`, or a model of experiments/pins.toml")
    parser.add_argument("--teacher", default="small", help="the same")
    parser.add_argument("--tokens", type=int, default=1000, help="of the longest row; the shortest has half")
    parser.add_argument("--rows", type=int, default=4, help="rows of an optimiser step")
    parser.add_argument("--micro-batch-tokens", type=int, default=8192)
    parser.add_argument("--keep-activations", action="store_true", help="the kit without activation checkpointing")
    parser.add_argument("--steps", type=int, default=2, help="measured steps, after one to warm up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=PROJECT / "bench" / "results" / "train.json")
    parser.add_argument("--measure", choices=tuple(LOOPS), help=argparse.SUPPRESS)
    return parser.parse_args()


def run_in_a_process(name: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, *sys.argv, "--measure", name], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def describe(arguments: argparse.Namespace, start: Start) -> dict[str, object]:
    """The work and the machine."""
    return {
        **start,
        "work": {
            name: getattr(arguments, name) for name in ("device", "student", "teacher", "rows", "steps", "threads")
        },
        "row_tokens": [row.input_ids.size for row in rows_of_a_step(arguments)],
        "vocabulary": sizes(arguments)[0].vocabulary,
        "activation_checkpointing": {name: name != "kit" or not arguments.keep_activations for name in LOOPS},
        "objectives": OBJECTIVES,
    }


def ratios(rounds: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Each other loop over the kit's, of medians over the rounds."""

    def median(name: str, key: str) -> float:
        return statistics.median(one[key] for one in rounds[name])

    keys = ("cpu_s", "wall_s", "peak_gib")
    others = [name for name in rounds if name != "kit"]
    return {name: {key: round(median(name, key) / median("kit", key), 2) for key in keys} for name in others}


def sizes(arguments: argparse.Namespace) -> tuple[Architecture, Architecture]:
    models = load("bespoke").catalogue.models
    chosen = [
        SMALL[role] if name == "small" else models[name].architecture
        for role, name in (("student", arguments.student), ("teacher", arguments.teacher))
    ]
    if chosen[0] is None or chosen[1] is None:
        raise SystemExit("the pins know no architecture of this model")
    return chosen[0], chosen[1]


def rows_of_a_step(arguments: argparse.Namespace) -> list[Example]:
    """Rows of half to all of `--tokens`, all of whose tokens but the first are supervised."""
    random = np.random.default_rng(5)
    lengths = np.linspace(arguments.tokens // 2, arguments.tokens, arguments.rows).astype(int)
    vocabulary = sizes(arguments)[0].vocabulary
    made = []
    for number, length in enumerate(random.permutation(lengths)):
        supervised = np.ones(length, dtype=np.bool_)
        supervised[0] = False
        made.append(Example(number, random.integers(0, vocabulary, length, dtype=np.int32), supervised))
    return made


def random_model(chosen: Architecture, dtype: torch.dtype, device: torch.device, seed: int) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=chosen.vocabulary,
        hidden_size=chosen.hidden,
        num_hidden_layers=chosen.layers,
        num_attention_heads=chosen.heads,
        num_key_value_heads=chosen.kv_heads,
        head_dim=chosen.head_dim,
        intermediate_size=chosen.intermediate,
        tie_word_embeddings=chosen.tied,
    )
    with device:
        return Qwen3ForCausalLM(config).to(dtype)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time and peak memory of the steps of one loop, above what the models take."""
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    chosen = sizes(arguments)
    student = random_model(chosen[0], torch.float32, device, 0)
    teacher = random_model(chosen[1], torch.bfloat16, device, 1)
    if arguments.measure in MODULE_OF:
        importlib.import_module(MODULE_OF[arguments.measure])  # before the clock: its code is no memory of a step
    clock = Clock(device)
    losses = LOOPS[arguments.measure](arguments, student, teacher, clock)
    wall_s, cpu_s, peak_gib = clock.read()
    rows = rows_of_a_step(arguments)
    needed = distillation_flops(*chosen, [row.input_ids.size for row in rows], activation_checkpointing=False)
    peak = peak_of_device(device)
    return {
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "peak_gib": peak_gib,
        "losses": losses,
        "tokens_per_s": sum(row.input_ids.size for row in rows) / wall_s,
        "mfu": needed / wall_s / peak.flops if peak else None,
        "mfu_of_achievable": needed / wall_s / ACHIEVABLE_FLOPS if peak else None,
    }


class Clock:
    """Marks the end of each step; memory is the most since it was made, above what was there then."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            self.before = resident("VmRSS")
        self.marks: list[tuple[float, float]] = []

    def mark(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.marks.append((time.perf_counter(), time.process_time()))

    def read(self) -> tuple[float, float, float]:
        """Median wall and CPU seconds of the steps after the warm-up, and peak GiB."""
        steps = list(zip(self.marks[WARM_UP_STEPS - 1 :], self.marks[WARM_UP_STEPS:], strict=False))
        peak = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else resident("VmHWM")
        wall, cpu = (statistics.median(after[i] - before[i] for before, after in steps) for i in (0, 1))
        return wall, cpu, (peak - self.before) / GIB


def resident(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


class Marking(Progress):
    """Marks every step that the kit's loop reports."""

    def __init__(self, path: Path, clock: Clock) -> None:
        super().__init__(path)
        self.clock = clock

    def update(self, phase: str, done: int, total: int, unit: str, note: str = "") -> None:
        super().update(phase, done, total, unit, note)
        self.clock.mark()


def kit(arguments: argparse.Namespace, student: Any, teacher: Any, clock: Clock) -> Losses:
    """The kit's own loop, with the settings of the experiment bespoke and all rows in each step."""
    loaded = load("bespoke")
    settings = train_settings(loaded.cells()[0], loaded.experiment)
    steps = WARM_UP_STEPS + arguments.steps
    optimizer = settings.optimizer.model_copy(update={"epochs": steps, "batch_rows": arguments.rows, "batch_tokens": 0})
    changes = {
        "optimizer": optimizer,
        "order": settings.order.model_copy(update={"multiple": 1}),  # each step is all rows
        "parallel": "single",
        "processes": 1,
    }
    given = {**part(loaded.experiment.resources, Resources), "micro_batch_tokens": arguments.micro_batch_tokens}
    given["activation_checkpointing"] = "off" if arguments.keep_activations else "on"
    resources = Resources.model_validate({**given, "threads": arguments.threads, "checkpoint_every_s": A_YEAR_S})
    with tempfile.TemporaryDirectory() as folder:
        result = train(
            student,
            LiveTeacher(teacher, torch.bfloat16),
            rows_of_a_step(arguments),
            [],
            settings.model_copy(update=changes),
            resources,
            Path(folder),
            Marking(Path(folder) / "progress.json", clock),
            StopRequest(),
            device=torch.device(arguments.device),
        )
        records = [json.loads(line) for line in result.metrics.read_text().splitlines()]
    return [record["loss"] for record in records]


def beside(loop: Callable[[LoopWork, Any, Any, Clock], Losses]) -> Callable[..., Losses]:
    """A loop of another's, on the rows and steps of the kit's."""

    def run(arguments: argparse.Namespace, student: Any, teacher: Any, clock: Clock) -> Losses:
        steps = WARM_UP_STEPS + arguments.steps
        return loop(LoopWork(rows_of_a_step(arguments), steps, torch.device(arguments.device)), student, teacher, clock)

    return run


LOOPS: dict[str, Callable[..., Losses]] = {
    "released": beside(released),
    "kit": kit,
    "liger": beside(liger),
    "trl": beside(trl),
}

if __name__ == "__main__":
    main()
