"""Over what NCCL brings ranks together: it says so itself in its log, channel by channel, when ranks meet.

The lines are as NCCL 2.2x writes them: `... NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM`.
"""

import re
from pathlib import Path

LOG = "nccl-"
CHANNEL = re.compile(r"NCCL INFO Channel \S+ : .* via (\S+)")


def nccl_tells(folder: Path) -> dict[str, str]:
    """Variables with which each rank writes a log of how it met the others into a folder."""
    return {
        "NCCL_DEBUG": "INFO",
        "NCCL_DEBUG_SUBSYS": "INIT",
        "NCCL_DEBUG_FILE": str(folder / f"{LOG}%p"),
    }


def nccl_channels(folder: Path) -> list[str]:
    """`P2P/CUMEM`, `SHM/direct`, `NET/IB`: each once, as the ranks named them; empty without NCCL."""
    told = (file.read_text(encoding="utf-8", errors="replace") for file in folder.glob(f"{LOG}*"))
    return sorted({_kind(found) for text in told for found in CHANNEL.findall(text)})


def _kind(channel: str) -> str:
    """Without the number of a network card, and without who writes: `NET/IB/0/GDRDMA` is `NET/IB`."""
    return "/".join(channel.split("/")[:2])
