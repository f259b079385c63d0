"""The key of a stage: one hash of all that determines its result."""

from collections.abc import Mapping

from essence.files import canonical_json, sha256_text
from essence.record.content import CONTENT

AS_BEFORE = (("rollouts", None), ("optimizer_placement", "device"))
"""Settings that earlier versions did not have, with what these did."""
NOW_RESOURCES = ("activation_checkpointing",)
"""Settings of earlier versions that are in `Resources` now."""


def stage_key(
    stage: str, settings: Mapping[str, object], inputs: dict[str, str], environment: dict[str, str], source: str
) -> str:
    """settings: as in the record; inputs: name -> key of the stage that is read; source: hash of the modules."""
    determines = {
        "stage": stage,
        "settings": that_count(settings),
        "inputs": inputs,
        "environment": environment,
        "source": source,
    }
    return sha256_text(canonical_json(determines))


def that_count(settings: Mapping[str, object]) -> Mapping[str, object]:
    """Of a local source its content counts, neither where it lies nor what it is called.

    The seed of a draw counts where something is drawn, rollouts where there are any, and the place of masters and
    moments where it is not their device: earlier versions had no such fields.
    """
    settings = {name: value for name, value in settings.items() if (name, value) not in AS_BEFORE}
    source, view = settings.get("source"), settings.get("view")
    if isinstance(view, dict) and view.get("draw_seed") == 0:
        return {**settings, "view": {name: value for name, value in view.items() if name != "draw_seed"}}
    if not (isinstance(source, dict) and str(source.get("path_state")).startswith(CONTENT)):
        return settings
    return {**settings, "source": {**source, "path": None, "name": ""}}


def that_differ(settings: Mapping[str, object]) -> Mapping[str, object]:
    """Of `that_count`, those that can make two stages differ: earlier versions counted some that change no result."""
    return {name: value for name, value in that_count(settings).items() if name not in NOW_RESOURCES}
