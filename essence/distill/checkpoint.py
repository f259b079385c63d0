"""Atomic checkpoints: a folder `step-00000040` exists whole or not at all, and says itself when it was damaged.

```
<folder>/step-00000040/
    tensors-00000-of-00002.safetensors   what rank 0 of 2 wrote: whole tensors by name, each by one rank
    state.json                           step, best so far, counts: what the trainer puts in
    sha256.json                          hashes of the files above, written last
```

Written under a temporary name, flushed to disk, then renamed. The newest few are kept: where the newest is damaged (a
full disk, a torn file), the one before is used. Tensors are whole whatever the backend, so a checkpoint can be read by
another backend and another number of ranks; there is no pickle in it, so it can be read without trusting it.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from essence.distill.ranks import ALONE, Ranks
from essence.files import canonical_json, flush_to_disk, sha256_file

STATE, HASHES = "state.json", "sha256.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Validation:
    """One look at the validation rows."""

    step: int
    ce: float
    """Mean over all rows."""
    parts: list[float]
    """Mean over the rows of each rank that chooses a checkpoint."""


@dataclass
class Sampled:
    """Rollouts of the student's own words (`essence/distill/rollouts.py`)."""

    rollouts: int = 0
    """That were read in steps; so are the next three."""
    prompt_tokens: int = 0
    tokens: int = 0
    ended: int = 0
    """Those that end their turn themselves."""
    seconds: float = 0.0
    """Of drawing, over all attempts."""
    drawn_before_step: int = 0
    """Finished steps when the newest were drawn."""
    waiting: list[list[list[int]]] = field(default_factory=list)
    """Drawn already and not yet read: tokens of each rollout of each of the next steps."""


@dataclass
class State:
    """What a checkpoint remembers beside tensors."""

    step: int = 0
    best_step: int | None = None
    best_ce: float | None = None
    best_parts: list[float] | None = None
    """Losses of the parts of the validation rows at `best_step`, which later ones must be below."""
    lowest_step: int | None = None
    lowest_ce: float | None = None
    last_loss: float | None = None
    validations: list[Validation] = field(default_factory=list)
    tokens: int = 0
    positions: int = 0
    passes: int = 0
    seconds: float = 0.0
    energy_j: float | None = None
    sampled: Sampled | None = None
    """None where rows are read as they are."""


READER = TypeAdapter(State)


@dataclass(frozen=True)
class Checkpoint:
    """What `write` was given; tensors are read one by one as they are asked for."""

    path: Path
    state: State

    @property
    def step(self) -> int:
        return int(self.path.name.removeprefix("step-"))

    @cached_property
    def _files(self) -> Mapping[str, Any]:
        """Name of a tensor -> open file of the safetensors library, which has no types."""
        opened = [safe_open(path, framework="pt") for path in sorted(self.path.glob("tensors-*.safetensors"))]
        return {name: file for file in opened for name in file.keys()}  # type: ignore[no-untyped-call]  # noqa: SIM118

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def tensor(self, name: str) -> Tensor:
        """One tensor, on the CPU, in memory of its own; KeyError where there is none of that name.

        What safetensors returns is a view of the mapped file, which would stay mapped as long as a moment made from it
        lives: for the whole training, in which the file is removed. A network disk cannot remove its folder then.
        """
        found: Tensor = self._files[name].get_tensor(name)
        return found.clone()


def write(folder: Path, step: int, tensors: dict[str, Tensor], state: State, kept: int, ranks: Ranks = ALONE) -> Path:
    """Write the checkpoint of a step and remove all but the newest `kept`; returns its folder.

    Every rank calls this with its own tensors; the first one puts the rest beside them and gives the folder its name.
    """
    final = folder / f"step-{step:08d}"
    temporary = folder / f".{final.name}.tmp"
    if ranks.first:
        shutil.rmtree(temporary, ignore_errors=True)  # of a killed attempt
        temporary.mkdir(parents=True)
    ranks.wait()
    name = f"tensors-{ranks.rank:05d}-of-{ranks.processes:05d}.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, temporary / name)
    flush_to_disk(temporary / name)
    hashes = dict(ranks.all_of((name, sha256_file(temporary / name))))
    if ranks.first:
        _finish(temporary, final, state, hashes)
        for old in _newest_first(folder)[kept:]:
            shutil.rmtree(old)
    ranks.wait()
    return final


def _finish(temporary: Path, final: Path, state: State, hashes: dict[str, str]) -> None:
    (temporary / STATE).write_text(canonical_json(asdict(state)), encoding="utf-8")
    hashes = {**hashes, STATE: sha256_file(temporary / STATE)}
    (temporary / HASHES).write_text(canonical_json(hashes), encoding="utf-8")
    for path in (temporary / STATE, temporary / HASHES, temporary):
        flush_to_disk(path)
    if final.exists():
        shutil.rmtree(final)
    temporary.rename(final)
    flush_to_disk(final.parent)


def newest(folder: Path, ranks: Ranks = ALONE) -> Checkpoint | None:
    """The newest whole checkpoint; None where there is none. Damaged ones are passed over, with a line in the log."""
    chosen = _newest_whole(folder) if ranks.first else None
    path = ranks.all_of(chosen)[0]
    if path is None:
        return None
    return Checkpoint(path, _read(path / STATE))


def _read(file: Path) -> State:
    return READER.validate_json(file.read_text(encoding="utf-8"), strict=True)


def _newest_whole(folder: Path) -> Path | None:
    for path in _newest_first(folder):
        if is_whole(path):
            return path
        log.warning("%s: damaged, so the checkpoint before it is used", path)
    return None


def states(folder: Path) -> list[State]:
    """What the stored checkpoints were given as `state`, newest first; unreadable ones are passed over."""
    found = []
    for path in _newest_first(folder):
        try:
            found.append(_read(path / STATE))
        except (OSError, ValueError):
            continue
    return found


def is_whole(path: Path) -> bool:
    """True when a checkpoint's files are those that were written."""
    try:
        hashes = json.loads((path / HASHES).read_text(encoding="utf-8"))
        return STATE in hashes and all(sha256_file(path / name) == digest for name, digest in hashes.items())
    except (OSError, ValueError):
        return False


def random_states(rank: int) -> dict[str, Tensor]:
    """States of this process's random number generators, by name."""
    states = {f"random/{rank}/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states[f"random/{rank}/cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_states(found: Checkpoint, rank: int) -> None:
    """Put `random_states` back; a rank that was not there when they were written keeps its own."""
    if f"random/{rank}/cpu" in found:
        torch.set_rng_state(found.tensor(f"random/{rank}/cpu"))
    if torch.cuda.is_available() and f"random/{rank}/cuda" in found:
        torch.cuda.set_rng_state(found.tensor(f"random/{rank}/cuda"))


def save_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Write a model's parameters alone, atomically."""
    temporary = path.with_name(f".{path.name}.tmp")
    save_file({name: weight.contiguous() for name, weight in weights.items()}, temporary)
    flush_to_disk(temporary)
    temporary.replace(path)


def load_weights(model: nn.Module, weights: Checkpoint | Path) -> None:
    """Overwrite a model's trained parameters in place with those that were stored; KeyError where one is missing."""
    stored = load_file(weights) if isinstance(weights, Path) else {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                whole = weights.tensor(f"weight/{name}") if isinstance(weights, Checkpoint) else stored[name]
                parameter.copy_(whole)


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)
