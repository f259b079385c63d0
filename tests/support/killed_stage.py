"""One stage again and again, each attempt in a process of its own that is killed by SIGKILL when it has done so much.

`python -m support.killed_stage train SPEC.json N...`: an attempt for each N, 0 = it is not killed. What is counted is
what a training does: forward passes of models, and files that are opened, renamed or removed, from the first forward
pass on. PyTorch is imported once, and each attempt is a fork. The last line of standard output lists the exit codes.
"""

import importlib
import json
import os
import signal
import sys
from typing import Any

from torch.nn.modules.module import register_module_forward_hook

from essence.stages import __main__ as stages

COUNTED = {"open", "os.rename", "os.remove", "os.rmdir"}


class Moment:
    """Ends this process when so much has been done."""

    def __init__(self, left: int) -> None:
        self.left, self.begun = left, False
        register_module_forward_hook(self.forward)
        sys.addaudithook(self.audit)

    def forward(self, module: Any, *_: Any) -> None:
        if type(module).__name__ == "Qwen3Model":
            self.begun = True
            self.count()

    def audit(self, event: str, _: Any) -> None:
        if self.begun and event in COUNTED:
            self.count()

    def count(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def attempt(stage: str, spec: str, moment: int) -> int:
    """Its exit code; of one that was killed, the negative signal."""
    child = os.fork()
    if child == 0:
        Moment(moment)
        sys.argv = ["essence.stages", stage, "--spec", spec]
        sys.exit(stages.main())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    name, file, *moments = sys.argv[1:]
    importlib.import_module(f"essence.stages.{name}")
    codes = [attempt(name, file, int(moment)) for moment in moments]
    print(json.dumps(codes))
