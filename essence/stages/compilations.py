"""Where PyTorch's compiler and Triton keep what they make while a stage runs: in its own folder, under every engine.

Their own choice is the home folder and `/tmp`: in a container the one is absent and the other may be small, and on a
host all users and stages would share them. Each attempt has a new folder: one that was killed can leave half a file,
and a training that is resumed would then run without what it had compiled. The next attempt removes it.
"""

import os
import shutil
import uuid

from essence.record.run_directory import StageFolder
from essence.settings import STAGES_IN, StageName

INDUCTOR, TRITON = "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"
ATTEMPT = "compiled-"
"""How the name of an attempt's folder begins."""


def compile_apart(stage: StageName, folder: StageFolder) -> None:
    """Tell this process, and all that it starts; nothing is made before something is compiled.

    Of the stages of the environment `eval` the launch says it: what vLLM compiles is kept for all of them.
    """
    if stage not in STAGES_IN["train"]:
        return
    attempt = folder.scratch / f"{ATTEMPT}{uuid.uuid4().hex[:12]}"
    os.environ.update({INDUCTOR: str(attempt / "inductor"), TRITON: str(attempt / "triton")})


def remove_earlier(folder: StageFolder, nodes: int) -> None:
    """Remove what earlier attempts compiled; called by the process that holds the folder, before it starts others.

    Nothing where processes of this attempt were started by something else, as on several machines (`nodes`): they may
    be compiling already, in folders of their own.
    """
    if nodes > 1 or "RANK" in os.environ:
        return
    for attempt in folder.scratch.glob(f"{ATTEMPT}*"):
        if not os.environ.get(INDUCTOR, "").startswith(f"{attempt}/"):
            shutil.rmtree(attempt, ignore_errors=True)
