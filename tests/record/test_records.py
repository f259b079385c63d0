"""Records come back as objects, or one sentence says what is wrong; they are written as they were read."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from essence.errors import KitError, RecordError
from essence.record.attempts import AttemptJournal
from essence.record.live_records import ProgressRecord, look_at, read_spec, read_whole_spec, stage_settings
from essence.record.plan_record import read_plan
from essence.record.record_files import seal_of
from essence.record.recount import result_findings
from essence.record.run_directory import RunDirectory, StageFolder
from essence.record.stage_checks import executed_findings, key_findings
from essence.record.stage_records import GradeManifest, read_manifest
from essence.record.training_records import LayersFacts, Preflight
from essence.report.build import report_is_current, write_report
from essence.report.recheck import report_findings
from support.finished_runs import unpack_schema_1

SEVERAL = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
ODD = st.sampled_from([None, "x", -1, 0.5, True, [], {}, [None], {"x": 1}, 10**400, "\u2028"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return unpack_schema_1(tmp_path_factory.mktemp("records"))


def places(value: Any, above: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Every place in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, below in inner for found in [(*above, key), *places(below, (*above, key))]]


def mutated(whole: Any, chance: random.Random, odd: Any) -> Any:
    """The value with something removed, or something odd in its place."""
    value = json.loads(json.dumps(whole))
    *above, last = chance.choice(places(value))
    part = value
    for key in above:
        part = part[key]
    if chance.random() < 0.3:
        del part[last]
    else:
        part[last] = odd
    return value


@given(seed=st.integers(0, 2**32), odd=ODD)
@SEVERAL
def test_a_damaged_manifest_is_read_equal_or_named_in_one_sentence(run: RunDirectory, seed: int, odd: Any) -> None:
    chance = random.Random(seed)
    file = chance.choice(sorted(run.stages.glob("*/manifest.json")))
    damaged = file.with_name("damaged.json")
    record = mutated(json.loads(file.read_text(encoding="utf-8")), chance, odd)
    damaged.write_text(json.dumps(record), encoding="utf-8")
    folder = StageFolder(file.parent)
    try:
        manifest = read_manifest(damaged)
        assert manifest.as_written == record
        for check in (executed_findings, key_findings, result_findings):
            assert all(isinstance(finding, str) for finding in check(folder, manifest))
    except KitError as error:
        assert "\n" not in str(error) and str(run.root) in str(error)


@given(seed=st.integers(0, 2**32), odd=ODD)
@SEVERAL
def test_a_damaged_plan_is_read_or_named_in_one_sentence(run: RunDirectory, seed: int, odd: Any) -> None:
    damaged = run.root / "damaged.json"
    plan = json.loads(run.plan("micro").read_text(encoding="utf-8"))
    damaged.write_text(json.dumps(mutated(plan, random.Random(seed), odd)), encoding="utf-8")
    try:
        assert read_plan(damaged).cells
    except RecordError as error:
        assert str(error).startswith(f"{damaged}: ") and "\n" not in str(error)


def torn(whole: Any, chance: random.Random) -> str:
    """The text of a record that ends too early."""
    text = json.dumps(whole)
    return text[: chance.randrange(len(text))]


@given(seed=st.integers(0, 2**32), odd=ODD, cut=st.booleans())
@SEVERAL
def test_a_damaged_spec_is_read_or_named_in_one_sentence(run: RunDirectory, seed: int, odd: Any, cut: bool) -> None:
    chance = random.Random(seed)
    spec = json.loads(chance.choice(sorted(run.stages.glob("*/spec.json"))).read_text(encoding="utf-8"))
    damaged = run.root / "damaged-spec.json"
    damaged.write_text(torn(spec, chance) if cut else json.dumps(mutated(spec, chance, odd)), encoding="utf-8")
    for read in (read_spec, read_whole_spec, lambda file: stage_settings(file, read_whole_spec(file))):
        try:
            assert read(damaged)
        except RecordError as error:
            assert str(error).startswith(f"{damaged}: ") and "\n" not in str(error)


PROGRESS = {
    "phase": "train", "done": 3, "total": 8, "unit": "steps", "note": "", "seconds_left": 1.5, "updated": 1.7e9,
    "pid": 7,
    "gpus": [{"busy_percent": 9.0, "memory_gib": 1.0, "total_gib": 80.0}],
}  # fmt: skip
ATTEMPTS = [{"started": "2026-07-01T10:00:00+00:00", "unix": 1.7e9}, {"ended": "killed", "seconds": 4.0}]


@given(seed=st.integers(0, 2**32), odd=ODD, cut=st.booleans())
@SEVERAL
def test_damaged_progress_and_attempts_stop_nothing(run: RunDirectory, seed: int, odd: Any, cut: bool) -> None:
    chance = random.Random(seed)
    folder = StageFolder(run.stages / "train-damaged")
    folder.path.mkdir(exist_ok=True)
    lines = [torn(line, chance) if cut else json.dumps(mutated(line, chance, odd)) for line in ATTEMPTS]
    folder.progress.write_text(torn(PROGRESS, chance) if cut else json.dumps(mutated(PROGRESS, chance, odd)))
    folder.attempts.write_text("".join(f"{line}\n" for line in lines))
    seen = look_at(folder.progress, ProgressRecord)
    assert seen is None or seen.updated == PROGRESS["updated"] or seen.updated == odd
    journal = AttemptJournal(folder.attempts, folder.progress)
    assert journal.attempts()[-1].outcome in ("finished", "killed")


@pytest.fixture(scope="module")
def report(run: RunDirectory) -> dict[str, Any]:
    """The record of a report that the present code has made."""
    record: dict[str, Any] = json.loads((write_report(run.root, "micro").parent / "report.json").read_text())
    assert report_findings(run, "micro")[0] == []
    return record


@given(seed=st.integers(0, 2**32), odd=ODD, cut=st.booleans(), sealed=st.booleans())
@settings(SEVERAL, max_examples=40)
def test_a_damaged_report_is_findings_of_one_line_each(
    run: RunDirectory, report: dict[str, Any], seed: int, odd: Any, cut: bool, sealed: bool
) -> None:
    chance = random.Random(seed)
    record = mutated(report, chance, odd)
    if sealed:  # as if the kit had written it so
        record["seal"] = seal_of(record)
    file = run.report("micro") / "report.json"
    file.write_text(torn(record, chance) if cut else json.dumps(record), encoding="utf-8")
    findings, unchecked = report_findings(run, "micro")
    assert findings or unchecked or sealed or record == report, "a damaged seal is found whatever else is there"
    assert all("\n" not in line and str(run.root) in line for line in [*findings, *unchecked])
    assert report_is_current(run.root, "micro") in (True, False)


def test_records_are_written_as_they_were_read(run: RunDirectory) -> None:
    files = sorted(run.stages.glob("*/manifest.json"))
    assert len(files) == 15
    for file in files:
        read = json.loads(file.read_text(encoding="utf-8"))
        manifest = read_manifest(file)
        written = manifest.sealed()
        assert manifest.is_sealed
        for group, later in (("code", "modules"), ("inputs", "accepted")):
            part = written[group]
            assert isinstance(part, dict)
            if later not in read[group]:  # this version writes them, empty
                assert not part.pop(later)
        assert json.dumps({**written, "seal": read["seal"]}) == json.dumps(read)
    plan = json.loads(run.plan("micro").read_text(encoding="utf-8"))
    assert json.dumps(read_plan(run.plan("micro")).as_json()) == json.dumps(plan)


def test_a_later_field_of_a_stage_is_kept_and_one_of_another_type_is_named(run: RunDirectory, tmp_path: Path) -> None:
    file, copy = next(run.stages.glob("grade-*/manifest.json")), tmp_path / "manifest.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    record["results"]["of_a_later_version"] = 1
    copy.write_text(json.dumps(record), encoding="utf-8")
    manifest = read_manifest(copy)
    assert isinstance(manifest, GradeManifest) and not manifest.is_sealed
    assert manifest.results.model_dump()["of_a_later_version"] == 1
    record["results"]["accuracy"] = "all"
    copy.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(RecordError, match=r"not the manifest of a grade stage of this kit: results.accuracy = 'all'"):
        read_manifest(copy)


def test_what_is_added_to_a_part_of_a_record_is_written() -> None:
    """The record of every training lacked why its layers ran as they are."""
    why = LayersFacts.model_validate({"fell_back": ["no compiler here"]})
    first = Preflight.model_validate({"teacher_bytes": 1})
    for whole in (first.model_copy(update={"layers": why}), first.plus(layers=why)):
        assert whole.model_dump() == {"teacher_bytes": 1, "layers": {"fell_back": ["no compiler here"]}}
    changed = first.model_copy(update={"teacher_bytes": 2})
    assert changed.model_dump() == {"teacher_bytes": 2} and first.model_dump() == {"teacher_bytes": 1}
