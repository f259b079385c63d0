"""A local source is what it holds: touched, moved, linked, gone, edited while or after it was taken in."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from essence.commands.options import select, whole_plan
from essence.commands.run_checks import check_beforehand
from essence.commands.save_plan import save_plan
from essence.data.row_files import read_rows
from essence.engines.runner import make_spec
from essence.engines.selected_run import Options, Run
from essence.errors import ExperimentError, InputError, KitError
from essence.files import sha256_file
from essence.paths import local_files
from essence.plan.catalogue import DatasetPin, missing, to_source
from essence.progress import Progress, StageContext, StopRequest
from essence.record.content import content_of
from essence.record.hash_cache import LEAST_BYTES, HashCache, cache_file
from essence.record.input_checks import own_names
from essence.record.local_sources import LocalSources
from essence.record.run_directory import StageFolder
from essence.record.stage_key import stage_key
from essence.record.verification import verify
from essence.settings import DownloadSettings
from essence.stages import download
from support.some_resources import some_resources

TEXT = 'extends = "tiny"\ntitle = "{title}"\n[datasets.tiny]\npath = "{path}"\nformat = "messages"\n'
ROW = '{"messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "<think>a</think>2"}]}\n'


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "more").mkdir(parents=True)
    (folder / "a.jsonl").write_text(ROW)
    (folder / "more" / "b.jsonl").write_text(ROW * 2)
    return folder


def experiment(folder: Path, path: Path, title: str = "Mine") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "mine.toml"
    file.write_text(TEXT.format(title=title, path=path))
    return file


def selected(file: Path, runs: Path) -> Run:
    return select(Options(experiment=str(file), runs=str(runs)), baselines=False)


def stages(file: Path, runs: Path) -> list[str]:
    return list(selected(file, runs).plan.stages)


def fetch(selection: Run) -> Path:
    """Take in the data set as a run does, in a process of its own; its stage's folder."""
    code = save_plan(whole_plan(selection), selection)
    stage = next(s for s in selection.wanted if s.title == "download dataset tiny")
    folder = selection.run_directory.stage(stage.id)
    folder.path.mkdir(parents=True, exist_ok=True)
    spec = make_spec(stage, code, selection.engine.image(stage.runs_in))
    folder.spec.write_text(json.dumps(spec.model_dump(mode="json")))
    command = [sys.executable, "-m", "essence.stages", "download", "--spec", str(folder.spec)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder.path


def test_touched_moved_renamed_or_linked_is_the_same_source(rows: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    before = stages(experiment(tmp_path / "e", rows), runs)
    for file in rows.rglob("*.jsonl"):
        os.utime(file, (1, 1))
    assert stages(experiment(tmp_path / "e", rows), runs) == before
    moved = rows.rename(tmp_path / "elsewhere")
    assert stages(experiment(tmp_path / "e", moved), runs) == before
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "a.jsonl").symlink_to(moved / "a.jsonl")
    (linked / "more").symlink_to(moved / "more")
    assert stages(experiment(tmp_path / "e", linked), runs) == before
    (moved / "more" / "b.jsonl").write_text(ROW * 3)
    assert stages(experiment(tmp_path / "e", linked), runs) != before


def test_of_a_single_file_the_ending_counts_and_not_the_name(tmp_path: Path) -> None:
    for name in ("one.jsonl", "v1.two.jsonl", "three.json", "four.jsonl.gz"):
        (tmp_path / name).write_text(ROW)
    one, two, three, four = (
        content_of(tmp_path / n) for n in ("one.jsonl", "v1.two.jsonl", "three.json", "four.jsonl.gz")
    )
    assert one == two and len({one, three, four}) == 3


def test_the_key_has_neither_the_path_nor_the_name_and_older_records_keep_theirs() -> None:
    def key(path: str, state: str, name: str = "mine") -> str:
        source = {"kind": "dataset", "name": name, "path": path, "path_state": state}
        return stage_key("download", {"source": source}, {}, {}, "")

    assert key("/a", "content:1") == key("/b", "content:1", "other") != key("/a", "content:2")
    assert key("/a", "0123") != key("/b", "0123")


def test_a_source_that_is_gone_counts_as_it_was_taken_in(rows: Path, tmp_path: Path) -> None:
    runs, file = tmp_path / "runs", experiment(tmp_path / "e", rows)
    selection = selected(file, runs)
    before, folder = list(selection.plan.stages), fetch(selection)
    assert verify(selection.run_directory, stages=[folder.name]).findings == []
    moved = rows.rename(tmp_path / "moved")
    selection = selected(experiment(tmp_path / "e", moved), runs)
    save_plan(whole_plan(selection), selection)
    shutil.rmtree(moved)
    assert stages(file, runs) == before, "gone from the place that the experiment was told last"
    assert stages(experiment(tmp_path / "e", rows), runs) == before, "gone from the place that the record names"
    carried = Path(shutil.move(runs, tmp_path / "other" / "runs"))
    again = selected(file, carried)
    assert list(again.plan.stages) == before
    assert verify(again.run_directory, stages=[folder.name]).findings == []
    # A path that was never taken in is missing, whatever else is here.
    source = to_source(
        "dataset", "mine", DatasetPin(path="/no/such", format="messages"), LocalSources(again.run_directory)
    )
    assert source.path_state is None and "does not exist" in str(missing(source))


def test_a_run_directory_inside_its_data_is_refused(rows: Path, tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=r"is inside .*; name one outside with --runs"):
        stages(experiment(tmp_path / "e", rows), rows / "runs")
    stages(experiment(tmp_path / "e", rows), tmp_path / "data-runs")


def test_links_that_lead_back_or_nowhere_are_named(rows: Path) -> None:
    (rows / "more" / "loop").symlink_to(rows)
    with pytest.raises(InputError, match=r"more/loop: a link that leads back to a folder it is in"):
        local_files(rows)
    (rows / "more" / "loop").unlink()
    (rows / "gone.jsonl").symlink_to(rows / "not-there")
    with pytest.raises(InputError, match=r"gone\.jsonl: a link that leads nowhere"):
        local_files(rows)
    with pytest.raises(InputError, match="neither a file nor a folder"):
        local_files(Path("/dev/zero"))


def test_the_root_of_all_folders_is_refused_by_whatever_name(rows: Path) -> None:
    """It would be hashed whole. A ring of links is no folder at all, and has no files."""
    (rows / "more" / "everything").symlink_to("/")
    for name in (Path("/"), rows / "more" / "everything", rows):
        with pytest.raises(InputError, match=f"{name if name != rows else ''}.*: all that this machine has"):
            local_files(name)
    (rows / "ring").symlink_to(rows / "ring")
    assert local_files(rows / "ring") == []


def test_what_changes_while_it_is_copied_is_refused(rows: Path, tmp_path: Path) -> None:
    source = to_source("dataset", "mine", DatasetPin(path=str(rows), format="messages"))
    (rows / "a.jsonl").write_text(ROW * 9)
    partial = tmp_path / "stage" / "partial"
    partial.mkdir(parents=True)
    context = StageContext(partial, {}, some_resources(threads=1), Progress(tmp_path / "p.json"), StopRequest())
    with pytest.raises(InputError, match="changed since it was planned or while it was copied"):
        download.run(DownloadSettings(source=source), context)


def test_hashes_of_large_files_are_kept_and_a_damaged_cache_is_none(tmp_path: Path) -> None:
    large, small = tmp_path / "large.bin", tmp_path / "small.bin"
    large.write_bytes(b"1" * LEAST_BYTES)
    small.write_bytes(b"2")
    past = time.time() - 60
    os.utime(large, (past, past))
    time.sleep(2.1)  # a file that was made just now is not kept
    cache = HashCache()
    assert (cache.sha256(large), cache.sha256(small)) == (sha256_file(large), sha256_file(small))
    cache.save()
    told = json.loads(cache_file().read_text())
    assert list(told["files"]) == [str(large)]
    for text in ("", "[]", "{", json.dumps({**told, "seal": "0"}), json.dumps({"files": 3}), "\x00"):
        cache_file().write_text(text)
        assert HashCache().sha256(large) == sha256_file(large)
    large.write_bytes(b"3" * LEAST_BYTES)
    os.utime(large, (past, past))
    assert HashCache().sha256(large) == sha256_file(large), "same size, same time, other bytes"


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    large = tmp_path / "large"
    large.write_bytes(b"1" * LEAST_BYTES)
    time.sleep(2.1)
    cache = HashCache()
    assert cache.sha256(large) == sha256_file(large)
    cache.save()


def edit(file: Path) -> None:
    file.write_text(ROW * 4)


def edit_in_place(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b"1+1", b"2+2"))
    os.utime(file)


def add(file: Path) -> None:
    file.with_name("z.jsonl").write_text(ROW)


@pytest.mark.parametrize(
    ("change", "word"), [(edit, "edited"), (edit_in_place, "other content"), (Path.unlink, "removed"), (add, "added")]
)
def test_an_edited_copy_is_noticed_before_anything_is_started(
    rows: Path, tmp_path: Path, change: Callable[[Path], None], word: str
) -> None:
    selection = selected(experiment(tmp_path / "e", rows), tmp_path / "runs")
    folder = fetch(selection)
    check_beforehand(selection)
    time.sleep(0.02)
    change(folder / "output" / "rows" / "a.jsonl")
    with pytest.raises(InputError) as raised:
        check_beforehand(selection)
    assert word in str(raised.value) and f"copy of {rows}, which is what to edit" in str(raised.value)
    shutil.rmtree(folder)
    check_beforehand(selected(tmp_path / "e" / "mine.toml", tmp_path / "runs"))


def test_a_copied_run_directory_is_as_good_whatever_its_times(rows: Path, tmp_path: Path) -> None:
    selection = selected(experiment(tmp_path / "e", rows), tmp_path / "runs")
    fetch(selection)
    shutil.copytree(tmp_path / "runs", tmp_path / "copy", copy_function=shutil.copyfile)
    copied = selected(tmp_path / "e" / "mine.toml", tmp_path / "copy")
    for file in (tmp_path / "copy").rglob("*.jsonl"):
        os.utime(file)
    check_beforehand(copied)
    assert [s.title for s in copied.wanted if copied.run_directory.stage(s.id).done] == ["download dataset tiny"]


@pytest.mark.parametrize("single", [True, False], ids=["a file", "a folder"])
def test_a_message_names_the_users_own_file(rows: Path, tmp_path: Path, single: bool) -> None:
    own = rows / "a.jsonl"
    own.write_text(ROW + "{broken\n")
    folder = StageFolder(fetch(selected(experiment(tmp_path / "e", own if single else rows), tmp_path / "runs")))
    with pytest.raises(InputError) as raised:
        list(read_rows(folder.output / "rows"))
    assert own_names(str(raised.value), [folder]).startswith(f"{own}:2: not valid JSON")
    folder.output.rename(folder.partial)
    copied = f"{folder.partial / 'rows' / 'a.jsonl'}: damaged"
    assert own_names(copied, [folder], partial=True) == f"{own}: damaged"


def test_a_second_file_of_one_name_is_refused_and_an_edited_or_moved_one_is_not(rows: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    first, second = experiment(tmp_path / "a", rows, "First"), experiment(tmp_path / "b", rows, "Second")

    def written(file: Path, where: Path = runs) -> None:
        selection = selected(file, where)
        save_plan(whole_plan(selection), selection)

    written(first)
    plan = (runs / "mine" / "plan.json").read_bytes()
    with pytest.raises(ExperimentError) as raised:
        written(second)
    assert str(first) in str(raised.value) and "rename one of the files, or name another run directory" in str(
        raised.value
    )
    assert (runs / "mine" / "plan.json").read_bytes() == plan
    written(experiment(tmp_path / "a", rows, "First, edited"))
    shutil.copytree(tmp_path / "a", tmp_path / "copied" / "a")
    shutil.copytree(runs, tmp_path / "copied" / "runs")
    written(experiment(tmp_path / "copied" / "a", rows, "Edited there"), tmp_path / "copied" / "runs")
    (tmp_path / "a").rename(tmp_path / "c")
    written(tmp_path / "c" / "mine.toml")


@pytest.mark.parametrize(
    "name",
    ["stages", "Stages", "code", "CODE", "locks", "experiments", "evaluate-x", ".x", "a b", "ä", "x" * 65, "a;b"],
)
def test_a_name_that_cannot_be_a_folder_of_its_own_is_refused(name: str, rows: Path, tmp_path: Path) -> None:
    file = experiment(tmp_path / "e", rows).rename(tmp_path / "e" / f"{name}.toml")
    with pytest.raises(ExperimentError) as raised:
        selected(file, tmp_path / "runs")
    assert "\n" not in str(raised.value) and "name" in str(raised.value)


def test_names_of_all_allowed_letters(rows: Path, tmp_path: Path) -> None:
    file = experiment(tmp_path / "e", rows)
    for name in ("A-b_c.d", "x" * 64, "stages-2", "recode"):
        assert (
            selected(file.with_name("mine.toml").rename(file.with_name(f"{name}.toml")), tmp_path / "runs").name == name
        )
        file = experiment(tmp_path / "e", rows)


def test_a_name_of_400_letters_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(KitError) as raised:
        selected(tmp_path / ("x" * 400 + ".toml"), tmp_path / "runs")
    assert "\n" not in str(raised.value)
