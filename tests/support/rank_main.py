"""How a program of the tests ends that was started as a rank."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path


def run_as_rank(main: Callable[[Path], int]) -> None:
    """Run it with the folder that stands in the place of a spec, and leave as ranks do, without waiting for threads."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--spec", type=Path, required=True)
    code = main(parser.parse_args().spec)
    sys.stdout.flush()
    os._exit(code)
