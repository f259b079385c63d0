"""The record of a proof, as its stage leaves it, without the stage."""

import json
from pathlib import Path

from essence.record.record_files import seal_of
from essence.record.run_directory import RunDirectory
from support.synthetic_run import manifest


def proof(runs: Path, name: str, finished_at: str, host: str, flop_s: float, devices: int = 0, **more: object) -> None:
    """The record of a proof; decoding was not measured. `more` replaces parts of its results."""
    coefficients = {"flop_s": flop_s, "layer_s": 0.0, "parameter_s": 0.0, "error": 0.01}
    results = {
        "checks": [{"name": "disk", "passed": True, "sentence": "fast"}], "device": "A device", "devices": devices,
        "student_layers": 2, "teacher_layers": 2, "products": [], "launch_s": 1e-6, "memory_bytes_per_s": 1e9,
        "host_bytes_per_s": None, "disk_write_bytes_per_s": 5e8, "disk_read_bytes_per_s": 1e9, "loss_s_per_token": 1e-6,
        "save_bytes_per_s": 1e9, "steps": [], "coefficients": coefficients, "link": None, **more,
    }  # fmt: skip
    record = manifest(name[-16:].rjust(64, "0"), "prove_training", "prove", {"taken": finished_at}, results, {}, {})
    assert isinstance(record["identity"], dict) and isinstance(record["hardware"], dict)
    record["identity"]["finished"], record["hardware"]["host"] = finished_at, host
    unsealed = {**record, "seal": ""}
    place = RunDirectory(runs).proofs.stage(name).manifest
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps({**unsealed, "seal": seal_of(unsealed)}), encoding="utf-8")
