"""Code of a test that runs instead of a stage, in the stage's surroundings."""

from dataclasses import dataclass, fields

from essence.engines.engine import Launch


@dataclass(frozen=True)
class Looking(Launch):
    """A stage's surroundings in which other Python code runs."""

    code: str = ""

    @property
    def arguments(self) -> list[str]:
        return ["-c", self.code]


def looking(around: Launch, code: str) -> Looking:
    return Looking(**{field.name: getattr(around, field.name) for field in fields(Launch)}, code=code)


LOOK = """
import importlib.util, json, os, pathlib, socket
def fails(what):
    try: what()
    except OSError as error: return type(error).__name__
    return None
own, read = pathlib.Path.cwd(), pathlib.Path.cwd().parent / "input"
(own / "made.txt").write_text("made")
status = pathlib.Path("/proc/self/status").read_text()
found = {
  "uid": [os.getuid(), os.getgid()],
  "interfaces": [name for _, name in socket.if_nameindex()],
  "connect": fails(lambda: socket.create_connection(("192.0.2.1", 80), timeout=3)),
  "neighbours": sorted(p.name for p in own.parent.iterdir()),
  "capabilities": [line.split()[1] for line in status.splitlines() if line.startswith(("CapEff", "CapPrm", "CapBnd"))],
  "no_new_privileges": "NoNewPrivs:\\t1" in status,
  "variables": {k: v for k, v in os.environ.items()},
}
def write(*places): return {str(place): fails(lambda: pathlib.Path(place, "x").write_text("x")) for place in places}
"""
"""What every stage can see and do; a test adds its own to `found` and prints it as JSON."""
