"""The caller's login to a registry, as `docker login` or `apptainer registry login` keeps it; the kit keeps none.

A password goes to the registry, and to Apptainer in its own environment: never into an argument, a message or a record.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from essence.errors import MachineError

PROGRAMS = ("APPTAINER", "SINGULARITY")
OWN_FILE = "docker-config.json"
"""Of Apptainer, in the same format as Docker's."""


@dataclass(frozen=True)
class Login:
    """A user of a registry."""

    user: str
    password: str = field(repr=False)

    def variables(self) -> dict[str, str]:
        """For Apptainer's own environment, under both of its names."""
        return {
            f"{program}_DOCKER_{name}": value
            for program in PROGRAMS
            for name, value in (("USERNAME", self.user), ("PASSWORD", self.password))
        }


def find_login(host: str) -> Login | None:
    """From Apptainer's variables, else what one of the two programs keeps; None = not logged in.

    Raises:
        MachineError: a login is kept in a way that cannot be read.
    """
    from docker.auth import load_config
    from docker.errors import DockerException

    for program in PROGRAMS:
        if (user := os.environ.get(f"{program}_DOCKER_USERNAME")) is not None:
            return Login(user, os.environ.get(f"{program}_DOCKER_PASSWORD", ""))
    for file in (None, *_own_files()):
        try:
            kept = load_config(file and str(file)).resolve_authconfig(host) or {}
        except (DockerException, OSError, ValueError) as error:
            # What a helper of Docker printed may hold anything: only the kind of failure is said.
            raise MachineError(
                f"the login for {host} that {file or 'Docker'} keeps cannot be read ({type(error).__name__})",
                f"log in again: {how_to_log_in(host)}",
            ) from None
        user = kept.get("username", kept.get("Username"))
        password = kept.get("password", kept.get("Password"))
        if user and password:
            return Login(user, password)
    return None


def _own_files() -> list[Path]:
    folders = [os.environ.get(f"{program}_CONFIGDIR") for program in PROGRAMS]
    home = [Path(os.path.expanduser(f"~/.{program.lower()}")) for program in PROGRAMS]  # noqa: PTH111  may be absent
    files = [Path(folder) / OWN_FILE for folder in folders if folder] + [folder / OWN_FILE for folder in home]
    return [file for file in files if file.is_file()]


def how_to_log_in(host: str) -> str:
    return f"docker login {host}, or apptainer registry login --username NAME docker://{host}"
