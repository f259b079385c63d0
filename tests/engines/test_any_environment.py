"""An environment full of the variables of schedulers and engines changes neither what is queued nor what a container
sees: drawn at random, held against the bare environment."""

import json
import os
import string
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from essence.engines import apptainer_stage
from essence.engines import inherited_variables as inherited
from essence.engines.apptainer import argv
from essence.engines.docker_container import argv as docker_argv
from essence.engines.docker_container import creation
from essence.engines.docker_hosts import USUAL
from essence.engines.image_builds import build_environment as image_build_environment
from essence.engines.sif_builds import BUILD_VARIABLE
from essence.engines.sif_builds import build_environment as sif_build_environment
from essence.engines.slurm import queue
from essence.engines.slurm.job_text import batch_text
from essence.engines.slurm.site import load_site
from essence.record.facts import SCHEDULER_VARIABLES
from support.slurm_job import job

PREFIXES = ("SLURM_", "SBATCH_", "SQUEUE_", "SACCT_", "APPTAINER", "APPTAINER_", "APPTAINERENV_", "SINGULARITY")
PREFIXES += ("SINGULARITY_", "SINGULARITYENV_", "DOCKER_")
KNOWN = ("SBATCH_EXPORT", "SBATCH_TIMELIMIT", "SLURM_MEM_PER_CPU", "SQUEUE_FORMAT", "APPTAINER_BIND", "SLURM_NTASKS")
KNOWN += ("SINGULARITY_BINDPATH", "APPTAINERENV_LD_PRELOAD", "DOCKER_DEFAULT_PLATFORM", "DOCKER_BUILDKIT")
OF_THE_MACHINE = (*queue.OF_SLURM, *SCHEDULER_VARIABLES, "DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG")
OF_THE_MACHINE += ("DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY", "DOCKER_TLS", "DOCKER_API_VERSION")
"""Which cluster or engine is asked, and the job's own names, which a stage is told."""


def is_of_no_machine(name: str) -> bool:
    own = (apptainer_stage.MACHINE_VARIABLE, BUILD_VARIABLE)
    return name not in OF_THE_MACHINE and not any(pattern.fullmatch(name) for pattern in own)


letters = st.text(string.ascii_uppercase + "_", min_size=1, max_size=12)
names = st.one_of(st.sampled_from(KNOWN), st.builds(str.__add__, st.sampled_from(PREFIXES), letters))
environments = st.dictionaries(names.filter(is_of_no_machine), st.sampled_from(("", "1", "NONE", "/etc:/etc", "a=b")))


def of(prefix: str, variables: dict[str, str]) -> dict[str, str]:
    """What somebody listens to."""
    return {name: value for name, value in variables.items() if name.startswith(prefix)}


def seen(folder: Path) -> dict[str, object]:
    """All that is handed on: to Slurm, into a job, into containers, to what builds them."""
    one, site = job(folder, gpus=0), load_site("generic")
    around = one.surroundings
    docker = {name: value for name, value in creation(around, None, USUAL).items() if name != "ulimits"}
    return {
        "slurm": queue.client_environment(),
        "job": batch_text(one, site),
        "apptainer": argv(around, Path("/image.sif")),
        "apptainer's own": of("APPTAINER", apptainer_stage.host_variables()),
        "singularity's own": of("SINGULARITY", apptainer_stage.host_variables()),
        "docker": json.dumps(docker, default=str, sort_keys=True),
        "docker's line": docker_argv(around, "image"),
        "image builds": of("DOCKER_", image_build_environment({})),
        "sif builds": sif_build_environment(),
        "local, of Slurm": of("SLURM_", inherited.inherited()),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stages")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=environments)
def test_no_variable_changes_what_is_handed_on(folder: Path, drawn: dict[str, str]) -> None:
    bare = {name: value for name, value in os.environ.items() if not name.startswith(PREFIXES)}
    with mock.patch.dict(os.environ, bare, clear=True):
        plain = seen(folder)
        os.environ.update(drawn)
        full = seen(folder)
    assert full == plain


@pytest.mark.parametrize("name", ["SLURM_CONF", "APPTAINER_CACHEDIR"])
def test_the_comparison_is_not_deaf(folder: Path, name: str) -> None:
    """A variable that is handed on, of the machine as these are, is seen."""
    with mock.patch.dict(os.environ, {}, clear=False):
        os.environ.pop(name, None)
        plain = seen(folder)
        os.environ[name] = "/elsewhere"
        assert seen(folder) != plain
