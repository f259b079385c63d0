"""Check an environment: `python -m essence.stages.self_test train` imports what its stages import, and prints versions.

Run by the images as their default command, by `%test` of the SIFs, and by hand after an installation; without a name it
checks all three environments at once. A package that asks for the NVIDIA driver, which comes from the machine and is in
no image, is told apart from one that is broken: where there is no driver it is no failure.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
import platform
import re
import sys
import warnings
from pathlib import Path
from typing import get_args

NEEDED = ("psutil", "pydantic", "pydantic.fields")
"""What the modules used here need: tried before they are imported, and told as all others. pydantic loads lazily."""
DRIVER = re.compile(
    r"\b(libcuda|libnvcuvid|libnvidia-[a-z-]+|libnvoptix)\.so|NVIDIA driver|no NVIDIA GPU|No CUDA GPUs", re.IGNORECASE
)
"""Libraries and words by which an import asks for the driver."""
DEVICE = Path("/dev/nvidiactl")
FAILED = 1


def main(words: list[str]) -> int:
    warnings.simplefilter("ignore")
    if [module for module in NEEDED if not _imports(module, quiet=True)]:
        return FAILED
    # Imported here: they need what was just tried.
    from essence.record.facts import lock_sha256
    from essence.record.third_party import third_party_imports
    from essence.settings import EnvironmentName

    environments = [name for name in get_args(EnvironmentName) if not words or name in words]
    if len(words) > 1 or not environments:
        print(f"which environment: {', '.join(get_args(EnvironmentName))} (typed: {' '.join(words)})", file=sys.stderr)
        return 2
    print(f"python {platform.python_version()} ({sys.executable}), lock {lock_sha256()}")
    modules = dict.fromkeys(module for name in environments for module in third_party_imports(name))
    return FAILED if [module for module in modules if not (_is_left_out(module) or _imports(module))] else 0


def _is_left_out(module: str) -> bool:
    """Say so where a module is of a package that this environment may lack, and lacks."""
    from essence.record.third_party import OPTIONAL

    top = module.split(".")[0]
    if top not in OPTIONAL or importlib.util.find_spec(top) is not None or is_locked(OPTIONAL[top]):
        return False
    print(f"{module}: not part of this environment")
    return True


def _imports(module: str, quiet: bool = False) -> bool:
    """Import one module and say what came of it, or with `quiet` a failure alone; False for a failure."""
    top = module.split(".")[0]
    try:
        importlib.import_module(module)
    except Exception as error:  # noqa: BLE001  whatever an import raises is what is to be told
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if DRIVER.search(reason) and not DEVICE.exists():
            print(f"{module}: needs a driver, which this machine lacks ({reason})")
            return True
        print(f"FAILED {module} ({version(top)}): {reason}")
        return False
    if not quiet:
        print(f"{module}: {version(top)}")
    return True


_distributions = functools.cache(importlib.metadata.packages_distributions)


def version(top: str) -> str:
    """`torch 2.13.0`: the distribution that a top-level module is of."""
    names = _distributions().get(top, [])
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in dict.fromkeys(names)) or "not installed"


def is_locked(distribution: str) -> bool:
    """Whether the lock that was installed names a distribution."""
    from essence.record.facts import lock_file

    file = lock_file()
    return file.is_file() and bool(re.search(rf"^{re.escape(distribution)}==", file.read_text("utf-8"), re.MULTILINE))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
