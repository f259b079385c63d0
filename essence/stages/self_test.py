"""Check an environment: `python -m essence.stages.self_test` imports every compiled package and prints versions.

Run by the images as their default command, by `%test` of the SIFs, and by hand after an installation.
"""

import importlib
import importlib.metadata
import platform
import sys
import warnings
from collections.abc import Iterator

from essence.record.facts import lock_sha256

WITHOUT_IMPORT = ("nvidia", "cuda", "triton_kernels")
"""Libraries that others load, not modules: the packages of CUDA."""


def main() -> int:
    warnings.simplefilter("ignore")
    print(f"python {platform.python_version()} ({sys.executable}), lock {lock_sha256()}")
    failures = 0
    for distribution, modules in compiled_packages():
        for module in modules:
            try:
                importlib.import_module(module)
            except Exception as error:  # noqa: BLE001  whatever an import raises is reported
                failures += 1
                print(f"FAILED {distribution.name} {distribution.version}: import {module}: {error}")
        print(f"{distribution.name} {distribution.version}: {', '.join(modules)}")
    return 1 if failures else 0


def compiled_packages() -> Iterator[tuple[importlib.metadata.Distribution, list[str]]]:
    """Distributions that hold machine code, with the modules by which they are imported, sorted by name."""
    for distribution in sorted(importlib.metadata.distributions(), key=lambda found: str(found.name).lower()):
        tops = {
            file.parts[0].split(".")[0]
            for file in distribution.files or []
            if file.suffix == ".so" and not file.parts[0].startswith((".", "_")) and not file.parts[0].endswith(".libs")
        }
        modules = sorted(top for top in tops if top.isidentifier() and top not in WITHOUT_IMPORT)
        if modules:
            yield distribution, modules


if __name__ == "__main__":
    sys.exit(main())
