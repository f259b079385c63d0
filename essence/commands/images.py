"""`invoke images`: build the three images of a flavour with docker buildx."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import get_args

from rich.console import Console

from essence.commands.options import check_word
from essence.engines import FLAVOURS
from essence.engines.recipes import recipe, remember_digest
from essence.errors import MachineError
from essence.plan.experiment import PROJECT
from essence.record.facts import code_facts
from essence.settings import EnvironmentName

ENVIRONMENTS: tuple[EnvironmentName, ...] = get_args(EnvironmentName)


def build(flavour: str, only: str | None, console: Console, overlay: Path | None = None) -> int:
    """Build, and say what came out; MachineError when Docker or buildx is not there or the build fails."""
    check_word("--flavour", "flavour", flavour, FLAVOURS)
    check_word("--only", "environment", only, ENVIRONMENTS)
    targets: list[str] = [only] if only else [*ENVIRONMENTS]
    command = bake_command(targets, overlay)
    variables = bake_variables(flavour)
    check_buildx()
    record = PROJECT / ".cache" / "images.json"
    record.parent.mkdir(exist_ok=True)
    done = subprocess.run(
        [*command, "--metadata-file", str(record)], cwd=PROJECT, env={**os.environ, **variables}, check=False
    )
    if done.returncode:
        raise MachineError(f"docker buildx bake ended with code {done.returncode}; what it says is above")
    for built in json.loads(record.read_text(encoding="utf-8")).values():
        if isinstance(built, dict) and "image.name" in built:
            digest = built["containerimage.config.digest"]
            remember_digest(built["containerimage.digest"], digest)
            console.print(f"{built['image.name']}: {digest}", highlight=False, soft_wrap=True)
    return 0


def bake_command(targets: list[str], overlay: Path | None = None) -> list[str]:
    """The build as an argv. Without provenance, which holds times, so that the same input gives the same digest."""
    files = ["--file", "docker/bake.hcl", *(["--file", str(overlay)] if overlay else [])]
    return ["docker", "buildx", "bake", *files, "--provenance=false", *targets]


def bake_variables(flavour: str) -> dict[str, str]:
    """What `docker/bake.hcl` is given."""
    code, _ = code_facts(PROJECT)
    commit = code["commit"] or "unknown"
    variables = {
        "FLAVOUR": flavour,
        "COMMIT": f"{commit}{' with changes' if code['dirty'] else ''}",
        "SOURCE_DATE_EPOCH": source_date_epoch(),
        "BUILDX_BAKE_ENTITLEMENTS_FS": "0",
        "CERTIFICATES": os.environ.get("SSL_CERT_FILE", ""),
        "WHEELS": os.environ.get("PIP_FIND_LINKS", ""),
    }
    for environment in ENVIRONMENTS:
        image = recipe(environment, flavour)
        variables[f"{environment.upper()}_LOCK"] = image.lock_sha256
        variables[f"{environment.upper()}_BASE"] = image.base
        variables[f"{environment.upper()}_SOURCE"] = image.source_sha256
    return variables


def source_date_epoch() -> str:
    """When environments were last changed: the time of everything in an image."""
    command = ["git", "-C", str(PROJECT), "log", "-1", "--format=%ct", "--", "docker", "locks"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "0"


def check_buildx() -> None:
    """MachineError unless images can be built here."""
    if not shutil.which("docker"):
        raise MachineError("building images needs the docker command, which is not installed here")
    for what, command in (
        ("docker's plugin buildx, which is not installed", ["docker", "buildx", "version"]),
        ("a running Docker engine", ["docker", "info"]),
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise MachineError(f"building images needs {what}: {last_line(done.stderr)}")


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
