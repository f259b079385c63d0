"""The SIFs: what their definitions say, what `invoke sif` makes of them, and that no wrong one is taken."""

import subprocess

import pytest

from essence.commands.images import ENVIRONMENTS
from essence.engines.recipes import BASE_LABEL, LOCK_LABEL, config_digest, recipe
from essence.engines.sif_files import DIGEST_LABEL, found_sif
from essence.files import sha256_file
from support.containers import DockerHost, Sifs
from support.project import PROJECT, invoke


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_environment_has_a_definition_with_help_labels_test_and_runscript(environment: str) -> None:
    text = (PROJECT / "apptainer" / f"{environment}.def").read_text(encoding="utf-8")
    for section in ("%arguments", "%labels", "%help", "%test", "%runscript"):
        assert f"\n{section}\n" in text
    flavour = "cpu" if environment == "download" else "cuda"
    assert f"FROM={recipe(environment, flavour).name}\n" in text  # type: ignore[arg-type]
    assert f"{DIGEST_LABEL} {{{{ CONFIG_DIGEST }}}}\n" in text


@pytest.mark.docker
@pytest.mark.apptainer
def test_a_sif_is_known_by_the_digest_of_its_image_and_its_own_hash(docker_host: DockerHost, sifs: Sifs) -> None:
    for environment in ENVIRONMENTS:
        image = recipe(environment, "cpu")
        record = found_sif(image, "")
        docker_image = docker_host.client.images.get(image.name)
        assert record.config_digest == config_digest(docker_host.client, docker_image)
        assert {label: record.labels[label] for label in docker_image.labels} == docker_image.labels
        assert record.labels[LOCK_LABEL] == image.lock_sha256 and record.labels[BASE_LABEL] == image.base
        assert record.sha256 == sha256_file(sifs.file(environment))
        help_text = subprocess.run(
            ["apptainer", "run-help", str(sifs.file(environment))], capture_output=True, text=True, check=True
        ).stdout
        assert "python -m essence.stages" in help_text
    assert not [path.name for path in sifs.folder.iterdir() if path.name.startswith(".")]


@pytest.mark.docker
@pytest.mark.apptainer
def test_what_is_there_is_not_made_again(sifs: Sifs) -> None:
    before = {path: path.stat().st_mtime_ns for path in sifs.folder.glob("*.sif*")}
    done = invoke("sif", "--flavour", "cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is there, of essence-") == 3
    assert {path: path.stat().st_mtime_ns for path in sifs.folder.glob("*.sif*")} == before
