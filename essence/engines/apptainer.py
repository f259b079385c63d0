"""The words of `apptainer exec` for a stage: the same where the kit starts it and where a batch text does."""

from collections.abc import Iterable

from essence.engines.surroundings import Mount, Surroundings


def apptainer_words(around: Surroundings, bound: Iterable[str], *, no_network: bool, no_privileges: bool) -> list[str]:
    """`apptainer exec` up to the image: nothing of the host but the folders in `bound`.

    `no_network` takes the network from a stage that needs none. `no_privileges` is for a root user without all of
    root's capabilities.
    """
    words = ["apptainer", "exec", "--containall", "--cleanenv", "--no-home"]
    words += ["--no-privs"] if no_privileges else []
    words += ["--nv"] if around.resources.gpus else []
    words += ["--net", "--network=none"] if no_network and not around.network else []
    words += [f"--bind={bind}" for bind in bound]
    return [*words, f"--pwd={around.folder.path}"]


def binds(mounts: Iterable[Mount]) -> list[str]:
    """`source:target:ro|rw` of each folder."""
    return [f"{mount.source}:{mount.target}:{'ro' if mount.read_only else 'rw'}" for mount in mounts]
