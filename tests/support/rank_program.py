"""What each of two ranks runs in tests/distill/test_parallel.py: every way of training together, one after the other.

`python rank_program.py FOLDER`: each way is trained undisturbed, and again stopped by one rank after a few steps and
resumed by new engines. `FOLDER/<way>/` then holds what the first rank would hand on.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from essence.distill import compiled_layers
from essence.distill.adapters import add_adapters
from essence.distill.batches import Batch, head_weight, states_of_pads, states_of_rows
from essence.distill.ranks import Ranks
from essence.distill.storage import TrainResult
from essence.distill.stored_states import HEAD, MODEL, ROWS, RowWriter, StoredRow, write_pads
from essence.distill.teachers import CachedTeacher, TeacherStates, place_teacher
from essence.distill.trainer import DivergedError, train
from essence.progress import Progress, Stopped, StopRequest
from support.small_training import AS_RELEASED, PAD, TRAIN, VALIDATION, ActAfter, model, settings
from support.some_resources import some_objective, some_resources

LORA = {"rank": 4, "alpha": 8.0, "targets": ["q_proj", "v_proj", "down_proj"]}
BFLOAT16 = {"compute_dtype": "bfloat16", "reduce_dtype": "bfloat16"}
MAIN_MEMORY = {"optimizer_placement": "main_memory"}
WAYS: dict[str, dict[str, Any]] = {
    "ddp": {"parallel": "ddp"},
    "zero2": {"parallel": "zero2"},
    "zero3": {"parallel": "zero3"},
    "zero3-sharded": {"parallel": "zero3", "teacher_placement": "sharded"},
    "ddp-offloaded-packed": {"parallel": "ddp", "teacher_placement": "offloaded", "packing": True},
    "ddp-cached": {"parallel": "ddp", "teacher": "cached", "packing": True},
    "ddp-lora": {"parallel": "ddp", "lora": LORA},
    "zero2-lora": {"parallel": "zero2", "lora": LORA},
    "zero3-lora": {"parallel": "zero3", "lora": LORA},
    "ddp-bfloat16": {"parallel": "ddp", **BFLOAT16},
    "zero2-bfloat16": {"parallel": "zero2", **BFLOAT16},
    "zero3-bfloat16": {"parallel": "zero3", "teacher_placement": "sharded", **BFLOAT16},
    "zero2-bfloat16-exact": {"parallel": "zero2", **BFLOAT16, "reduce_dtype": "float32"},
    "ddp-bfloat16-main-memory": {"parallel": "ddp", **BFLOAT16, **MAIN_MEMORY},
    "zero2-bfloat16-main-memory": {"parallel": "zero2", "teacher_placement": "sharded", **BFLOAT16, **MAIN_MEMORY},
    "ddp-compiled": {"parallel": "ddp", "packing": True, "compile_layers": True},
    "zero2-compiled-bfloat16": {"parallel": "zero2", "compile_layers": True, **BFLOAT16},
    "zero3-compiled": {"parallel": "zero3", "teacher_placement": "sharded", "compile_layers": True},
}
RESUMED = (
    *("ddp", "zero2", "zero3-sharded", "ddp-cached", "zero2-lora"),
    *("ddp-bfloat16", "zero2-bfloat16", "zero3-bfloat16", "ddp-compiled"),
    "zero2-bfloat16-main-memory",
)
CACHE, LAYERS = "cache", "layers.json"
CPU = torch.device("cpu")


def train_on_this_rank(work: Path, ranks: Ranks, stop: StopRequest, progress: Progress, **changes: Any) -> TrainResult:
    chosen = settings(processes=ranks.processes, **AS_RELEASED, **changes)
    dtype = torch.bfloat16 if chosen.compute_dtype == "bfloat16" else torch.float32
    teacher: TeacherStates
    if chosen.teacher == "cached":
        teacher = CachedTeacher(work.parent / CACHE, CPU)
    else:
        teacher = place_teacher(model(1, hidden=24).to(dtype), chosen.teacher_placement, dtype, ranks, CPU)
    # Where it is bfloat16 activations are recomputed, too.
    how = "on" if chosen.compute_dtype == "bfloat16" else "off"
    resources = some_resources(micro_batch_rows=1, checkpoint_every_s=600.0, activation_checkpointing=how)
    student = model(0)
    if chosen.lora.rank:
        add_adapters(student, chosen.lora, chosen.seed)
    return train(student, teacher, TRAIN, VALIDATION, chosen, resources, work, progress, stop, ranks=ranks, device=CPU)


class Stopping(StopRequest):
    """A stop that one rank alone is asked for."""

    def ask(self) -> None:
        self.signal_name = "SIGTERM"


def train_twice(work: Path, ranks: Ranks, **changes: Any) -> None:
    """Stopped after three steps, then resumed."""
    stop = Stopping()
    asked = ActAfter(work.parent / "progress.json", 3, stop.ask)
    try:
        train_on_this_rank(work, ranks, stop, asked, **changes)
    except Stopped:
        train_on_this_rank(work, ranks, StopRequest(), Progress(work.parent / "progress.json"), **changes)
    else:
        raise AssertionError(f"rank {ranks.rank} was not stopped")


def diverge(work: Path, ranks: Ranks) -> None:
    """Every rank gets the rows of the whole step, not only its own."""
    student = model(0)
    with torch.no_grad():
        student.model.norm.weight.fill_(float("inf"))
    chosen = settings(processes=2, parallel="ddp", objective=some_objective(kd_weight=0.0))
    quiet = Progress(work.parent / "progress.json")
    try:
        train(student, None, TRAIN, [], chosen, some_resources(), work, quiet, StopRequest(), ranks=ranks, device=CPU)
    except DivergedError as error:
        (work / f"diverged-{ranks.rank}.txt").write_text(str(error))


def store_teacher(output: Path) -> None:
    """As the teacher stage does, in files of three rows."""
    whole = model(1, hidden=24).eval().requires_grad_(False)
    writer = RowWriter(output / ROWS, "float32", head_weight(whole).shape[0])
    for first in range(0, len(TRAIN), 3):
        rows = TRAIN[first : first + 3]
        states = states_of_rows(whole, Batch.of(rows, 16, CPU))
        pairs = zip(rows, states, strict=True)
        writer.add([StoredRow(row.row, torch.from_numpy(row.input_ids), of, torch.zeros(len(of))) for row, of in pairs])
    (output / MODEL).mkdir()
    save_file({"head": head_weight(whole).detach().clone()}, output / MODEL / HEAD)
    write_pads(output / MODEL, [PAD], states_of_pads(whole, [PAD], CPU))


def main(folder: Path, ways: list[str]) -> None:
    torch.set_num_threads(1)
    # All of the compiler but the code that it writes, which tests/distill/test_compiled_layers.py has.
    compiled_layers.COMPILER = "aot_eager_decomp_partition"
    ranks = Ranks.of(os.environ)
    ranks.join(CPU)
    if ranks.first:
        store_teacher(folder / CACHE)
    ranks.wait()
    for way in ways or WAYS:
        quiet = Progress(folder / "progress.json")
        result = train_on_this_rank(folder / way, ranks, StopRequest(), quiet, **WAYS[way])
        if ranks.first:
            (folder / way / LAYERS).write_text(json.dumps(result.layers.as_json()))
        if way in RESUMED:
            train_twice(folder / f"{way}-resumed", ranks, **WAYS[way])
    diverge(folder / "diverged", ranks)
    ranks.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
