"""A decoder with little room in a proof: `python -m essence.stages.prove_crowded --spec .../spec.json`.

With the room named it starts otherwise than an evaluation's, which is why its start is not timed.
"""

import sys
from contextlib import closing

from essence.evaluation.decoders import open_decoder
from essence.files import read_json
from essence.record.proof_records import CheckRecord
from essence.record.record_files import Written
from essence.record.run_directory import StageFolder
from essence.settings import Spec
from essence.settings.proving import ProveDecodingSettings
from essence.sizes.architecture import Architecture
from essence.stages.apart import be_part
from essence.stages.prove_preemption import little_room, preemption_checks
from essence.stages.prove_start import decode_settings, model_of, width_of_copy

PROGRAM = "essence.stages.prove_crowded"


class CrowdedOutcome(Written):
    """What was found where sequences give way to others."""

    checks: list[CheckRecord]


def measure(spec: Spec, folder: StageFolder) -> CrowdedOutcome:
    """With the model of the input `training`."""
    asked, model = ProveDecodingSettings.model_validate(spec.settings), model_of(spec, folder)
    sizes = Architecture.from_config(read_json(model / "config.json"))
    room = little_room(asked, sizes, width_of_copy(asked, spec.resources))
    with closing(open_decoder(decode_settings(asked, model, spec.resources, room))) as decoder:
        return CrowdedOutcome(checks=preemption_checks(decoder, asked, sizes))


if __name__ == "__main__":
    sys.exit(be_part(PROGRAM, (__doc__ or "").split("\n")[0], measure))
