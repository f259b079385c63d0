"""The local engine: each stage is a process of the environment that runs this very Python."""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import essence
from essence.record.environment import lock_sha256
from essence.settings import Resources, StageName
from essence.store import StageFolder

NAME = "local"
PACKAGE_ROOT = Path(essence.__file__).resolve().parent.parent
SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY", re.IGNORECASE)
STOP_GRACE_S = 60.0


def environment(stage: StageName) -> dict[str, str]:
    """All stages run in one environment here: its lock is its identity."""
    del stage
    return {"lock_sha256": lock_sha256()}


def image() -> dict[str, str | None]:
    """What the manifest says of the engine; no image here."""
    return {"engine": NAME, "engine_version": None, "digest": None, "base_digest": None, "sif_sha256": None}


def command(stage: StageName, folder: StageFolder) -> list[str]:
    """The command line of a stage."""
    return [sys.executable, "-m", "essence.stages", stage, "--spec", str(folder.spec)]


def render(stage: StageName, folder: StageFolder, resources: Resources) -> str:
    """The command line as a person would type it, with the variables that matter."""
    variables = [f"{name}={value}" for name, value in _told(stage, resources).items()]
    return shlex.join([*variables, *command(stage, folder)])


def _told(stage: StageName, resources: Resources) -> dict[str, str]:
    """Variables that the kit sets for a stage: threads, and no hub but for downloads."""
    told = {
        "OMP_NUM_THREADS": str(resources.threads),
        "MKL_NUM_THREADS": str(resources.threads),
        "TOKENIZERS_PARALLELISM": "true" if resources.threads > 1 else "false",
    }
    if stage != "download":
        told.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    return told


def variables(stage: StageName, resources: Resources) -> dict[str, str]:
    """The whole environment of a stage's process: the caller's, without secrets unless it downloads."""
    inherited = {k: v for k, v in os.environ.items() if stage == "download" or not SECRET.search(k)}
    told = {**_told(stage, resources), "ESSENCE_PARENT": str(os.getpid()), "PYTHONUNBUFFERED": "1"}
    path = os.pathsep.join(p for p in (str(PACKAGE_ROOT), inherited.get("PYTHONPATH", "")) if p)
    return {**inherited, **told, "PYTHONPATH": path}


class LocalStage:
    """A running stage."""

    def __init__(self, stage: StageName, folder: StageFolder, resources: Resources) -> None:
        with folder.log.open("ab") as log:
            self.process = subprocess.Popen(
                command(stage, folder),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=variables(stage, resources),
                cwd=folder.path,
                # Ctrl-C reaches the host alone, which then asks each stage to stop.
                start_new_session=True,
            )

    def wait(self) -> int:
        """The exit code; a negative one is the signal that ended the process."""
        return self.process.wait()

    def stop(self) -> None:
        """Ask the stage to write what it needs and end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the stage and its workers at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                os.killpg(self.process.pid, number)
            else:
                self.process.send_signal(number)
