"""The container of a stage, in the words of docker-py and in those of the command line."""

from collections.abc import Sequence
from typing import Literal, TypedDict

from docker.types import DeviceRequest, LogConfig, Ulimit
from docker.types import Mount as Bind

from essence.engines.docker_hosts import LOG_DRIVER, USUAL, DockerHost
from essence.engines.engine import PRIVATE_TMP, Launch
from essence.engines.secrets import Token
from essence.files import GIB

TMPFS_OPTIONS = "rw,exec,nosuid,nodev,mode=1777"  # exec: compiled kernels are loaded from there


class Creation(TypedDict):
    """What `docker create` is told, in the words of docker-py."""

    command: list[str]
    environment: dict[str, str]
    user: str
    working_dir: str
    mounts: list[Bind]
    network_mode: Literal["bridge", "none"]
    read_only: bool
    tmpfs: dict[str, str]
    cap_drop: list[str]
    security_opt: list[str]
    init: bool
    """Without it the first process ignores the signal that asks it to stop."""
    shm_size: int
    """Bytes, as the two limits; None = no limit."""
    mem_limit: int | None
    memswap_limit: int | None
    ulimits: list[Ulimit]
    device_requests: list[DeviceRequest]
    log_config: LogConfig
    group_add: list[str]
    userns_mode: str | None
    use_config_proxy: bool
    """Whether the client's own configuration may add variables: what it knows of proxies."""


def creation(around: Launch, secret: Token | None, host: DockerHost) -> Creation:
    """The container of a stage."""
    resources = around.resources
    variables = around.contained_variables() | (secret.variables(inside=True) if secret else {})
    mounts = [*around.mounts, *([secret.mount] if secret else [])]
    memory = int(resources.memory_gib * GIB) or None
    return {
        "command": ["python", *around.arguments],
        "environment": variables,
        "user": host.user(around.user),
        "working_dir": str(around.folder.path),
        "mounts": [Bind(str(m.target), str(m.source), type="bind", read_only=m.read_only) for m in mounts],
        "network_mode": "bridge" if around.network else "none",
        "read_only": True,
        "tmpfs": {str(PRIVATE_TMP): TMPFS_OPTIONS},
        "cap_drop": ["ALL"],
        "security_opt": host.security_options,
        "init": True,
        "shm_size": int(resources.shm_gib * GIB),
        "mem_limit": memory,
        "memswap_limit": memory,
        "ulimits": [Ulimit(name=name, soft=limit, hard=limit) for name, limit in resources.ulimits.items()],
        "device_requests": [gpu_request(resources.gpus, around.chosen_gpus())] if resources.gpus else [],
        "log_config": LogConfig(type=LOG_DRIVER),
        "group_add": host.groups(around.user),
        "userns_mode": host.user_namespace,
        "use_config_proxy": around.network,
    }


def argv(surroundings: Launch, image: str) -> list[str]:
    """The same in the words of the command line; a token is not part of it."""
    options = creation(surroundings, None, USUAL)
    line = ["docker", "run", "--rm", "--init", "--read-only", "--cap-drop=ALL"]
    line += [f"--security-opt={option}" for option in options["security_opt"]]
    line += [f"--user={options['user']}", f"--network={options['network_mode']}"]
    line += [f"--tmpfs={path}:{how}" for path, how in options["tmpfs"].items()]
    line += [f"--log-driver={LOG_DRIVER}", *(f"--group-add={group}" for group in options["group_add"])]
    line += [f"--shm-size={options['shm_size']}", f"--workdir={options['working_dir']}"]
    if options["mem_limit"]:
        line += [f"--memory={options['mem_limit']}", f"--memory-swap={options['mem_limit']}"]
    line += [f"--ulimit={limit['Name']}={limit['Soft']}" for limit in options["ulimits"]]
    if gpus := surroundings.resources.gpus:
        chosen = surroundings.chosen_gpus()
        line.append(f'--gpus="device={",".join(chosen)}"' if chosen else f"--gpus={gpus}")
    for mount in surroundings.mounts:
        line.append(f"--mount=type=bind,source={mount.source},target={mount.target}{',ro' * mount.read_only}")
    line += [f"--env={name}={value}" for name, value in options["environment"].items()]
    return [*line, image, *options["command"]]


def gpu_request(count: int, names: Sequence[str]) -> DeviceRequest:
    """These GPUs; where they have no names, so many."""
    if names:
        return DeviceRequest(device_ids=list(names), capabilities=[["gpu"]])
    return DeviceRequest(count=count, capabilities=[["gpu"]])
