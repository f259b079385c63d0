"""Atomic checkpoints: a folder `step-00000040` exists whole or not at all, and says itself when it was damaged.

```
<folder>/step-00000040/
    tensors.safetensors   weights, AdamW moments, random number states
    state.json            step, best so far, counts: what the trainer puts in
    sha256.json           hash of the two files above
```

Written under a temporary name, flushed to disk, then renamed. The newest two are kept: where the newest is damaged (a
full disk, a torn file), the one before is used. No pickle, so a checkpoint can be read without trusting it.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from essence.record.canonical import canonical_json, sha256_file

KEPT = 2
TENSORS, STATE, HASHES = "tensors.safetensors", "state.json", "sha256.json"


@dataclass(frozen=True)
class Checkpoint:
    """What `write` was given."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def write(folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> Path:
    """Write the checkpoint of a step and remove all but the newest two; returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:08d}"
    temporary = folder / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed attempt
    temporary.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary / TENSORS)
    (temporary / STATE).write_text(canonical_json(state), encoding="utf-8")
    hashes = {name: sha256_file(temporary / name) for name in (TENSORS, STATE)}
    (temporary / HASHES).write_text(canonical_json(hashes), encoding="utf-8")
    for path in (*temporary.iterdir(), temporary):
        flush_to_disk(path)
    if final.exists():
        shutil.rmtree(final)
    temporary.rename(final)
    flush_to_disk(folder)
    for old in _newest_first(folder)[KEPT:]:
        shutil.rmtree(old)
    return final


def newest(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint, its tensors on the CPU; None where there is none. Damaged ones are passed over."""
    for path in _newest_first(folder):
        if is_whole(path):
            state = json.loads((path / STATE).read_text(encoding="utf-8"))
            return Checkpoint(int(path.name.removeprefix("step-")), load_file(path / TENSORS), state)
    return None


def states(folder: Path) -> list[dict[str, Any]]:
    """What the stored checkpoints were given as `state`, newest first; damaged ones are passed over."""
    return [json.loads((path / STATE).read_text(encoding="utf-8")) for path in _newest_first(folder) if is_whole(path)]


def is_whole(path: Path) -> bool:
    """Whether a checkpoint's files are those that were written."""
    try:
        hashes = json.loads((path / HASHES).read_text(encoding="utf-8"))
        return set(hashes) == {TENSORS, STATE} and all(sha256_file(path / n) == h for n, h in hashes.items())
    except (OSError, ValueError):
        return False


def flush_to_disk(path: Path) -> None:
    """fsync a file or a folder, so that a power failure after a rename cannot leave an empty file under its name."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def training_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights, AdamW moments and random number states, by name; tied weights once."""
    tensors = {"random/cpu": torch.get_rng_state()}
    for device in range(torch.cuda.device_count()):
        tensors[f"random/cuda{device}"] = torch.cuda.get_rng_state(device)
    for name, parameter in model.named_parameters():
        tensors[f"weight/{name}"] = parameter.detach()
        for moment in ("exp_avg", "exp_avg_sq"):
            if parameter in optimizer.state:
                tensors[f"{moment}/{name}"] = optimizer.state[parameter][moment]
    return tensors


def restore_training(model: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    """Put the tensors of `training_tensors` back; `optimizer` must hold `model.parameters()` as its only group."""
    tensors = checkpoint.tensors
    load_weights(model, {name.removeprefix("weight/"): t for name, t in tensors.items() if name.startswith("weight/")})
    moments = {
        index: {
            "step": torch.tensor(float(checkpoint.step)),
            "exp_avg": tensors[f"exp_avg/{name}"],
            "exp_avg_sq": tensors[f"exp_avg_sq/{name}"],
        }
        for index, (name, _) in enumerate(model.named_parameters())
        if f"exp_avg/{name}" in tensors
    }
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(tensors["random/cpu"])
    for device in range(torch.cuda.device_count()):
        if f"random/cuda{device}" in tensors:
            torch.cuda.set_rng_state(tensors[f"random/cuda{device}"], device)


def save_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Write a model's parameters alone, atomically."""
    temporary = path.with_name(f".{path.name}.tmp")
    save_file({name: weight.contiguous() for name, weight in weights.items()}, temporary)
    flush_to_disk(temporary)
    temporary.replace(path)


def load_weights(model: nn.Module, weights: dict[str, Tensor] | Path) -> None:
    """Overwrite a model's parameters in place with those of `save_weights`; KeyError where one is missing."""
    found = load_file(weights) if isinstance(weights, Path) else weights
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(found[name])


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)
