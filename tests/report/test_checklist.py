"""Checklists from records: every answer has its manifest, what is not recorded is not known, LaTeX stays LaTeX."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from essence.report.checklist.answers import ACCENTED, Answered, answer, as_latex, as_text, latex
from essence.report.checklist.known_facts import FACTS, NOTHING_OF
from essence.report.checklist.venues import VENUES, Question, Venue
from essence.report.claims.retention_rows import read_with_retention
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
    assert "by itself: sums-test avg@4 over 40 problems, 95 % intervals: Wilson score interval" in sentences
    assert "4,000 of 4,001 rows kept" in sentences and "2,000 rows for training, 100 for validation" in sentences


@pytest.mark.parametrize(("venue", "number"), [("acl", "C3"), ("neurips", "7"), ("ae", "A.6")])
def test_an_accuracy_has_the_method_of_its_own_interval(results: Results, venue: str, number: str) -> None:
    for arm in (arm for group in results.groups for arm in group.arms):
        pooled = arm.pooled["sums-test", "best"].accuracy
        stages = tuple(cell.scores[0].grade.id for cell in arm.cells)
        (fact,) = [one for one in answers(results, venue)[number].known if one.stages == stages]
        assert "crossed problems and seeds" in pooled.method and f"(2 trainings; {pooled.method})." in fact.sentence


def test_a_student_that_was_fine_tuned_learned_from_no_teacher(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, lsps=(0.5, 1.0), seeds=(1,), texts=False).write()
    alone = run.stage_of(0, "train")
    resolved = json.loads((run.root / "stages" / alone / "manifest.json").read_text())["settings"]["resolved"]
    without = {**resolved, "objective": {**resolved["objective"], "kd_weight": 0.0}}
    run.damage(alone, settings={"resolved": without, "executed": {}})
    found = answers(read_with_retention(run.root, "tiny"), "neurips")["16"].known
    assert [(fact.sentence, fact.stages) for fact in found] == [
        ("tiny-student learns from tiny-teacher on sums (p+cot+a supervised, corrected protocol), LSP 1.",
         (run.stage_of(1, "train"),)),
        ("tiny-student is fine-tuned on sums, without a teacher (p+cot+a supervised, corrected protocol), LSP 0.5.",
         (alone,)),
    ]  # fmt: skip
    run.damage(run.stage_of(1, "train"), settings={"resolved": without, "executed": {}})
    found = answers(read_with_retention(run.root, "tiny"), "acl")["C3"].known
    assert not any("tiny-teacher" in fact.sentence for fact in found)
    assert any("sums, tiny-student without a teacher" in fact.sentence for fact in found)


def test_a_record_that_does_not_tell_the_loss_is_not_taken_for_one_without_a_teacher(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, lsps=(1.0,), seeds=(1,), texts=False).write()
    run.damage(run.stage_of(0, "train"), settings={"resolved": {"objective": {}}, "executed": {}})
    (fact,) = answers(read_with_retention(run.root, "tiny"), "neurips")["16"].known
    assert "learns from tiny-teacher" in fact.sentence


def test_a_setting_leads_to_every_manifest_that_has_one_of_its_values(run: SyntheticRun, results: Results) -> None:
    trains = [run.stage_of(cell, "train") for cell in range(4)]
    facts = {fact.sentence: fact.stages for fact in answers(results, "acl")["C2"].known}
    assert facts["Training view.lsp: 0.5, 1.0."] == (trains[0], trains[2], trains[1], trains[3])
    assert facts["Training objective.kd_weight: 0.5."] == tuple(trains)
    hosts = [fact for fact in answers(results, "acl")["C1"].known if fact.sentence.startswith("Hardware host")]
    assert set(hosts[0].stages) == {stage.id for stage in results.stages}


def commands(run: SyntheticRun) -> tuple[bool, str]:
    (fact,) = FACTS["commands"](read_with_retention(run.root, run.experiment))
    return fact.known, fact.sentence


def test_commands_name_the_run_directory_and_what_it_ran_in(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "my runs", lsps=(1.0,), seeds=(1,), texts=False).write()
    folder = shlex.quote(str(run.root))
    assert commands(run) == (
        True,
        f"To reproduce: make setup; invoke reproduce tiny --runs {folder}; "
        f"invoke report --experiment tiny --runs {folder}; invoke verify {folder}.",
    )
    (run.root / "tiny" / "experiment.json").write_text(json.dumps({"file": {"path": "/kit/experiments/tiny.toml"}}))
    assert commands(run)[1].endswith("tiny/experiment.json has every setting).")
    train = run.stage_of(0, "train")
    record = json.loads((run.root / "stages" / train / "manifest.json").read_text())
    run.damage(train, cost={**record["cost"], "gpu_hours": 2.0})
    assert "make setup-gpu; invoke reproduce tiny --engine local --runs" in commands(run)[1]
    work = [name for name, entry in run.plan["stages"].items() if entry["stage"] != "download"]
    for name in work:
        run.damage(name, image={**record["image"], "engine": "docker"})
    assert "make setup; invoke images; invoke reproduce tiny --engine docker --runs" in commands(run)[1]
    run.damage(train, cost=record["cost"], image={**record["image"], "engine": "apptainer"})
    mixed = commands(run)[1]
    assert "invoke images --flavour cpu" in mixed and "invoke sif --flavour cpu" in mixed and "--engine" not in mixed


def test_commands_name_local_copies(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, lsps=(1.0,), seeds=(1,), texts=False).write()
    stage = next(one for one, entry in run.plan["stages"].items() if entry["title"] == "download tiny-student")
    source = {"kind": "model", "name": "tiny-student", "path": "/models/tiny", "path_state": "ab" * 32}
    run.damage(stage, settings={"resolved": {"source": source}, "executed": {}})
    known, sentence = commands(run)
    assert known and "invoke reproduce tiny --pins FILE --runs" in sentence
    assert sentence.endswith("(FILE names local copies of tiny-student).")


@pytest.mark.parametrize(("name", "file"), [("mine", None), ("tiny", "/home/a/tiny.toml")])
def test_commands_of_an_experiment_of_ones_own_are_not_known(tmp_path: Path, name: str, file: str | None) -> None:
    run = SyntheticRun(tmp_path, experiment=name, lsps=(1.0,), seeds=(1,), texts=False).write()
    if file:
        (run.root / name / "experiment.json").write_text(json.dumps({"file": {"path": file}}))
    assert commands(run) == (False, "commands: the experiment is no file of the kit.")


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
        ("LICENSE-APACHE", "Apache License\n", True, "its file LICENSE-APACHE, which begins “Apache License”"),
        ("LICENSE-MODEL", "Terms\n", True, "its file LICENSE-MODEL, which begins “Terms”"),
        ("LICENSE-2.0.pdf", "%PDF", True, "its file LICENSE-2.0.pdf (sha256"),
        ("license_list.json", "{}", False, "no file that was downloaded states one"),
        ("README.md", "---\nlicense:\n- mit\n- 'apache-2.0'  # both\ntags:\n- x\n---\n", True, "mit, apache-2.0."),
        ("README.md", "---\nlicense:\n  - mit\n---\n", True, "its card declares mit."),
        ("README.md", "\ufeff---\nlicense: [mit, \"bsd-2-clause\"]\n---\n", True, "declares mit, bsd-2-clause."),
        ("README.md", "---\nlicense: other\nlicense_name: qwen\n---\n", True, "its card declares other (qwen)."),
        ("README.md", "---\nlicense: null\n---\n", False, "no file that was downloaded states one"),
        ("README.md", "---\nlicense:\ntags:\n- x\n---\n", False, "no file that was downloaded states one"),
        ("README.md", None, False, "its card is not in this copy"),
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


@given(st.text() | st.text("-'`,?!–’“[]"))
def test_any_text_is_escaped(words: str) -> None:
    made = latex(words)
    signs = r"\\(?:text[a-z]+|ldots|copyright)\{\}|\\`\{\}|\\[{}$&#%_]|\{[\[\]]\}|\{\}|\$(?:\\[a-z]+|-)\$|~"
    plain = re.sub(signs, "", made)
    assert not SPECIAL & set(plain) and "\n" not in made
    assert all(sign.isascii() or sign in ACCENTED for sign in made)
    pairs = {"--": "–—", "''": "”", "``": "“", ",,": "", "?`": "", "!`": ""}
    assert not any(pair in made for pair, dashes in pairs.items() if not set(dashes) & set(words))


@pytest.mark.parametrize(
    ("words", "made"),
    [
        ("invoke claims --experiment tiny-controls", "invoke claims -{}-experiment tiny-controls"),
        ("a–b, “c”", "a--b, ``c''"),
        ("Ж [é]", "{[}CYRILLIC CAPITAL LETTER ZHE{]} {[}é{]}"),
        ("e\u0301 ≤ 中", r"é $\leq$ {[}CJK UNIFIED IDEOGRAPH-4E2D{]}"),
    ],
)
def test_options_stay_options_and_letters_without_a_font_are_named(words: str, made: str) -> None:
    assert latex(words) == made


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
