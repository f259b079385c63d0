"""A host that runs made-up stages on stand-in GPUs: `python -m support.gpu_host RUNS GPUS PARALLEL`.

Each stage is a process of the local engine that writes down which GPUs it was given, and from when to when it had them.
Killed, it goes on: no stage of these looks for its host. Where two stages are to be seen at once, a stage stays until
they were: how long a process takes to start says nothing about who may run.
"""

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from essence.engines.capacity import Capacity
from essence.engines.engine import Launch
from essence.engines.gpu_pool import GpuPool
from essence.engines.local import LocalEngine
from essence.engines.runner import Runner, Summary
from essence.plan.stage_plan import PlannedStage
from essence.record.run_directory import RunDirectory, StageFolder
from essence.settings import Record, StageName
from support.some_resources import some_resources

WORK = """
import os, sys, time
from pathlib import Path
folder, log, seconds, meets_s = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "")
def say(word):
    line = f"{word} {folder.name} {os.getpid()} {time.monotonic()} {gpus}"
    with log.open("a") as file:
        print(line, file=file)
def met():
    # Whether a stage with GPUs was once in work beside one of this kind, with GPUs or without.
    with_gpus, without = set(), set()
    for line in log.read_text().splitlines():
        word, name, process, at, *had = line.split()
        kind = with_gpus if had else without
        kind.add(process) if word == "begin" else kind.discard(process)
        if len(with_gpus) > 1 if gpus else (with_gpus and without):
            return True
    return False
say("begin")
time.sleep(seconds)
until = time.monotonic() + meets_s
while time.monotonic() < until and not met():
    time.sleep(0.05)
say("end")
(folder / "manifest.json").write_text("{}")
"""
GPU_STAGE_S, OTHER_STAGE_S = 0.4, 0.1
MEETS_S = 60.0
"""So long a stage waits for one beside it, where two are to be seen at once."""


class Nothing(Record):
    """The settings of a stage that reads none."""


class StandInEngine(LocalEngine):
    """The local engine with other work."""

    def __init__(self, log: Path, meets: bool) -> None:
        super().__init__("cpu")
        self.log, self.meets_s = log, MEETS_S if meets else 0.0

    def command(self, surroundings: Launch) -> list[str]:
        seconds = GPU_STAGE_S if surroundings.resources.gpus else OTHER_STAGE_S
        arguments = [surroundings.folder.path, self.log, seconds, self.meets_s]
        return [sys.executable, "-S", "-c", WORK, *map(str, arguments)]


@dataclass
class Silent:
    """Shows nothing."""

    def event(self, kind: str, stage: PlannedStage, seconds: float) -> None: ...

    def waits(self, stage: PlannedStage, holder: str) -> None: ...

    def waits_for_gpus(self, stage: PlannedStage) -> None: ...

    def tick(self, running: dict[str, StageFolder]) -> None: ...


def stage(kind: StageName, number: int, gpus: int, inputs: dict[str, str]) -> PlannedStage:
    name = f"{kind}-{number:016x}"
    return PlannedStage(
        id=name,
        stage=kind,
        key=f"{number:016x}",
        title=name,
        settings=Nothing(),
        inputs=inputs,
        resources=some_resources(gpus=gpus),
        runs_in="train",
        environment={},
        source_sha256="",
    )


def matrix(cells: int, gpus: int) -> list[PlannedStage]:
    """Trainings, and of each a generation on GPUs and a grading without."""
    stages = []
    for number in range(cells):
        trained = stage("train", number, gpus, {})
        made = stage("generate", number, gpus, {"model": trained.id})
        stages += [trained, made, stage("grade", number, 0, {"samples": made.id})]
    return stages


def run(
    runs: Path,
    stages: list[PlannedStage],
    gpus: int,
    memory_gib: float = math.inf,
    expected_gib: Mapping[str, float] | None = None,
    meets: bool = False,
    cores: float = math.inf,
) -> Summary:
    """Run the stages; with `meets`, each stays until one with GPUs was once seen beside one of its kind."""
    pool = GpuPool({str(number): f"stand-in {runs} {number}" for number in range(gpus)})
    capacity = Capacity(1, pool, memory_gib, expected_gib or {}, cores)
    engine = StandInEngine(runs / "log", meets)
    return Runner(engine, RunDirectory(runs), stages, capacity, {"version": "0"}, Silent()).run()


if __name__ == "__main__":
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    place = Path(sys.argv[1])
    summary = run(place, matrix(6, 4), 8)
    sys.exit(0 if summary.complete else 1)
