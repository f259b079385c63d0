"""The numbers by which a launcher names a rank, as they are in the environment."""

from collections.abc import Mapping

from essence.errors import MachineError


def rank_variable(environment: Mapping[str, str], name: str, otherwise: str = "") -> int:
    """The number of a variable such as RANK; MachineError where it is none."""
    text = environment.get(name, otherwise)
    if not (text.isascii() and text.isdigit()):
        raise MachineError(
            f"{name} = '{text}' in the environment: must be a whole number, as torchrun or srun sets it", "unset it"
        )
    return int(text)
