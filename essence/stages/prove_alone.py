"""One process of a proof that trains alone: `python -m essence.stages.prove_alone --spec .../spec.json`.

Times steps at real widths with activations kept and recomputed, a validation, and a checkpoint where no ranks write
one.
"""

import sys

from essence.distill.devices import prepare_device
from essence.distill.preflight import DeviceRoom
from essence.distill.proof_checks import explained_measuring, layers_finding
from essence.distill.proof_steps import Steps, activations_of, alone, pair_that_fits
from essence.distill.ranks import ALONE
from essence.progress import StopRequest
from essence.record.proof_records import CheckRecord, ValidationPoint
from essence.record.record_files import Number, Written
from essence.record.run_directory import StageFolder
from essence.settings import Spec
from essence.settings.proving import ProveTrainingSettings
from essence.stages.apart import be_part
from essence.stages.prove_steps import (
    MeasuredStep,
    checkpoint_bytes_per_s,
    fit_of,
    loads_of,
    measured_steps,
    other_form,
    ranks_here,
    validation_point,
)

PROGRAM = "essence.stages.prove_alone"


class AloneOutcome(Written):
    """What one process found of a training."""

    checks: list[CheckRecord]
    recomputed: bool
    """How activations were chosen, by memory."""
    steps: list[MeasuredStep]
    validation: ValidationPoint
    checkpoint_bytes_per_s: Number | None


@explained_measuring()
def measure(spec: Spec, folder: StageFolder) -> AloneOutcome:
    """With the pair cut to what this device holds."""
    asked, resources = ProveTrainingSettings.model_validate(spec.settings), spec.resources
    device = prepare_device(resources, 0)
    pair = pair_that_fits(asked, resources, device)
    longest, room = max(asked.lengths), DeviceRoom.of(device, 1)
    chosen = activations_of(pair, alone(asked), resources, longest, room.usable)
    steps = Steps(pair, alone(asked), chosen.resources(resources), device)
    loads = list(loads_of(asked.lengths, pair.student.vocabulary, chosen.recomputed))
    measured = measured_steps(steps, resources, loads, asked.steps, StopRequest())
    written = None
    if ranks_here(asked, resources) == 1:
        written = checkpoint_bytes_per_s(steps, resources, folder.scratch / "proof-checkpoint")
    measured += other_form(steps, resources, asked.lengths, not chosen.recomputed, asked.steps, StopRequest())
    found = [layers_finding(steps.layers.at_end(ALONE))] if asked.compile_layers else []
    return AloneOutcome(
        checks=[CheckRecord(**one._asdict()) for one in found],
        recomputed=chosen.recomputed,
        steps=measured,
        validation=validation_point(steps, longest, fit_of(measured)),
        checkpoint_bytes_per_s=written,
    )


if __name__ == "__main__":
    sys.exit(be_part(PROGRAM, (__doc__ or "").split("\n")[0], measure))
