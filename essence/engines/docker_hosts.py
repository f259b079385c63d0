"""What a kind of Docker host needs beyond the usual: user namespaces, SELinux, engines without root, podman."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ROOT_INSIDE = "0:0"
LOG_DRIVER = "json-file"
"""One that can be read, whatever the engine's default is; podman takes the name for its own."""


@dataclass(frozen=True)
class DockerHost:
    """What an engine says of itself."""

    rootless: bool = False
    """The caller is who is root inside."""
    remapped: bool = False
    """Users inside are others outside (userns-remap), who may not write to the caller's folders."""
    selinux: bool = False
    """Folders of the host are closed to containers that carry a label of their own."""

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> "DockerHost":
        """From the answer to `docker info`."""
        options = [str(option) for option in info.get("SecurityOptions") or []]

        def has(name: str) -> bool:
            return any(name in option.split(",")[0] for option in options)

        return cls(has("rootless"), has("userns"), has("selinux"))

    def user(self, caller: tuple[int, int]) -> str:
        """Who a stage is inside, so that its files are the caller's outside."""
        return ROOT_INSIDE if self.rootless else "{}:{}".format(*caller)

    @property
    def security_options(self) -> list[str]:
        return ["no-new-privileges:true", *(["label=disable"] if self.selinux else [])]

    @property
    def user_namespace(self) -> str | None:
        """`host` where users would be remapped."""
        return "host" if self.remapped and not self.rootless else None

    def groups(self, caller: tuple[int, int]) -> list[str]:
        """The caller's further groups, which may own a shared run directory; without root they cannot be told."""
        if self.rootless or caller != (os.getuid(), os.getgid()):
            return []
        return [str(group) for group in sorted(os.getgroups()) if group != caller[1]]


USUAL = DockerHost()
