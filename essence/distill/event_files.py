"""TensorBoard's event files: the numbers of `metrics.jsonl` for people who watch; the record is that file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

PLOTTED = ("loss", "ce", "kd", "lr", "beta1", "gradient_norm", "peak_memory_gib")


class EventFiles:
    """Event files under a folder. Going on after a step takes back the events that a killed attempt wrote after it."""

    def __init__(self, folder: Path, after_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        writer: Any = SummaryWriter
        self._writer = writer(str(folder), purge_step=after_step + 1)

    def write(self, record: Mapping[str, object]) -> None:
        """Add the numbers of a record: `train/loss`, `validation/ce`, `train/tokens_per_s`."""
        group = "train" if record["kind"] == "step" else str(record["kind"])
        numbers = {name: float(str(record[name])) for name in PLOTTED if record.get(name) is not None}
        if record.get("seconds"):
            numbers["tokens_per_s"] = float(str(record["tokens"])) / float(str(record["seconds"]))
        for name, number in numbers.items():
            self._writer.add_scalar(f"{group}/{name}", number, record["step"])

    def close(self) -> None:
        self._writer.close()
