"""What each of two ranks runs in tests/distill/test_late_graphs.py: a training whose compiler fails on the first rank.

`python -m support.late_rank_program --spec FOLDER`, started as a stage starts its ranks: after three steps the first
rank forgets what it has compiled and cannot compile it again. Each step leaves a checkpoint, so another start of the
same program goes on behind them, and there nothing fails.
"""

import json
import os
from pathlib import Path

import torch

from essence.distill import compiled_layers
from essence.distill.ranks import Ranks
from essence.distill.trainer import train
from essence.errors import ExitCode, KitError
from essence.progress import StopRequest
from essence.stages.launch import REPORTS
from essence.stages.rank import report_rank
from support.planted_compiler import Planted
from support.rank_main import run_as_rank
from support.small_training import AS_RELEASED, SFT, TRAIN, VALIDATION, ActAfter, model, settings
from support.some_resources import some_resources

WORK, LAYERS = "training", "layers.json"
STEPS_BEFORE = 3


def main(folder: Path) -> int:
    torch.set_num_threads(1)
    compiler, cpu = Planted("forward"), torch.device("cpu")
    compiled_layers.COMPILER = compiler  # type: ignore[assignment]

    def break_compiler() -> None:
        torch._dynamo.reset()
        compiler.broken = True

    ranks = Ranks.of(os.environ)
    ranks.join(cpu)
    chosen = settings(processes=2, parallel="zero2", compile_layers=True, **AS_RELEASED, **SFT)
    resources = some_resources(micro_batch_rows=1, checkpoint_every_s=0.0)
    progress = ActAfter(folder / f"progress-{ranks.rank}.json", STEPS_BEFORE, break_compiler)
    given = (model(0), None, TRAIN, VALIDATION, chosen, resources, folder / WORK, progress, StopRequest())
    try:
        result = train(*given, ranks=ranks, device=cpu)
    except KitError as error:
        report_rank(error, ranks, folder / REPORTS)
        return ExitCode.CURABLE
    if ranks.first:
        (folder / LAYERS).write_text(json.dumps(result.layers.as_json()))
    return ExitCode.DONE


if __name__ == "__main__":
    run_as_rank(main)
