"""A stage on stand-in GPUs, as `python -c` runs it in the place of `python -m essence.stages`.

It computes on the CPU, and otherwise is the stage with the GPUs that it was given. Its process holds a lock on a file
that says which these are, so whoever looks knows who is alive, in containers and after kills too. What was seen goes to
`log`. Where stages are to be seen at once, one waits until they were: how long a process takes says nothing about who
may run. This text alone reaches an image, so it imports nothing of the tests.
"""

import fcntl
import json
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from essence.progress import StageContext, die_with_launcher
from essence.stages import __main__ as stages

MEETS_S, POLL_S = 300.0, 0.05
NAMES = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
"""What says which GPUs a process has: a local one the first, one in a container of Docker the second."""


def on_the_cpu(**given: Any) -> StageContext:
    """What surrounds a stage, where its models find no GPU; its record goes on to count those that it was given."""
    return StageContext(**{**given, "resources": given["resources"].model_copy(update={"gpus": 0})})


class Seen:
    """Who is alive, and what has been seen of them."""

    def __init__(self, place: Path, spec: Path) -> None:
        told = json.loads(spec.read_text(encoding="utf-8"))
        asked = told["resources"]["gpus"]
        named = next((os.environ[name] for name in NAMES if name in os.environ), "") if asked else ""
        gpus = [name for name in named.split(",") if name]
        self.place, self.log = place, place / "log"
        self.me = {"stage": told["stage"], "title": told["title"], "asked": asked, "gpus": gpus}
        # Written before it is locked: a lock that is seen has its content.
        self.own = place / f"{uuid.uuid4().hex}.json"
        self.own.write_text(json.dumps(self.me), encoding="utf-8")
        self.held = self.own.open()
        fcntl.flock(self.held, fcntl.LOCK_EX)
        self.say("begin")
        self.look()

    def say(self, event: str, other: dict[str, Any] | None = None) -> None:
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "one": self.me, "other": other}) + "\n")

    def others(self) -> list[dict[str, Any]]:
        """What else is alive."""
        found = []
        for path in set(self.place.glob("*.json")) - {self.own}:
            with path.open(encoding="utf-8") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    found.append(json.load(file))
        return found

    def look(self) -> None:
        """Note a GPU that two have, two stages with GPUs, and a grading beside a generation."""
        for other in self.others():
            if set(self.me["gpus"]) & set(other["gpus"]):
                self.say("twice", other)
            if self.me["gpus"] and other["gpus"]:
                self.say_once("pair", other)
            if {self.me["stage"], other["stage"]} == {"generate", "grade"}:
                self.say_once("graded beside", other)

    def say_once(self, event: str, other: dict[str, Any]) -> None:
        if not self.was(event):
            self.say(event, other)

    def was(self, event: str) -> bool:
        return f'{{"event": "{event}"' in self.log.read_text(encoding="utf-8")

    def wait(self, condition: Callable[[], bool]) -> None:
        until = time.monotonic() + MEETS_S
        while not condition() and time.monotonic() < until:
            time.sleep(POLL_S)
            self.look()


if __name__ == "__main__":
    seen = Seen(Path(sys.argv.pop(1)), Path(sys.argv[-1]))
    # As the stage does first of all: whoever waits here for another ends with its host.
    die_with_launcher(signal.SIGTERM)
    if seen.me["gpus"]:
        seen.wait(lambda: seen.was("pair") and not (seen.place / "hold").exists())
    # Of a cell: the untrained student was generated from before, or is beside it, and its grading comes.
    if seen.me["stage"] == "grade" or (seen.me["stage"] == "generate" and "/lsp-" in seen.me["title"]):
        seen.wait(partial(seen.was, "graded beside"))
    vars(stages)["StageContext"] = on_the_cpu
    sys.exit(stages.main())
