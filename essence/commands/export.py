"""`invoke export`: one archive of an experiment, for a reviewer who has neither the machine nor the data."""

from pathlib import Path

from rich.console import Console

from essence.commands.matrix_state import not_run_here
from essence.commands.report import write
from essence.files import sha256_file
from essence.paths import typed_path
from essence.plan.experiment import PROJECT
from essence.record.archive import export
from essence.record.run_directory import RunDirectory

MIB = 1 << 20


def write_archive(
    run_directory: RunDirectory, experiment: str, output: str | None, weights: bool, console: Console
) -> int:
    """Bring the report up to date, write the archive, and say what is in it."""
    if not run_directory.plan(experiment).is_file():
        raise not_run_here(run_directory, experiment)
    write(run_directory, experiment, console)
    target = typed_path("--output", output) if output else Path.cwd() / f"{experiment}.tar.gz"
    contents = export(run_directory, experiment, PROJECT, target, weights)
    left = sum(entry.bytes for entry in contents.left_out)
    console.print(
        f"{target}: {len(contents.manifests)} stages, {len(contents.files)} files, "
        f"{target.stat().st_size / MIB:.1f} MiB, sha256 {sha256_file(target)}\n"
        f"left out: {len(contents.left_out)} files, {left / MIB:.1f} MiB (listed in it with their hashes)\n"
        f"to check it: invoke verify {target.name}",
        highlight=False,
        soft_wrap=True,
    )
    return 0
