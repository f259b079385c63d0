"""Checklists from records: every answer has its manifest, what is not recorded is not known, LaTeX stays LaTeX."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from essence.report.checklist.answers import Answered, answer, as_latex, as_text, latex
from essence.report.checklist.known_facts import FACTS, NOTHING_OF
from essence.report.checklist.venues import VENUES, Question, Venue
from essence.report.claims.kept import read_with_retention
from essence.report.results.records import Results
from support.project import invoke
from support.synthetic_run import SyntheticRun

SPECIAL = set("\\{}$&#%_^~<>|")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SyntheticRun:
    return SyntheticRun(tmp_path_factory.mktemp("run"), lsps=(0.5, 1.0), texts=False).write()


@pytest.fixture(scope="module")
def results(run: SyntheticRun) -> Results:
    return read_with_retention(run.root, "tiny")


def answers(results: Results, venue: str) -> dict[str, Answered]:
    return {one.number: one for one in answer(VENUES[venue], results)}


def test_every_question_asks_for_facts_that_there_are() -> None:
    asked = {name for venue in VENUES.values() for question in venue.questions for name in question.facts}
    assert asked == FACTS.keys() == NOTHING_OF.keys()
    assert all(question.facts or question.open for venue in VENUES.values() for question in venue.questions)


@pytest.mark.parametrize("venue", VENUES)
def test_every_answer_leads_to_manifests_that_are_there(run: SyntheticRun, results: Results, venue: str) -> None:
    found = answer(VENUES[venue], results)
    facts = [fact for one in found for fact in one.known]
    assert len(facts) > 10
    for fact in facts:
        assert fact.stages or fact.sentence.startswith("To reproduce")
        assert all((run.root / "stages" / stage / "manifest.json").is_file() for stage in fact.stages)
        assert "–" not in fact.sentence and "None" not in fact.sentence and fact.sentence.endswith(".")
    text = as_text(VENUES[venue], results, found)
    assert all(fact.sentence in text for fact in facts)


def test_hours_seeds_trainings_and_intervals_are_those_of_the_records(results: Results) -> None:
    found = answers(results, "acl")
    sentences = "\n".join(fact.sentence for number in ("C1", "C3", "B6") for fact in found[number].known)
    assert "Training: 4 finished" in sentences and "no GPU hours" in sentences and "wall/CPU 1.00 to 1.00" in sentences
    assert "4 trainings, seeds 1, 2; arms (one proportion in one setting) by trainings: 2 with 2." in sentences
    assert "sums-test avg@4 over 40 problems, 95 % intervals: Wilson score interval" in sentences
    assert "4,000 of 4,001 rows kept" in sentences and "2,000 rows for training, 100 for validation" in sentences


def test_nothing_is_known_of_a_run_that_has_not_begun(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, lsps=(0.5, 1.0), texts=False, finished=False).write()
    results = read_with_retention(run.root, "tiny")
    for venue in VENUES.values():
        for one in answer(venue, results):
            assert all(fact.sentence.startswith("To reproduce") for fact in one.known)
        text = as_text(venue, results, answer(venue, results))
        assert (
            "not known: machines" in text
            and "not known: cost of 21 of 21 planned stages" in text
            and " 0 GPU" not in text
            and "0.0" not in text
            and "yes" not in text.lower().split()
        )


def test_an_edited_record_counts_for_nothing_and_is_named(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, lsps=(0.5, 1.0), seeds=(1,), texts=False).write()
    file = run.root / "stages" / run.stage_of(0, "train") / "manifest.json"
    file.write_text(file.read_text().replace('"gpu_hours": 0.0', '"gpu_hours": 7.0'))
    results = read_with_retention(run.root, "tiny")
    text = as_text(VENUES["acl"], results, answer(VENUES["acl"], results))
    assert f"cannot be believed: {run.stage_of(0, 'train')}" in text and "7.00" not in text


@pytest.mark.parametrize(
    ("name", "content", "known", "words"),
    [
        ("LICENSE", "\n   Apache License\n  Version 2.0\n", True, "LICENSE, which begins “Apache License”"),
        ("LICENSE.txt", None, True, "its file LICENSE.txt (sha256"),
        ("README.md", "---\ntags: [x]\nlicense: cc-by-4.0\n---\n# Card\n", True, "its card declares cc-by-4.0"),
        ("README.md", "# Card\nlicense: mit\n", False, "no file that was downloaded states one"),
        ("config.json", "{}", False, "no file that was downloaded states one"),
    ],
)  # fmt: skip
def test_a_licence_is_what_a_file_states(
    tmp_path: Path, name: str, content: str | None, known: bool, words: str
) -> None:
    run = SyntheticRun(tmp_path, lsps=(0.5, 1.0), seeds=(1,), texts=False).write()
    stage = next(one for one, entry in run.plan["stages"].items() if entry["title"] == "download tiny-student")
    source = {"kind": "model", "name": "qwen", "repository": "Qwen/Qwen3-4B-Base", "commit": "9" * 40}
    output = {"path": f"model/{name}", "bytes": 9, "sha256": "ab" * 32}
    if content is not None:
        (run.root / "stages" / stage / "output" / "model").mkdir()
        (run.root / "stages" / stage / "output" / "model" / name).write_text(content)
    run.damage(stage, settings={"resolved": {"source": source}, "executed": {}}, outputs=[output])
    facts = [f for f in answers(read_with_retention(run.root, "tiny"), "acl")["B2"].facts if "qwen" in f.sentence]
    assert [(fact.known, words in fact.sentence) for fact in facts] == [(known, True)]


@given(st.text())
def test_any_text_is_escaped(words: str) -> None:
    made = latex(words)
    plain = re.sub(r"\\text[a-z]+\{\}|\\`\{\}|\\[{}$&#%_]|\$\\(?:rightarrow|times)\$|~", "", made)
    assert not SPECIAL & set(plain) and "\n" not in made


def environments_are_balanced(text: str) -> bool:
    open_ones: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            open_ones.append(name)
        elif not open_ones or open_ones.pop() != name:
            return False
    bare = re.sub(r"\\[{}\\]", "", text)
    return not open_ones and bare.count("{") == bare.count("}") and re.sub(r"\\\$", "", bare).count("$") % 2 == 0


@pytest.mark.parametrize("venue", VENUES)
def test_the_latex_is_whole(tmp_path: Path, venue: str) -> None:
    run = SyntheticRun(
        tmp_path, lsps=(0.5, 1.0), seeds=(1,), texts=False, student="a_b%c&d#{e}$f^~", dataset="x\\y<z>"
    ).write()
    results = read_with_retention(run.root, "tiny")
    text = as_latex(VENUES[venue], results, answer(VENUES[venue], results))
    assert environments_are_balanced(text) and not environments_are_balanced(text.replace(r"\end{itemize}", "", 1))
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert "%" not in body.replace(r"\%", "") and "&" not in body.replace(r"\&", "")
    if shutil.which("pdflatex"):
        document = rf"\documentclass{{article}}\usepackage[T1]{{fontenc}}\begin{{document}}{text}\end{{document}}"
        (tmp_path / "c.tex").write_text(document)
        done = subprocess.run(["pdflatex", "-halt-on-error", "c.tex"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:]


def test_a_question_without_any_fact_is_not_known(results: Results) -> None:
    venue = Venue("One", (Question("1", "Is it so?", open="whether it is"),))
    assert "not known: whether it is" in as_text(venue, results, answer(venue, results))
    assert r"\emph{not known:} whether it is" in as_latex(venue, results, answer(venue, results))


def test_the_command_prints_writes_and_refuses(run: SyntheticRun, tmp_path: Path) -> None:
    here = ("checklist", "--runs", str(run.root))
    printed = invoke(*here, "--venue", "neurips", "--json")
    assert printed.returncode == 0 and len(json.loads(printed.stdout)["questions"]) == 16
    file = tmp_path / "checklist.tex"
    done = invoke(*here, "--venue", "ae", "--format", "latex", "--output", str(file))
    assert done.returncode == 0 and file.read_text().startswith("% Made by")
    wrong = invoke(*here, "--venue", "ac")
    assert wrong.returncode == 2 and "--venue ac: unknown venue" in wrong.stderr and "acl, neurips, ae" in wrong.stderr
    told = invoke("--help", "checklist").stdout
    assert "acl, neurips or ae" in told and "text or latex" in told and "default: print it" in told
    shape = invoke(*here, "--venue", "acl", "--format", "pdf")
    assert shape.returncode == 2 and "--format pdf: unknown format (known: text, latex)" in shape.stderr
