"""Engines for the tests out of Debian packages: downloaded and unpacked beside the system, never installed into it.

Where packages come from is what the machine's own apt says. What was unpacked is kept in `.cache/test-tools/`.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from support.project import PROJECT

KEPT = PROJECT / ".cache" / "test-tools"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
ENGINE_SUITE, APPTAINER_SUITE, BASE_SUITE = "trixie", "sid", "bookworm"
EPOCH = "1700000000"
"""Time of everything in the base, so that it is the same bytes each time."""
LIBRARIES = ("libc", "libm", "libpthread", "libdl", "librt", "libresolv", "ld-linux-x86-64", "libnss_")
BASE_PACKAGES = "python3,python3-venv,ca-certificates"


def mirror() -> str:
    """Where this machine's apt takes Debian from."""
    for file in [*sorted(Path("/etc/apt").glob("sources.list.d/*")), Path("/etc/apt/sources.list")]:
        if file.is_file():
            text = file.read_text(encoding="utf-8")
            for found in re.findall(r"^(?:URIs:|deb(?:\s+\[.*?\])?)\s+(\S+)", text, flags=re.MULTILINE):
                if found.rstrip("/").endswith("/debian"):
                    return str(found)
    raise LookupError("apt of this machine names no Debian mirror")


def kept(name: str, make: Callable[[Path], None]) -> Path:
    """What `make` fills a folder with, made once."""
    folder = KEPT / name
    KEPT.mkdir(parents=True, exist_ok=True)
    with FileLock(KEPT / f"{name}.lock"):
        if not folder.is_dir():
            new = Path(tempfile.mkdtemp(dir=KEPT, prefix=f"{name}-"))
            new.chmod(0o755)
            make(new)
            new.rename(folder)
    return folder


def run(*command: str | Path, **options: object) -> str:
    """Output of a command; a failure shows what it said."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    return str(done.stdout)


def download(folder: Path, *packages: str) -> dict[str, Path]:
    """`name/suite` packages as files; the signed lists of those suites are kept apart from the system's."""
    state = folder / "apt"
    (state / "lists" / "partial").mkdir(parents=True)
    (state / "cache").mkdir()
    suites = dict.fromkeys(package.split("/")[1] for package in packages)
    lines = [f"deb [signed-by={KEYRING}] {mirror()} {suite} main\n" for suite in suites]
    (state / "sources.list").write_text("".join(lines), encoding="utf-8")
    options = [
        *("-q", "-o", f"Dir::Etc::sourcelist={state}/sources.list", "-o", "Dir::Etc::sourceparts=-"),
        *("-o", f"Dir::State::Lists={state}/lists", "-o", f"Dir::Cache={state}/cache"),
        *("-o", "APT::Sandbox::User=root"),
    ]
    run("apt-get", *options, "update")
    run("apt-get", *options, "download", *packages, cwd=state)
    names = [package.split("/")[0] for package in packages]
    return {name: next(state.glob(f"{name}_*.deb")) for name in names}


def docker_engine() -> Path:
    """A modern Docker engine with buildx: `usr/bin` and `cli-plugins`."""
    return kept("docker", _make_docker)


def _make_docker(folder: Path) -> None:
    wanted = ["docker.io", "containerd", "docker-buildx"] + ([] if shutil.which("docker") else ["docker-cli"])
    files = download(folder, *(f"{name}/{ENGINE_SUITE}" for name in wanted))
    for file in files.values():
        run("dpkg", "-x", file, folder)
    tini = shutil.which("tini-static") or shutil.which("tini")
    assert tini, "tini is missing: apt-get install tini"
    (folder / "usr" / "bin" / "docker-init").unlink(missing_ok=True)
    (folder / "usr" / "bin" / "docker-init").symlink_to(tini)
    (folder / "cli-plugins").symlink_to("usr/libexec/docker/cli-plugins")
    shutil.rmtree(folder / "apt")


def apptainer() -> Path:
    """Apptainer with the C library that it was built against; `bin/apptainer`."""
    return kept("apptainer", _make_apptainer)


def _make_apptainer(folder: Path) -> None:
    files = download(folder, f"apptainer/{APPTAINER_SUITE}", f"libc6/{APPTAINER_SUITE}")
    run("dpkg", "-x", files["apptainer"], folder / "unpacked")
    run("dpkg", "-x", files["libc6"], folder / "libc")
    for part in (folder / "unpacked" / "usr").iterdir():
        part.rename(folder / part.name)
    (folder / "unpacked" / "etc").rename(folder / "etc")
    (folder / "var" / "lib" / "apptainer" / "mnt" / "session").mkdir(parents=True)
    (folder / "glibc").mkdir()
    for file in (folder / "libc" / "usr" / "lib" / "x86_64-linux-gnu").iterdir():
        if file.name.startswith(LIBRARIES):
            shutil.copy2(file, folder / "glibc" / file.name)
    # Apptainer looks for its own parts under lib/, because Debian keeps its helpers in a multiarch folder.
    for part in ("var", "etc", "bin", "lib"):
        (folder / "lib" / part).symlink_to(f"../{part}")
    for part in ("unpacked", "libc", "apt"):
        shutil.rmtree(folder / part)
    final = KEPT / "apptainer"
    libraries = f"{final}/glibc:/lib/x86_64-linux-gnu:/usr/lib/x86_64-linux-gnu"
    for program in ("bin/apptainer", "lib/x86_64-linux-gnu/apptainer/bin/starter"):
        loader = ["--set-interpreter", final / "glibc" / "ld-linux-x86-64.so.2"]
        run("patchelf", "--force-rpath", *loader, "--set-rpath", libraries, folder / program)


def busybox() -> Path:
    """A shell that is one file and needs no library."""
    return kept("busybox", _make_busybox) / "busybox"


def _make_busybox(folder: Path) -> None:
    file = download(folder, f"busybox-static/{BASE_SUITE}")["busybox-static"]
    run("dpkg", "-x", file, folder / "unpacked")
    shutil.move(next(folder.glob("unpacked/**/bin/busybox")), folder / "busybox")
    for part in ("unpacked", "apt"):
        shutil.rmtree(folder / part)


def bindfs() -> list[str]:
    """What starts bindfs, which shows a folder in another place."""
    folder = kept("bindfs", _make_bindfs)
    return ["env", f"LD_LIBRARY_PATH={folder}", str(folder / "bindfs")]


def _make_bindfs(folder: Path) -> None:
    for file in download(folder, f"bindfs/{BASE_SUITE}", f"libfuse2/{BASE_SUITE}").values():
        run("dpkg", "-x", file, folder / "unpacked")
    for file in (next(folder.glob("unpacked/usr/bin/bindfs")), *folder.glob("unpacked/lib/*/libfuse.so.2*")):
        shutil.move(file, folder / file.name)
    for part in ("unpacked", "apt"):
        shutil.rmtree(folder / part)


def base_rootfs() -> Path:
    """A Debian root file system with Python, as a tar, the same bytes each time: what images are built on here."""
    return kept("base", _make_base) / "base.tar"


def _make_base(folder: Path) -> None:
    check = re.search(r'"(.*)"', run("apt-config", "dump", "Acquire::Check-Valid-Until"))
    excluded = [f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("doc", "man", "locale")]
    memory = Path("/dev/shm")
    run(
        *("mmdebstrap", "--quiet", "--variant=apt", f"--include={BASE_PACKAGES}", *excluded),
        f'--aptopt=Acquire::Check-Valid-Until "{check[1] if check else "true"}"',
        '--aptopt=APT::Install-Recommends "false"',
        # Device nodes cannot be unpacked in a user namespace, where SIFs are made.
        *("--skip=output/dev", BASE_SUITE, folder / "base.tar", mirror()),
        env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH, "TMPDIR": str(memory if memory.is_dir() else folder)},
    )
