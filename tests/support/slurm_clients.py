"""Stand-ins for Slurm's commands, and an environment full of variables that those would listen to."""

import json
import random
import string
import sys
from pathlib import Path

from essence.engines.slurm import queue

PREFIXES = ("SLURM_", "SBATCH_", "SQUEUE_", "SACCT_", "APPTAINER_", "APPTAINERENV_", "SINGULARITY_", "SINGULARITYENV_")
ALSO = ("SBATCH_EXPORT", "SBATCH_ACCOUNT", "SBATCH_TIMELIMIT", "SLURM_MEM_PER_CPU", "SLURM_JOB_ID", "SQUEUE_FORMAT")
SBATCH = """\
#!{python}
import json, os, pathlib, sys
home = pathlib.Path({folder!r})
calls = home / "calls.jsonl"
with calls.open("a") as file:
    print(json.dumps([sys.argv[1:], dict(os.environ), sys.stdin.read()]), file=file)
plan = home / "answers"
lines = plan.read_text().splitlines() if plan.is_file() else []
answer = lines[0] if lines else "out 77"
plan.write_text("\\n".join(lines[1:]))
kind, _, text = answer.partition(" ")
print(text.replace("|n|", "\\n"), file=sys.stderr if kind == "err" else sys.stdout)
sys.exit(1 if kind == "err" else 0)
"""


class Clients:
    """Stand-ins for sbatch and squeue, each with its own answers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, name: str, *answers: str) -> None:
        """`out TEXT` or `err TEXT` for each call in turn; afterwards `out 77`."""
        home = self.folder / name
        home.mkdir(parents=True, exist_ok=True)
        (home / "answers").write_text("\n".join(answers), encoding="utf-8")
        program = self.folder / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(SBATCH.format(python=sys.executable, folder=str(home)), encoding="utf-8")
        program.chmod(0o755)

    def calls(self, name: str) -> list[tuple[list[str], dict[str, str], str]]:
        file = self.folder / name / "calls.jsonl"
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def drawn(seed: int) -> dict[str, str]:
    """Variables of Slurm's and Apptainer's kinds, drawn at random, and those that reports name."""
    rng = random.Random(seed)
    names = ["".join(rng.choices(string.ascii_uppercase, k=rng.randint(3, 10))) for _ in range(40)]
    kept = (*queue.OF_SLURM, "SLURM_CPUS_PER_TASK")
    found = {f"{rng.choice(PREFIXES)}{name}": rng.choice(("1", "NONE", "/etc", "a=b")) for name in names}
    return {name: value for name, value in {**found, **dict.fromkeys(ALSO, "NONE")}.items() if name not in kept}
