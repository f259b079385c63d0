"""Whole optimiser steps: the kit's loop against the way of the released code, and against Liger's loss where installed.

    python bench/train.py                                  # a small Qwen3 with the real vocabulary, on a CPU
    python bench/train.py --device cuda --student qwen3-4b-base --teacher qwen3-8b --tokens 2048

All models have random weights. *released*: one row a forward pass, padded on the left, both models' whole logits,
`log(softmax())`, activation checkpointing, AdamW one tensor after the other. *liger*: the same with Liger's chunked
divergence. *kit*: `essence.distill.trainer.train`, packed. Each loop is a process of its own; a round takes one of
each, on the same rows. Prints ratios of medians over the rounds (released / kit) and writes bench/results/train.json.
"""

import argparse
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
from torch.nn import functional  # noqa: E402

from essence.data.truncation import Example  # noqa: E402
from essence.distill.devices import peak_of_device  # noqa: E402
from essence.distill.teachers import LiveTeacher  # noqa: E402
from essence.distill.trainer import train  # noqa: E402
from essence.plan.cells import part, train_settings  # noqa: E402
from essence.plan.experiment import load  # noqa: E402
from essence.progress import Progress, StopRequest  # noqa: E402
from essence.record.facts import code_facts, hardware, packages  # noqa: E402
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
PADDING_MULTIPLE = 16
PACKAGES = ("torch", "transformers", "liger-kernel")


def main() -> None:
    arguments = read_arguments()
    if arguments.measure:
        print(json.dumps(measure(arguments)))
        return
    names = ["released", "kit", *(["liger"] if has_liger() else [])]
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(arguments.rounds):
        for name in names:
            rounds[name].append(run_in_a_process(name))
            found = rounds[name][-1]
            spent = f"{found['cpu_s']:.2f} CPU s, {found['wall_s']:.2f} s, {found['peak_gib']:.2f} GiB"
            print(f"round {number + 1} {name}: {spent}", flush=True)
    record = {**describe(arguments), "ratios": ratios(rounds), "rounds": rounds}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record["ratios"], indent=2))


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


def has_liger() -> bool:
    try:
        import liger_kernel  # noqa: F401
    except ImportError:
        return False
    return True


def run_in_a_process(name: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, *sys.argv, "--measure", name], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def describe(arguments: argparse.Namespace) -> dict[str, Any]:
    """The work and the machine."""
    facts = hardware(arguments.threads).model_dump(mode="json")
    installed = packages()
    return {
        "work": {
            name: getattr(arguments, name) for name in ("device", "student", "teacher", "rows", "steps", "threads")
        },
        "row_tokens": [row.input_ids.size for row in rows_of_a_step(arguments)],
        "vocabulary": sizes(arguments)[0].vocabulary,
        "activation_checkpointing": {"released": True, "kit": not arguments.keep_activations},
        "machine": {name: facts[name] for name in ("cpu", "cpu_count", "memory_gib", "gpus", "driver", "cuda")},
        "packages": {name: installed.get(name) for name in PACKAGES},
        "code": code_facts(PROJECT)[0],
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


def kit(arguments: argparse.Namespace, student: Any, teacher: Any, clock: Clock) -> list[float]:
    """The kit's own loop, with the settings of the experiment bespoke and all rows in each step."""
    loaded = load("bespoke")
    settings = train_settings(loaded.cells()[0], loaded.experiment)
    steps = WARM_UP_STEPS + arguments.steps
    optimizer = settings.optimizer.model_copy(update={"epochs": steps, "batch_rows": arguments.rows, "batch_tokens": 0})
    changes = {
        "optimizer": optimizer,
        "order": settings.order.model_copy(update={"multiple": 1}),  # each step is all rows
        "activation_checkpointing": not arguments.keep_activations,
        "parallel": "single",
        "processes": 1,
    }
    given = {**part(loaded.experiment.resources, Resources), "micro_batch_tokens": arguments.micro_batch_tokens}
    resources = Resources.model_validate({**given, "threads": arguments.threads, "checkpoint_every_s": 1e9})
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


def released(arguments: argparse.Namespace, student: Any, teacher: Any, clock: Clock) -> list[float]:
    return one_row_loop(arguments, student, teacher, clock, released_loss)


def liger(arguments: argparse.Namespace, student: Any, teacher: Any, clock: Clock) -> list[float]:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    divergence = LigerFusedLinearJSDLoss(0.5, 0.5, beta=0.0, chunk_size=256, compiled=arguments.device == "cuda")

    def loss(student: Any, teacher: Any, inputs: dict[str, Any], labels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            taught = teacher.base_model(**inputs).last_hidden_state[0, :-1]
        states = student.base_model(**inputs).last_hidden_state[0, :-1]
        weight, taught_weight = student.lm_head.weight.bfloat16(), teacher.lm_head.weight
        found: torch.Tensor = divergence(states.bfloat16(), weight, taught.bfloat16(), taught_weight, labels)
        return found

    return one_row_loop(arguments, student, teacher, clock, loss)


def released_loss(student: Any, teacher: Any, inputs: dict[str, Any], labels: torch.Tensor) -> torch.Tensor:
    """(CE + KD) / 2 as the published formulas say it, on whole logits."""
    with torch.no_grad():
        taught = teacher(**inputs).logits
    logits = student(**inputs).logits
    seen = labels != -100
    ce = functional.cross_entropy(logits[0, :-1].float(), labels, ignore_index=-100)
    likely = torch.log(torch.softmax(logits[0, :-1].float(), dim=-1))
    kd = -(torch.softmax(taught[0, :-1].float(), dim=-1) * likely).sum(dim=-1)
    return 0.5 * ce + 0.5 * kd[seen].mean()


def one_row_loop(
    arguments: argparse.Namespace, student: Any, teacher: Any, clock: Clock, loss_of: Callable[..., torch.Tensor]
) -> list[float]:
    """One row a forward pass, padded on the left, activation checkpointing, one update after all rows."""
    student.train().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    teacher.eval().requires_grad_(False)
    rows, device = rows_of_a_step(arguments), torch.device(arguments.device)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-8, weight_decay=0.05, foreach=False, fused=False)
    losses = []
    for _ in range(WARM_UP_STEPS + arguments.steps):
        total = 0.0
        for row in rows:
            padding = -row.input_ids.size % PADDING_MULTIPLE
            ids = torch.tensor([[0] * padding + row.input_ids.tolist()], device=device)
            labels = ids[0, 1:].clone()
            labels[:padding] = -100
            mask = (torch.arange(ids.shape[1], device=device) >= padding).long()[None]
            with torch.autocast(device.type, torch.bfloat16):
                inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
                loss = loss_of(student, teacher, inputs, labels) / len(rows)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.mark()
        losses.append(total)
    return losses


LOOPS: dict[str, Callable[..., list[float]]] = {"released": released, "kit": kit, "liger": liger}

if __name__ == "__main__":
    main()
