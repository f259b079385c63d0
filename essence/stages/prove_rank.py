"""One rank of a proof: `RANK=1 WORLD_SIZE=2 ... python -m essence.stages.prove_rank --spec .../spec.json`.

Times what ranks bring together, takes a few steps of small models in the backend of the settings, then times steps of
real widths in it, and a checkpoint. The first rank leaves what was found in `scratch/ranks/outcome.json`. Started by
`essence/stages/launch.py`.
"""

import argparse
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from essence.signals import leave_on_signals

if __name__ == "__main__":
    leave_on_signals()

import torch
import torch.distributed as dist

from essence.data.truncation import Example
from essence.distill.devices import COMPUTE_DTYPES, prepare_device
from essence.distill.preflight import DeviceRoom
from essence.distill.proof_checks import exact_float32, explained_measuring
from essence.distill.proof_machine import seconds_of
from essence.distill.proof_steps import Steps, activations_of, alone, as_pair, pair_that_fits, random_rows, small
from essence.distill.proof_trainings import Stepped
from essence.distill.ranks import ALONE, Ranks
from essence.distill.trainer import DivergedError
from essence.errors import disk_error
from essence.files import write_json
from essence.progress import StopRequest, die_with_launcher
from essence.record.live_records import read_whole_spec
from essence.record.proof_records import LinkPoint
from essence.record.record_files import Number, Written
from essence.record.run_directory import StageFolder
from essence.settings import Resources, Spec, TrainSettings
from essence.settings.proving import ProveTrainingSettings
from essence.sizes.speeds import crossing_dtype
from essence.stages.launch import OUTCOME, REPORTS
from essence.stages.prove_steps import MeasuredStep, checkpoint_bytes_per_s, loads_of, measured_steps
from essence.stages.rank import report_rank

PROGRAM = "essence.stages.prove_rank"
STEPS, ROWS_OF_A_RANK = 4, 2
MIB = 1 << 20
DIVERGED_CURE = "read what the checks of one process say; if all pass, set another parallel in [training]"


class RanksOutcome(Written):
    """What the ranks found together."""

    link: LinkPoint
    losses: list[Number]
    norms: list[Number]
    """Of the gradients."""
    steps: list[MeasuredStep]
    checkpoint_bytes_per_s: Number | None


def main() -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {PROGRAM}", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--spec", required=True, type=Path, help="the stage's spec.json")
    spec_file = parser.parse_args().spec.resolve()
    die_with_launcher(signal.SIGKILL)
    ranks, scratch = Ranks.of(os.environ), StageFolder(spec_file.parent).scratch
    try:
        found = _found(read_whole_spec(spec_file), ranks, scratch)
        if ranks.first:
            write_json(scratch / REPORTS / OUTCOME, found.model_dump(mode="json"))
    except Exception as error:  # noqa: BLE001 - whatever it is, the stage's process is to know
        return report_rank(disk_error(error, scratch) or error, ranks, scratch / REPORTS)
    ranks.leave()
    return 0


@explained_measuring()
def _found(spec: Spec, ranks: Ranks, scratch: Path) -> RanksOutcome:
    asked = ProveTrainingSettings.model_validate(spec.settings)
    device = prepare_device(spec.resources, ranks.local_rank)
    ranks.join(device)
    link = _link(asked, ranks, device)
    stepped = steps_of(asked, spec.resources, device, ranks, ranks.processes)
    if not all(map(math.isfinite, [*stepped.losses, *stepped.norms])):
        raise DivergedError(f"losses {stepped.losses} and gradient norms {stepped.norms} are no numbers", DIVERGED_CURE)
    measured, checkpoint = _steps(asked, spec.resources, device, ranks, scratch)
    return RanksOutcome(link=link, **stepped._asdict(), steps=measured, checkpoint_bytes_per_s=checkpoint)


def _steps(
    asked: ProveTrainingSettings, resources: Resources, device: torch.device, ranks: Ranks, scratch: Path
) -> tuple[list[MeasuredStep], float | None]:
    """Steps of the cut pair in the backend of the settings, and bytes a second of a checkpoint of it."""
    pair, settings = pair_that_fits(asked, resources, device), together(asked, ranks.processes)
    usable = DeviceRoom.of(device, ranks.processes).usable
    chosen = activations_of(pair, settings, resources, max(asked.lengths), usable)
    steps = Steps(pair, settings, chosen.resources(resources), device, ranks)
    loads = list(loads_of(asked.lengths, pair.student.vocabulary, chosen.recomputed))
    measured = measured_steps(steps, resources, loads, asked.steps, StopRequest())
    return measured, checkpoint_bytes_per_s(steps, resources, scratch / "proof-checkpoint")


def together(asked: ProveTrainingSettings, processes: int) -> TrainSettings:
    """A training of so many processes of one machine, in the backend of the settings."""
    names = ("parallel", "teacher_placement", "optimizer_placement")
    return alone(asked, **{name: getattr(asked, name) for name in names}, processes=processes)


@exact_float32()
def steps_of(
    asked: ProveTrainingSettings, resources: Resources, device: torch.device, ranks: Ranks, shares: int
) -> Stepped:
    """A few steps whose rows are those of so many ranks; alone, this process reads them all."""
    little = small(asked)
    settings = alone(little) if ranks is ALONE else together(little, shares)
    steps = Steps(as_pair(little), settings, resources, device, ranks)
    vocabulary = little.student_sizes.vocabulary
    rows = random_rows([16 + 3 * (place % 9) for place in range(ROWS_OF_A_RANK * shares)], vocabulary)
    own = rows if ranks is ALONE else rows[ranks.rank :: shares]
    parts: list[list[Example]] = [[row] for row in own]
    losses, norms = zip(*(steps.step(parts, rows) for _ in range(STEPS)), strict=True)
    return Stepped(list(losses), list(norms))


def _link(asked: ProveTrainingSettings, ranks: Ranks, device: torch.device) -> LinkPoint:
    """Bytes a second of what a training brings together, in the dtype that its gradients cross in."""
    dtype = COMPUTE_DTYPES[crossing_dtype(asked.compute_dtype, asked.reduce_dtype, asked.lora)]
    elements = asked.link_mib * MIB // dtype.itemsize // ranks.processes * ranks.processes
    sent = torch.ones(elements, dtype=dtype, device=device)
    share = sent[: elements // ranks.processes].clone()
    size = sent.numel() * dtype.itemsize

    def timed(work: Callable[[], object]) -> float:
        ranks.wait()
        slowest: float = max(ranks.all_of(seconds_of(work, device)))
        return size / slowest

    return LinkPoint(
        processes=ranks.processes,
        backend="nccl" if device.type == "cuda" else "gloo",
        bytes=size,
        all_reduce_bytes_per_s=timed(lambda: dist.all_reduce(sent, dist.ReduceOp.MAX)),
        all_gather_bytes_per_s=timed(lambda: dist.all_gather_into_tensor(sent, share)),
    )


if __name__ == "__main__":
    # Not the end of the interpreter: a process group whose other end has died may wait in its threads.
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
