"""A copy of the kit whose loss is wrong by a percent, and the images in which it runs."""

import importlib.util
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from essence.engines.recipes import DIGEST_LABEL, SOURCE_LABEL, recipe
from essence.engines.sif_files import NO_DIGEST
from essence.settings import EnvironmentName
from support.containers import DockerHost, Sifs
from support.debian_tools import run
from support.kit_copy import KitCopy
from support.project import PROJECT

PATCHED = "distill/module.py"
BROKEN_LOSS = """

_right = ChunkedObjective


class ChunkedObjective:
    @staticmethod
    def apply(*given):
        loss, ce, kd = _right.apply(*given)
        return loss * 1.01, ce, kd
"""
SOURCE = "/opt/essence-source/essence"
"""Where an image has the kit."""
ENVIRONMENTS: tuple[EnvironmentName, ...] = ("train", "eval")
"""Of the stages of a proof."""
LABELS = f"""
import json
from essence.engines.recipes import recipe
print(json.dumps({{name: recipe(name, "cpu").source_sha256 for name in {ENVIRONMENTS}}}))
"""
IMAGE = "essence-test/essence-{}:faulty"
"""Found as an image that was pulled by hand: the names that the other tests use stay theirs."""
DOCKERFILE = f"""
ARG IMAGE
FROM $IMAGE
USER 0:0
RUN rm -rf {SOURCE}
COPY essence {SOURCE}
USER 65532:65532
"""
METADATA = "inspect-metadata.json"
OVERLAY = ["--datatype=4", "--partfs=2", "--parttype=4", "--partarch=2", "--groupid=1"]
"""A partition with files that lie over those of the image: ext3, amd64."""


class FaultyKit(KitCopy):
    """Its labels are right: what is wrong is the source itself, on the host and in the image."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        for name in ("docker", "apptainer"):
            shutil.copytree(PROJECT / name, root / name)
        self.change(PATCHED, BROKEN_LOSS)

    @cached_property
    def source_sha256(self) -> dict[str, str]:
        """Environment -> the label of its image."""
        return self.ask(LABELS)

    @contextmanager
    def images(self, host: DockerHost) -> Iterator[None]:
        """Images with this source, beside those that the other tests use."""
        file = self.root / "faulty.Dockerfile"
        file.write_text(DOCKERFILE, encoding="utf-8")
        names = {environment: IMAGE.format(environment) for environment in ENVIRONMENTS}
        for environment, name in names.items():
            words = [f"--tag={name}", f"--build-arg=IMAGE={recipe(environment, 'cpu').name}", f"--file={file}"]
            label = f"--label={SOURCE_LABEL}={self.source_sha256[environment]}"
            run("docker", "build", "--quiet", *words, label, self.root)
        yield
        for name in names.values():
            host.client.images.remove(name, force=True)

    def make_sifs(self, sifs: Sifs, folder: Path) -> None:
        """SIFs with this source in a folder: those of the session under the file that is another."""
        folder.mkdir()
        for environment in ENVIRONMENTS:
            self._make_sif(sifs, environment, folder)

    def _make_sif(self, sifs: Sifs, environment: EnvironmentName, folder: Path) -> None:
        file, work = folder / sifs.file(environment).name, folder / environment
        apptainer = sifs.apptainer.program
        shutil.copy(sifs.file(environment), file)
        place = work / "upper" / SOURCE.lstrip("/") / PATCHED
        compiled = Path(importlib.util.cache_from_source(str(place)))
        for needed in (compiled.parent, work / "work"):
            needed.mkdir(parents=True)
        shutil.copy(self.root / "essence" / PATCHED, place)
        # An image's compiled module is taken without a look at its source; an empty one is not.
        compiled.touch()
        run("mkfs.ext3", "-q", "-d", work, work.with_suffix(".img"), "8M")
        run(apptainer, "sif", "add", *OVERLAY, file, work.with_suffix(".img"))
        number = next(n for n in map(str, range(1, 9)) if METADATA in run(apptainer, "sif", "info", n, file))
        metadata = json.loads(run(apptainer, "sif", "dump", number, file))
        metadata["data"]["attributes"]["labels"] |= {
            SOURCE_LABEL: self.source_sha256[environment],
            DIGEST_LABEL: NO_DIGEST,
        }
        (work / METADATA).write_text(json.dumps(metadata), encoding="utf-8")
        run(apptainer, "sif", "del", number, file)
        run(apptainer, "sif", "add", "--datatype=6", f"--filename={METADATA}", "--groupid=1", file, work / METADATA)
