"""Where the numbers of a training go beside `metrics.jsonl`: TensorBoard, and on request Weights & Biases and MLflow.

`metrics.jsonl` is the record; the rest is for people who watch. A package that is asked for and not installed is one
line in the log. Training has no network: Weights & Biases writes offline unless `WANDB_MODE` says otherwise (`wandb
sync` sends it later), and `MLFLOW_TRACKING_URI` should name a file, as in `sqlite:////data/mlflow.db`.
"""

import importlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

LOG = logging.getLogger(__name__)
WANDB_VARIABLE, MLFLOW_VARIABLE = "WANDB_PROJECT", "MLFLOW_TRACKING_URI"


class Tracker(Protocol):
    """Takes the numbers of one step or validation."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """`values` by name, as in `train/loss`."""

    def close(self) -> None:
        """Write what is still held back."""


class TensorBoard:
    """Event files under a folder. Going on after a step takes back the events that a killed attempt wrote after it."""

    def __init__(self, folder: Path, after_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=after_step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of the project that `WANDB_PROJECT` names, under the training's own id, in which every attempt goes on."""

    def __init__(self, wandb: Any, folder: Path, project: str, run_id: str, mode: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(project=project, id=run_id, dir=str(folder), mode=mode, resume="allow")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """One run; an attempt that goes on finds it again by the training's id."""

    def __init__(self, mlflow: Any, run_id: str) -> None:
        found = mlflow.search_runs(
            search_all_experiments=True, filter_string=f"tags.essence_run = '{run_id}'", output_format="list"
        )
        earlier = found[0].info.run_id if found else None
        self._mlflow = mlflow
        mlflow.start_run(run_id=earlier, run_name=None if earlier else run_id, tags={"essence_run": run_id})

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        self._mlflow.end_run()


def open_trackers(folder: Path, after_step: int, run_id: str, variables: Mapping[str, str]) -> list[Tracker]:
    """The trackers that this environment asks for and has.

    Args:
        folder: `tensorboard/` and `wandb/` are made in it.
        after_step: last step of the checkpoint that training goes on from, 0 at the start.
        run_id: name of the training that stays the same over its attempts.
        variables: the environment: `WANDB_PROJECT`, `WANDB_MODE` and `MLFLOW_TRACKING_URI` are looked at.
    """
    trackers: list[Tracker] = [TensorBoard(folder / "tensorboard", after_step)]
    if project := variables.get(WANDB_VARIABLE):
        mode = variables.get("WANDB_MODE", "offline")
        wandb = _installed("wandb", WANDB_VARIABLE)
        trackers += [WeightsAndBiases(wandb, folder / "wandb", project, run_id, mode)] if wandb else []
    if variables.get(MLFLOW_VARIABLE):
        mlflow = _installed("mlflow", MLFLOW_VARIABLE)
        trackers += [MLflow(mlflow, run_id)] if mlflow else []
    return trackers


def _installed(package: str, variable: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        LOG.warning("%s is set, but the package %s is not installed here: not used", variable, package)
        return None
