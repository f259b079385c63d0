"""What a finished micro matrix holds: its models, and what must not depend on the engine."""

import json
import os
from pathlib import Path
from typing import Any


def pins(micro: Path) -> Path:
    """Names the models that the local run has made, as folders."""
    file = micro.parent / f"models-{os.getpid()}.toml"
    stages = json.loads((micro / "micro" / "plan.json").read_text(encoding="utf-8"))["stages"]
    lines = [
        f'[models.{stage["title"].split()[-1]}]\npath = "{micro / "stages" / identifier / "output" / "model"}"\n'
        for identifier, stage in stages.items()
        if stage["title"].startswith("download model ")
    ]
    assert len(lines) == 2
    file.write_text("".join(lines), encoding="utf-8")
    return file


def by_title(runs: Path) -> dict[str, dict[str, Any]]:
    """What must not depend on the engine, by the title of the stage: results, fingerprints, weights, verdicts."""
    found = {}
    for file in runs.glob("stages/*/manifest.json"):
        manifest = json.loads(file.read_text(encoding="utf-8"))
        timed = ("metrics.jsonl", "samples.jsonl", "tensorboard/")
        outputs = {o["path"]: o["sha256"] for o in manifest["outputs"] if not o["path"].startswith(timed)}
        results = {k: v for k, v in manifest["results"].items() if not k.endswith("_s")}
        data = {k: v for k, v in manifest["inputs"]["data"].items() if k != "samples_sha256"}
        told = {"results": results, "data": data, "outputs": outputs, "completions": completions(file.parent)}
        found[manifest["identity"]["title"]] = told
    return found


def completions(stage: Path) -> list[tuple[str, int, str]]:
    """What was generated, without the seconds that it took."""
    file = stage / "output" / "samples.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return sorted((str(s["problem"]), s["sample"], s["completion"]) for s in map(json.loads, lines))
