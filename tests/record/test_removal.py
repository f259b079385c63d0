"""What `invoke clean` removes, and what it never does, on made-up run directories of real files."""

import io
import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from essence.commands.clean import clean
from essence.errors import HeldError, KitError, RecordError
from essence.record.removal import REMOVING, removable
from essence.record.run_directory import RunDirectory, hold

KINDS = ("download", "tokenize", "train", "generate", "grade")
WIDTH = 3


def name(kind: str, number: int) -> str:
    return f"{kind}-{number:016x}"


@dataclass
class MadeUp:
    """A run directory whose experiments name stages of a pool: each kind reads the one before it."""

    root: Path
    folders: set[str] = field(default_factory=set)

    def stage(self, kind: str, number: int, finished: bool = True, earlier_code: bool = False) -> str:
        identifier, folder = name(kind, number), self.root / "stages" / name(kind, number)
        if identifier in self.folders:
            return identifier
        self.folders.add(identifier)
        (folder / "output").mkdir(parents=True)
        before = KINDS.index(kind) - 1
        inputs = {"input": f"../{self.stage(KINDS[before], number % WIDTH)}"} if before >= 0 else {}
        code = {"stage": kind, "source_sha256": "0" * 64} if earlier_code else {}
        (folder / "spec.json").write_text(json.dumps({"title": f"{kind} {number}", "inputs": inputs, **code}))
        (folder / "output" / "result.txt").write_text(identifier)
        if finished:
            (folder / "manifest.json").write_text(json.dumps({"identity": {"stage": kind}}))
        return identifier

    def experiment(
        self,
        title: str,
        planned: list[str],
        reported: list[str] | None = None,
        replaced: str | None = None,
    ) -> Path:
        """`replaced`: what was finished in the place of the first stage of the plan."""
        folder = self.root / title
        folder.mkdir(parents=True, exist_ok=True)
        stages: dict[str, Any] = {stage: {} for stage in planned}
        if replaced and planned:
            why = {"under": "earlier code", "causes": ["grade.py changed"], "acceptable": True}
            stages[planned[0]] = {"earlier": {"stage": replaced, **why}}
        (folder / "plan.json").write_text(json.dumps({"stages": stages}))
        (folder / "experiment.json").write_text(json.dumps({"settings": {}}))
        if reported is not None:
            (folder / "report").mkdir(exist_ok=True)
            (folder / "report" / "report.json").write_text(json.dumps({"records": dict.fromkeys(reported, "0")}))
        return folder

    def clean(
        self,
        experiment: str | None = None,
        confirmed: bool = True,
        earlier: bool = False,
        told: io.StringIO | None = None,
    ) -> str:
        told = told or io.StringIO()
        assert clean(RunDirectory(self.root), experiment, confirmed, Console(file=told, width=10_000), earlier) == 0
        return told.getvalue()

    def there(self) -> set[str]:
        return {path.name for path in self.root.glob("stages/*-*/")}

    def whole(self, stage: str) -> bool:
        folder = self.root / "stages" / stage
        return (folder / "output" / "result.txt").read_text() == stage and (folder / "manifest.json").is_file()


@pytest.fixture
def run(tmp_path: Path) -> MadeUp:
    return MadeUp(tmp_path / "runs")


STAGES = st.tuples(st.sampled_from(KINDS), st.integers(0, 2 * WIDTH), st.booleans(), st.booleans())
EXPERIMENTS = st.sampled_from(("alpha", "beta", "Beta-2", "evaluate-best-aime25-0a1b2c3d", "stages", "code"))
COMMANDS = st.tuples(st.one_of(st.none(), EXPERIMENTS), st.booleans(), st.booleans())
"""Experiment, `--yes`, `--earlier`."""
REPLACED = st.tuples(st.sampled_from(KINDS), st.integers(2 * WIDTH + 1, 2 * WIDTH + 2), st.just(True), st.just(False))
NAMED = st.tuples(
    st.lists(STAGES, max_size=4), st.one_of(st.none(), st.lists(STAGES, max_size=3)), st.one_of(st.none(), REPLACED)
)
"""Stages of the plan, of the report, and what was finished in the place of the first planned one."""


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(
    plans=st.dictionaries(EXPERIMENTS, NAMED, min_size=2, max_size=5),
    stale=st.lists(STAGES, max_size=4),
    commands=st.lists(COMMANDS, min_size=5, max_size=5),
)
def test_no_clean_removes_what_a_plan_or_a_report_names(
    plans: dict[str, Any], stale: list[Any], commands: list[tuple[str | None, bool, bool]]
) -> None:
    """Five commands an example: two hundred in all."""
    with tempfile.TemporaryDirectory() as folder:
        made = MadeUp(Path(folder) / "runs")
        named, replaced = dict[str, set[str]](), dict[str, set[str]]()
        for title, (planned, reported, before_it) in plans.items():
            stages = [made.stage(*one) for one in planned]
            shown = None if reported is None else [made.stage(*one) for one in reported]
            earlier = made.stage(*before_it) if before_it and planned else None
            made.experiment(title, stages, shown, earlier)
            named[title] = with_inputs(made, {*stages, *(shown or [])})
            replaced[title] = {earlier} - {None}
        for one in stale:
            made.stage(*one)
        finished = {stage for stage in made.there() if (made.root / "stages" / stage / "manifest.json").exists()}
        for experiment, confirmed, too in commands:
            before, kept = made.there(), finished & made.there()
            paid = paid_earlier(made, set().union(*replaced.values()), kept) & before
            try:
                made.clean(experiment, confirmed, too)
            except RecordError as error:
                assert "has not run" in str(error)
                assert made.there() == before
                continue
            if not confirmed:
                assert made.there() == before
            elif experiment is not None:
                del named[experiment], replaced[experiment]
                assert not (made.root / experiment).exists()
            needed = set().union(*named.values())
            for stage in needed & finished:
                assert made.whole(stage), f"{experiment} removed {stage}"
            if experiment is None and not too:
                assert paid <= made.there(), "finished work of earlier code went unasked"
            if confirmed and experiment is None:  # whatever nothing needs is gone
                assert made.there() <= needed | (set() if too else paid)


def with_inputs(made: MadeUp, stages: set[str]) -> set[str]:
    found, waiting = set[str](), list(stages)
    while waiting:
        found.add(stage := waiting.pop())
        waiting += inputs(made, stage)
    return found


def inputs(made: MadeUp, stage: str) -> list[str]:
    file = made.root / "stages" / stage / "spec.json"
    read = json.loads(file.read_text())["inputs"].values() if file.is_file() else []
    return [place.removeprefix("../") for place in read]


def paid_earlier(made: MadeUp, replaced: set[str], finished: set[str]) -> set[str]:
    """Finished stages of earlier code or replaced in a plan, what was made of them, and what all of these read."""
    found = replaced & finished
    for kind in KINDS:
        for stage in (one for one in finished if one.startswith(kind)):
            spec = json.loads((made.root / "stages" / stage / "spec.json").read_text())
            if "source_sha256" in spec or found & set(inputs(made, stage)):
                found.add(stage)
    return with_inputs(made, found)


def test_what_is_planned_while_others_are_removed_stays(run: MadeUp) -> None:
    """The plan is saved between the look at what nothing names and the removal of the first of these."""
    first, second = run.stage("grade", 1), run.stage("grade", 2)

    class SavesAPlan(io.StringIO):
        def write(self, text: str) -> int:
            if "removing" in text and not (run.root / "new").exists():
                run.experiment("new", [second])
            return super().write(text)

    told = run.clean(told=SavesAPlan())
    assert f"removing {run.root / 'stages' / second}" in told
    assert run.there() == with_inputs(run, {second}) and run.whole(second) and first not in run.there()


@pytest.mark.parametrize("title", ["stages", "code"])
def test_an_experiment_of_an_earlier_version_called_as_the_kits_own_folder_takes_nothing_with_it(
    run: MadeUp, title: str
) -> None:
    first, second = run.stage("train", 1), run.stage("train", 2)
    run.experiment("good", [first])
    run.experiment(title, [second])
    with pytest.raises(RecordError, match=f"{title} has not run"):
        run.clean(title)
    run.clean()
    assert run.whole(first) and run.whole(second)


def test_files_of_somebody_else_in_an_experiments_folder_stay(run: MadeUp) -> None:
    folder = run.experiment("mine", [run.stage("train", 1)], reported=[])
    (folder / "mine.toml").write_text("title = 'mine'")
    assert f"{folder} stays: not of this kit are mine.toml" in run.clean("mine")
    assert [path.name for path in folder.iterdir()] == ["mine.toml"] and run.there() == set()


def test_folders_that_are_no_stages_stay(run: MadeUp) -> None:
    run.stage("train", 1)
    (run.root / "stages" / "my-notes").mkdir()
    run.clean()
    assert run.there() == {"my-notes"}


def test_links_are_removed_and_what_they_lead_to_stays(run: MadeUp, tmp_path: Path) -> None:
    stale, moved = run.root / "stages" / run.stage("train", 1), tmp_path / "other-disk"
    stale.rename(moved)
    stale.symlink_to(moved)
    kept = run.stage("train", 2)
    other = run.root / "stages" / name("train", 9)
    other.symlink_to(run.root / "stages" / kept)
    run.experiment("one", [other.name])
    folder = run.experiment("two", [other.name])
    (run.root / "alias").symlink_to(folder)
    assert "(a link: what it leads to stays)" in run.clean()
    assert (moved / "manifest.json").is_file() and not stale.is_symlink()
    assert other.is_symlink() and run.whole(kept)
    run.clean("alias")
    assert (folder / "plan.json").is_file() and run.whole(kept)


def test_a_source_that_lies_in_a_stage_and_was_not_taken_in_keeps_the_stage(run: MadeUp) -> None:
    trained = run.stage("train", 1)
    run.experiment("first", [trained])
    second = run.experiment("second", [name("download", 77)])
    path = run.root / "stages" / trained / "output"
    told = {"settings": {name("download", 77): {"source": {"path": str(path)}}}}
    (second / "experiment.json").write_text(json.dumps(told))
    run.clean("first")
    assert run.whole(trained)


@pytest.mark.parametrize("damage", ["{", "[]", "{}", '{"stages": []}'])
def test_nothing_goes_while_a_plan_cannot_be_read(run: MadeUp, damage: str) -> None:
    stage = run.stage("train", 1)
    (run.experiment("torn", [stage]) / "plan.json").write_text(damage)
    run.experiment("other", [run.stage("train", 2)])
    for experiment in (None, "other"):
        with pytest.raises(RecordError, match="nothing is removed while it cannot be read"):
            run.clean(experiment)
    assert run.whole(stage)


def test_what_a_killed_removal_left_goes_next_time(run: MadeUp) -> None:
    half = run.root / "stages" / run.stage("train", 1)
    half.rename(half.with_name(f"{REMOVING}{half.name}"))
    assert "left by a removal that was stopped" in run.clean(confirmed=False)
    run.clean()
    assert not list((run.root / "stages").glob(".*"))


def test_what_is_held_stays(run: MadeUp) -> None:
    stage = run.stage("train", 1, finished=False)
    with hold(run.root / "stages" / stage, "the stage", "a test"), pytest.raises(HeldError, match="stop it first"):
        run.clean()
    assert stage in run.there()


def test_says_what_would_go_and_why(run: MadeUp) -> None:
    shared = run.stage("train", 1)
    run.experiment("one", [shared, run.stage("train", 2)])
    run.experiment("two", [shared])
    run.stage("grade", 5)
    told = run.clean("one", confirmed=False)
    assert f"would remove {run.root / 'stages' / name('train', 2)}: train 2; only one names it" in told
    assert "stages stay, other plans or reports name them" in told and "add --yes" in told
    assert "grade 5; no plan or report names it" in run.clean(confirmed=False)
    assert removable(RunDirectory(run.root), "one").experiment == run.root / "one"


def test_a_folder_that_may_not_be_written_is_one_sentence(run: MadeUp) -> None:
    if os.geteuid() == 0:
        pytest.skip("the superuser may write anywhere")
    run.stage("train", 1)
    (run.root / "stages").chmod(0o500)
    try:
        with pytest.raises(KitError, match="may not write"):
            run.clean()
    finally:
        (run.root / "stages").chmod(0o700)


def test_what_was_compiled_goes_with_the_last_stage_of_its_environment(tmp_path: Path) -> None:
    runs = RunDirectory(tmp_path)
    made = MadeUp(tmp_path)
    stage = runs.stage(made.stage("generate", 0))
    spec = json.loads(stage.spec.read_text())
    stage.spec.write_text(json.dumps({**spec, "environment": {"lock_sha256": "a"}}))
    made.experiment("one", [stage.path.name])
    used, unused = (runs.compiled({"lock_sha256": lock}) for lock in "ab")
    for folder in (used, unused):
        (folder / "vllm").mkdir(parents=True)
    said = io.StringIO()
    clean(runs, None, confirmed=False, console=Console(file=said, width=400))
    assert f"would remove {unused}: compiled in an environment that no stage here has" in said.getvalue()
    assert unused.is_dir() and str(used) not in said.getvalue()
    clean(runs, None, confirmed=True, console=Console(file=io.StringIO()))
    assert used.is_dir() and not unused.exists()
