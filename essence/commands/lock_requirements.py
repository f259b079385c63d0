"""What the locked packages require of each other: `locks/requirements.json`, which a test holds every lock against.

`uv` obeys the bounds of packages but for those in `locks/override-*.txt`; whether what it chose then fits together,
only the packages' own metadata can say. They are taken from this environment where it has the same version, and
otherwise from the package index, without fetching a wheel.
"""

import importlib.metadata
import json
import re
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from essence.errors import MachineError
from essence.files import write_json
from essence.plan.experiment import PROJECT

LOCKS = PROJECT / "locks"
FILE = LOCKS / "requirements.json"
PINNED = re.compile(r"^([A-Za-z0-9._-]+)==(\S+?)(?: ; .+?)? \\$", re.MULTILINE)
PLATFORMS = (*(f"manylinux_2_{minor}_x86_64" for minor in range(5, 29)), "manylinux2014_x86_64", "linux_x86_64")
"""Of the wheels that the locks for images name; the older names are those of manylinux_2_5, 2_12 and 2_17."""


def record_requirements(locks: dict[str, str]) -> int:
    """Write the file for locks (name -> version of Python); the number of packages. MachineError without an index."""
    known: dict[str, list[str]] = {}
    for name, python in locks.items():
        text = (LOCKS / f"{name}.txt").read_text(encoding="utf-8")
        pins = [f"{canonicalize_name(package)}=={version}" for package, version in PINNED.findall(text)]
        lacking = [pin for pin in pins if pin not in known]
        known |= {pin: found for pin in lacking if (found := _installed(pin)) is not None}
        known |= _from_index([pin for pin in lacking if pin not in known], python)
    write_json(FILE, {pin: known[pin] for pin in sorted(known)})
    return len(known)


def _installed(pin: str) -> list[str] | None:
    name, version = pin.split("==")
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    return _lines(found.requires or []) if found.version == version else None


def _from_index(pins: list[str], python: str) -> dict[str, list[str]]:
    if not pins:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        asked, report = Path(folder) / "pins.txt", Path(folder) / "report.json"
        asked.write_text("\n".join(pins), encoding="utf-8")
        command = [str(PROJECT / ".cache" / "bootstrap" / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        command += ["--dry-run", "--no-deps", "--ignore-installed", "--ignore-requires-python", "--only-binary=:all:"]
        command += [f"--python-version={python}", *(f"--platform={platform}" for platform in PLATFORMS)]
        command += [f"--target={folder}/none", f"--report={report}", f"--requirement={asked}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise MachineError(
                f"the index does not tell what the locked packages require: {done.stderr.strip().splitlines()[-1]}",
                "make setup, then invoke lock again",
            )
        found = json.loads(report.read_text(encoding="utf-8"))["install"]
    metadata = {str(canonicalize_name(one["metadata"]["name"])): one["metadata"] for one in found}
    return {pin: _lines(metadata[pin.split("==")[0]].get("requires_dist", [])) for pin in pins}


def _lines(requirements: Iterable[str]) -> list[str]:
    return sorted(requirements)


def conflicts(lock: str, python: str) -> list[str]:
    """`numba 0.65.0 requires numpy<2.5, locked: 2.5.5`, for everything that a lock's packages require and it breaks.

    An absent package is one, too. Extras count where a locked package asks for them.
    """
    recorded: dict[str, list[str]] = json.loads(FILE.read_text(encoding="utf-8"))
    text = (LOCKS / f"{lock}.txt").read_text(encoding="utf-8")
    pins = {canonicalize_name(package): version for package, version in PINNED.findall(text)}
    found: dict[str, None] = {}
    waiting = [(name, "") for name in pins]
    seen = set(waiting)
    while waiting:
        name, extra = waiting.pop()
        for line in recorded[f"{name}=={pins[name]}"]:
            wanted = Requirement(line)
            if wanted.marker and not wanted.marker.evaluate(_linux(python) | {"extra": extra}):
                continue
            needed = canonicalize_name(wanted.name)
            if needed not in pins or not wanted.specifier.contains(pins[needed], prereleases=True):
                found[f"{name} {pins[name]} requires {needed}{wanted.specifier}, locked: {pins.get(needed)}"] = None
            else:
                fresh = {(needed, one) for one in wanted.extras} - seen
                seen |= fresh
                waiting += fresh
    return sorted(found)


def _linux(python: str) -> dict[str, str]:
    here = {name: str(value) for name, value in default_environment().items()}
    linux = {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix"}
    return {**here, **linux, "python_version": python, "python_full_version": f"{python}.0"}
