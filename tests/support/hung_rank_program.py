"""What each of two ranks runs in tests/distill/test_waits.py: a training in which the second rank stops answering.

`python -m support.hung_rank_program --spec FOLDER/PARALLEL/WHERE`, started as a stage starts its ranks. The second rank
sleeps in its third step: in `forward`, while the first one waits for its gradients, or in `loop`, at the end of a step.
The process groups that there are, and how long each of their backends waits, are in `groups.json` first.
"""

import datetime
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from essence.distill import ranks as waits
from essence.distill import trainer
from essence.distill.ranks import Ranks
from essence.errors import ExitCode
from essence.progress import Progress, StopRequest
from essence.stages.launch import REPORTS
from essence.stages.rank import report_rank
from support.rank_main import run_as_rank
from support.small_training import SFT, TRAIN, VALIDATION, model, settings
from support.some_resources import some_resources

GROUPS, LONGEST_S, HANGS_IN = "groups.json", 3.0, 3


class Hangs:
    """Sleeps for good when it is called for the third time."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *_: Any) -> None:
        self.calls += 1
        if self.calls == HANGS_IN:
            time.sleep(3600)


class HungRequest(StopRequest):
    """Looked at after every step."""

    hangs = Hangs()

    def __bool__(self) -> bool:
        self.hangs()
        return False


def groups() -> list[dict[str, float]]:
    """Seconds that each process group waits, by backend."""
    known = [group for group in dist.distributed_c10d._world.pg_map if group._device_types]
    backends = [group._get_backend(torch.device("cpu")) for group in known]
    return [{backend.name(): backend.options._timeout.total_seconds()} for backend in backends]


def main(folder: Path) -> int:
    torch.set_num_threads(1)
    waits.WAITS["gloo"] = datetime.timedelta(seconds=LONGEST_S)
    ranks, cpu, student = Ranks.of(os.environ), torch.device("cpu"), model(0)
    ranks.join(cpu)
    hangs = not ranks.first
    if hangs and folder.name == "forward":
        student.model.layers[0].register_forward_pre_hook(Hangs())
    stop = HungRequest() if hangs and folder.name == "loop" else StopRequest()
    chosen = settings(processes=2, parallel=folder.parent.name, **SFT)
    if ranks.first:
        begin = trainer._Run.go

        def noted(run: Any, *args: Any) -> None:
            (folder / GROUPS).write_text(json.dumps(groups()))
            begin(run, *args)

        trainer._Run.go = noted  # type: ignore[method-assign]
    given = (student, None, TRAIN, VALIDATION, chosen, some_resources(micro_batch_rows=1), folder / "training")
    try:
        trainer.train(*given, Progress(folder / f"progress-{ranks.rank}.json"), stop, ranks=ranks, device=cpu)
    except Exception as error:  # noqa: BLE001 - as a rank does
        report_rank(error, ranks, folder / REPORTS)
        return ExitCode.CURABLE
    return ExitCode.DONE


if __name__ == "__main__":
    run_as_rank(main)
