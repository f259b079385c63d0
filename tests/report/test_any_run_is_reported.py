"""A report of any run: any share of problems solved, any seed missing, any stage failed, running, busy or edited."""

import contextlib
import json
import random
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from rich.console import Console

from essence.commands.report import print_report
from essence.record.record_files import gives_seal
from essence.record.run_directory import RunDirectory, hold
from essence.report.build import SCHEMA_VERSION
from support.synthetic_run import REAL, SyntheticRun

LSPS = (0.1, 0.5, 1.0)
SHARES = st.sampled_from((0.0, 0.02, 0.2, 0.5, 0.98, 1.0))
HAPPENS = ("done", "left", "failed", "interrupted", "running", "busy", "resumed", "edited", "damaged", "no cpu time")
NEVER_CLOSED = {"meta", "link", "input", "br", "wbr", "hr", "img"}


class Page(HTMLParser):
    """Counts rows of tables; fails where an element is closed that is not open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.rows += tag == "tr"
        if tag not in NEVER_CLOSED:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag


def happen(run: SyntheticRun, stage: str, what: str, stack: contextlib.ExitStack) -> None:
    """Make a finished stage look as if that had happened to it."""
    folder = run.root / "stages" / stage
    file = folder / "manifest.json"
    record = json.loads(file.read_text()) if file.is_file() else {}
    if what == "failed":
        run.fail(stage, "CUDA out of memory\nin the middle <b>of</b> it")
    elif what in ("left", "interrupted", "running"):
        run.leave(stage)
    if what == "interrupted":
        (folder / "attempts.jsonl").write_text('{"started": "2026-07-01T10:00:00+00:00", "pid": 1}\n')
    if what == "running":
        stack.enter_context(hold(folder, "train", "invoke run"))
    if what in ("busy", "no cpu time") and record:
        run.damage(stage, cost={**record["cost"], "wall_s": 300.0, "cpu_s": 60.0 if what == "busy" else 0.0})
    if what == "resumed" and record:
        attempts = [{"started": "2026-07-01T10:00:00+00:00", "seconds": 5.0, "outcome": end}
                    for end in ("killed", "finished")]  # fmt: skip
        run.damage(stage, identity={**record["identity"], "attempts": attempts})
    if what == "edited" and record:
        file.write_text(json.dumps({**record, "seeds": {"sampling": 9}}))
    if what == "damaged" and record:
        file.write_text(file.read_text()[:40])


@contextlib.contextmanager
def some_run(root: Path, accuracy: dict[float, float], seeds: int, fates: random.Random) -> Iterator[SyntheticRun]:
    """A run of a setting of the paper in which about a third of all stages did not end well."""
    untrained, texts = fates.choice((0.0, 0.05, 1.0)), fates.random() < 0.3
    run = SyntheticRun(
        root, experiment="any", lsps=LSPS, seeds=range(seeds), accuracy=accuracy, untrained=untrained, texts=texts,
        **REAL,
    ).write()  # fmt: skip
    with contextlib.ExitStack() as stack:
        for stage in run.plan["stages"]:
            if fates.random() < 0.35:
                happen(run, stage, fates.choice(HAPPENS), stack)
        yield run


@pytest.mark.slow
@settings(max_examples=12, deadline=None, derandomize=True, phases=(Phase.explicit, Phase.generate))
@given(
    accuracy=st.fixed_dictionaries(dict.fromkeys(LSPS, SHARES)), seeds=st.integers(1, 3), number=st.integers(0, 10**6)
)
def test_any_run_ends_with_0_and_a_page(
    tmp_path_factory: pytest.TempPathFactory, accuracy: dict[float, float], seeds: int, number: int
) -> None:
    root = tmp_path_factory.mktemp("any")
    with some_run(root, accuracy, seeds, random.Random(number)) as run:
        console = Console(file=(root / "printed.txt").open("w"), width=100)
        assert print_report(RunDirectory(run.root), "any", (), False, console) == 0
    folder = root / "any" / "report"
    record = json.loads((folder / "report.json").read_text(), parse_constant=pytest.fail)
    assert record["schema_version"] == SCHEMA_VERSION and gives_seal(record)
    assert len(record["claims"]) > 10 and len(record["groups"]) == 1
    page = Page()
    page.feed((folder / "report.html").read_text())
    assert page.open == [] and page.rows > 5
    html = (folder / "report.html").read_text()
    assert html.count('id="claim-') == len(record["claims"])


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_nothing_and_everything_solved_is_a_page(tmp_path: Path, share: float) -> None:
    run = SyntheticRun(
        tmp_path, experiment="any", lsps=LSPS, accuracy=dict.fromkeys(LSPS, share), untrained=share, texts=False, **REAL
    ).write()
    assert print_report(RunDirectory(run.root), "any", (), False, Console(quiet=True)) == 0
    claims = json.loads((tmp_path / "any" / "report" / "report.json").read_text())["claims"]
    words = {claim["id"]: claim["word"] for claim in claims}
    assert words["retention-half"] != "not reproduced" and (share or words["retention-half"] != "reproduced")
