"""A site file for the one node of a real Slurm; where the container would be, the stage runs in this environment."""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from essence.engines.recipes import BASE_LABEL, DIGEST_LABEL, LOCK_LABEL, SOURCE_LABEL, ImageRecipe, recipe
from essence.engines.sif_files import SifRecord, record_file
from essence.files import sha256_file
from support.project import MICRO, PROJECT, invoke
from support.slurm_node import SlurmNode

TOKEN = "hf_planted_4711"
DIGEST = "sha256:" + "ab" * 32

# Options and image are left out. A file named after the stage's kind says what happens instead of the stage.
STAND_IN = """\
#!/bin/bash
kind=$(sed -E 's/.*essence.stages ([a-z]+) .*/\\1/' <<< "$*")
spec="${{@: -1}}"
[ "$kind" != download ] || kind=$(grep -oE '"kind": "[a-z]+"' "$spec" | cut -d '"' -f 4)
echo "$kind $(grep -oE 'CUDA_VISIBLE_DEVICES=\\S+' <<< "$*")" >> {folder}/devices
env >> {folder}/environment
[ ! -e {folder}/act-$kind ] || {{ . {folder}/act-$kind; exit; }}
shift
while [[ $1 == --* ]]; do shift; done
shift 2
exec env -i PATH={path} PYTHONPATH={project} "$@"
"""


@dataclass
class Cluster:
    """A site file for the one node, and a folder for what happens instead of stages."""

    folder: Path
    node: SlurmNode

    @property
    def site(self) -> Path:
        return self.folder / "site.toml"

    def site_with(self, name: str, **changes: str) -> Path:
        """Another site file, with other values."""
        text = self.site.read_text()
        for key, value in changes.items():
            # An image and a limit have the same name.
            text, count = re.subn(
                rf"^{key} = {re.escape(value[0])}.*" if value[0] in "{[" else rf"^{key} = .*",
                f"{key} = {value}",
                text,
                flags=re.MULTILINE,
            )
            assert count == 1
        file = self.folder / f"{name}.toml"
        file.write_text(text)
        return file

    def act(self, kind: str, script: str | None) -> None:
        file = self.folder / f"act-{kind}"
        file.unlink(missing_ok=True) if script is None else file.write_text(script)

    def run(self, runs: Path, *words: str, site: Path | None = None, experiment: Path = MICRO) -> Any:
        line = ("--experiment", str(experiment), "--lsp", "0.5", "--runs", str(runs), *words)
        return invoke("run", *line, "--engine", "slurm", "--site", str(site or self.site))


@pytest.fixture(scope="module")
def cluster(slurm: SlurmNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    program = folder / "bin" / "apptainer"
    program.parent.mkdir()
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    program.write_text(STAND_IN.format(folder=folder, path=path, project=PROJECT))
    program.chmod(0o755)
    (folder / ".bash_profile").write_text(f"export PATH={program.parent}:$PATH\n")  # as a module would
    (folder / "sif").mkdir()
    for name in ("download", "train", "eval"):
        stand_in_sif(folder / "sif" / f"{name}-cpu.sif", recipe(name, "cpu"))
    text = (PROJECT / "experiments" / "sites" / "generic.toml").read_text()
    text = re.sub(r"memory_gib = \d+, cpus = \d+", "memory_gib = 1, cpus = 1", text)
    (folder / "site.toml").write_text(re.sub(r"^sif_folder.*", f'sif_folder = "{folder}/sif"', text, flags=re.M))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        patch.setenv("HF_TOKEN", TOKEN)
        yield Cluster(folder, slurm)


def stand_in_sif(file: Path, image: ImageRecipe) -> None:
    """A file that is no SIF, with the record of one."""
    file.write_text(f"in the place of {image.name}")
    found = file.stat()
    record = SifRecord(
        sha256=sha256_file(file),
        bytes=found.st_size,
        modified_ns=found.st_mtime_ns,
        config_digest=DIGEST,
        apptainer_version="1",
        labels={
            DIGEST_LABEL: DIGEST,
            LOCK_LABEL: image.lock_sha256,
            BASE_LABEL: image.base,
            SOURCE_LABEL: image.source_sha256,
        },
        definition_sha256=None,
    )
    record_file(file).write_text(record.model_dump_json())
