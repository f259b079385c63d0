"""Why Apptainer can start or build nothing on a machine, and its cure: by its own sentences and the kernel's settings.

A build shows its own output as it goes, so after one that failed the machine is looked at.
"""

import getpass
import os
import re
import shutil
from pathlib import Path

from essence.files import GIB

SYSCTL = Path("/proc/sys")
SUBUID = Path("/etc/subuid")
NAMESPACES = (
    "let users make user namespaces (as root: sysctl -w user.max_user_namespaces=15000, and where they are there "
    "kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0), or install apptainer-suid"
)
SUBIDS = (
    "give this user subordinate ids (as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}), "
    "or install fakeroot"
)

ROOM = "make room there, or name another folder for temporary files with APPTAINER_TMPDIR and TMPDIR"
LEAST_FREE_GIB = 0.5
CURES = {
    r"user namespace|unprivileged.*namespace|CLONE_NEWUSER": NAMESPACES,
    r"/etc/sub[ug]id|subordinate|newuidmap|newgidmap": SUBIDS,
    r"no space left on device": ROOM,
    r"squashfuse|mount.*squashfs|fusermount": "install squashfuse, which mounts a SIF without root",
}
"""What Apptainer says -> what cures it; sentences of its documentation (user namespaces, fakeroot)."""
OFF = {
    "user/max_user_namespaces": "0",
    "kernel/unprivileged_userns_clone": "0",
    "kernel/apparmor_restrict_unprivileged_userns": "1",
}
"""Setting of the kernel -> the value with which users make no user namespaces."""


def cure_of(said: str) -> str:
    """What to do about a sentence of Apptainer's; empty where it is not known."""
    found = next((cure for words, cure in CURES.items() if re.search(words, said, re.IGNORECASE)), "")
    return found.format(user=_user())


def likely_fault(work: Path) -> tuple[str, str] | None:
    """What of this machine can make builds fail, and its cure; None where none is found. `work`: of temporary files."""
    if work.is_dir() and (free := shutil.disk_usage(work).free / GIB) < LEAST_FREE_GIB:
        return f"{work} has {free:.1f} GiB left", ROOM
    if os.getuid() == 0:
        return None
    for name, value in OFF.items():
        file = SYSCTL / name
        if file.is_file() and file.read_text(encoding="ascii").strip() == value:
            return f"users make no user namespaces here ({name.replace('/', '.')} = {value})", NAMESPACES
    if shutil.which("fakeroot"):
        return None  # Apptainer takes it where there are no subordinate ids
    line = rf"^({re.escape(_user())}|{os.getuid()}):"
    if not SUBUID.is_file() or not re.search(line, SUBUID.read_text(encoding="utf-8"), re.MULTILINE):
        return f"{SUBUID} has no line for {_user()}", SUBIDS.format(user=_user())
    return None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
