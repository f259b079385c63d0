"""The output of a command under other encodings, closed and full streams, readers that leave, and Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.project import MICRO, PROJECT, command_line

PLAN = command_line("plan", "--experiment", str(MICRO))
ENCODINGS = (
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "latin-1"},
    {"PYTHONIOENCODING": "ascii:strict"},
    {"LC_ALL": "C"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
)
SAY = r"""
import sys
sys.argv = ["/bin/invoke"]
from essence.commands import terminal
terminal.prepare()
from rich.console import Console
from rich.table import Table
console = Console(width=60)
table = Table("\u2713 \u6570", title="a \u2502 b")
table.add_row("\udcff \u2026 \xe9")
console.print(table)
print("done")
terminal.check_output()
"""


def shell(line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A line of bash; `$PLAN` is a command that prints a table."""
    environment = {**os.environ, "PLAN": " ".join(PLAN), **variables}
    command = ["bash", "-o", "pipefail", "-c", line]
    return subprocess.run(command, env=environment, cwd=PROJECT, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("variables", ENCODINGS)
def test_signs_that_a_terminal_lacks_end_nothing(variables: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SAY], env={**os.environ, **variables}, cwd=PROJECT, capture_output=True
    )
    assert done.returncode == 0 and b"done" in done.stdout and done.stderr == b"", done.stderr


@pytest.mark.parametrize(("variables", "kept"), [({}, True), ({"PYTHONDONTWRITEBYTECODE": "1"}, False)])
def test_a_command_compiles_the_kit_once(tmp_path: Path, variables: dict[str, str], kept: bool) -> None:
    """invoke keeps Python from writing bytecode unless it is asked to; the kit does not, unless the caller does."""
    environment = {**os.environ, **variables, "PYTHONPYCACHEPREFIX": str(tmp_path / "bytecode")}
    line = command_line("status", "--runs", str(tmp_path / "none"))
    assert subprocess.run(line, env=environment, cwd=PROJECT, capture_output=True).returncode == 2
    compiled = {path.name.split(".")[0] for path in tmp_path.glob("bytecode/**/essence/**/*.pyc")}
    assert ("status" in compiled) == kept, compiled


@pytest.mark.parametrize("variables", ENCODINGS)
def test_json_is_json_in_every_encoding(tmp_path: Path, variables: dict[str, str]) -> None:
    lines = tmp_path / "lines.jsonl"
    lines.write_text(json.dumps({"gold": "42", "completion": "数é \\boxed{42é}"}) + "\n", encoding="utf-8")
    command, environment = command_line("grade", str(lines)), {**os.environ, **variables}
    done = subprocess.run(command, env=environment, cwd=PROJECT, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "é" in json.loads(done.stdout.decode("ascii"))["extracted"]


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("$PLAN | head -1", 0, ""),
        ("$PLAN --json | head -c 1", 0, ""),
        ("${PLAN%% *} --list | true", 0, ""),
        ("$PLAN >&-", 0, ""),
        ("$PLAN 2>&-", 0, ""),
        ("$PLAN <&-", 0, ""),
        ("$PLAN <&- >&- 2>&-", 0, ""),
        ("$PLAN > /dev/full", 2, "standard output: no space is left on its disk"),
        ("$PLAN --json > /dev/full", 2, "standard output: no space is left on its disk"),
        ("$PLAN --lsp 7 2> /dev/full", 2, ""),
        ("$PLAN --lsp 7 2>&-", 2, ""),
        ("$PLAN --lsp 7 --json >&-", 2, "--lsp 7: must be"),
        ("${PLAN%% *} grade - <&-", 2, "holds no line"),
    ],
)
def test_streams_that_are_closed_or_full(line: str, code: int, said: str) -> None:
    done = shell(line)
    assert done.returncode == code, done.stderr
    assert said in done.stderr and done.stderr.count("\n") <= 1 and "Traceback" not in done.stderr


def test_with_json_nothing_else_is_on_standard_output() -> None:
    done = shell("$PLAN --json --lsp 7")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith("--lsp 7")


def test_a_closed_output_is_no_file_that_is_written(tmp_path: Path) -> None:
    """Without a descriptor 1, the first file that is opened would be given what is printed."""
    done = shell(f"${{PLAN%% *}} run --experiment {MICRO} --dry-run --runs {tmp_path}/runs >&-; echo $?")
    assert done.stdout == "0\n" and done.stderr == ""


def test_an_argument_that_is_no_text_is_one_sentence() -> None:
    done = shell("$PLAN --runs $'/tmp/\\xff'")
    assert done.returncode == 2 and "/tmp/\\udcff: is not of the encoding utf-8" in done.stderr


def catches(process: "subprocess.Popen[str]", number: signal.Signals) -> bool:
    """True when the kernel says that a process has its own handler for a signal."""
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def interrupted(command: list[str], after_s: float, ready: signal.Signals = signal.SIGINT) -> tuple[int, str]:
    """Exit code and standard error of a command that gets Ctrl-C so long after it has a handler for `ready`."""
    process = subprocess.Popen(
        command,
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Not ignored, as it is where tests run in the background.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while process.poll() is None and not catches(process, ready):
        time.sleep(0.005)
    time.sleep(after_s)
    done_before = process.poll() == 0
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    if done_before:
        pytest.skip(f"it was done within {after_s} s")
    return process.returncode, errors


@pytest.mark.parametrize("after_s", [0.25, 0.35, 0.5, 0.7, 0.9, 1.2])
def test_ctrl_c_is_no_traceback(after_s: float) -> None:
    code, errors = interrupted(command_line("plan", "--experiment", "bespoke"), after_s)
    assert code == 130 and errors in ("", "stopped\n")


@pytest.mark.parametrize("module", ["essence.stages", "essence.stages.rank"])
def test_ctrl_c_before_a_stage_has_begun(tmp_path: Path, module: str) -> None:
    # Python itself has no handler for SIGTERM: once there is one, the stage's modules are imported.
    stage = ["download"] if module == "essence.stages" else []
    command = [sys.executable, "-m", module, *stage, "--spec", str(tmp_path / "spec.json")]
    code, errors = interrupted(command, 0.0, signal.SIGTERM)
    assert code == 75 and "Traceback" not in errors
