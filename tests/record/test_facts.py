"""What a record says of the code that made it."""

import subprocess
from pathlib import Path

from essence.record.facts import code_facts


def repository(folder: Path) -> Path:
    folder.mkdir()
    somebody = ("-c", "user.name=a", "-c", "user.email=a@b")
    for words in (("init", "-q"), (*somebody, "commit", "-q", "--allow-empty", "-m", "a")):
        subprocess.run(["git", "-C", str(folder), *words], check=True)
    return folder


def test_links_and_repositories_beside_the_code_are_named_in_the_diff(tmp_path: Path) -> None:
    """As people link a scratch disk or a data folder into their checkout."""
    project = repository(tmp_path / "project")
    clean, diff = code_facts(project)
    assert clean["commit"] and clean["dirty"] is False and diff == ""
    (project / "notes.txt").write_text("a")
    (project / "scratch").symlink_to(tmp_path)
    (project / "gone").symlink_to(tmp_path / "nothing")
    repository(project / "inner")
    facts, diff = code_facts(project)
    assert facts["dirty"] and facts["commit"] == clean["commit"]
    assert f"untracked: scratch -> {tmp_path}\n" in diff and f"untracked: gone -> {tmp_path / 'nothing'}\n" in diff
    assert "untracked: inner/ no file\n" in diff and "untracked: notes.txt ca978112" in diff
    (project / "scratch").unlink()
    (project / "scratch").symlink_to(tmp_path / "project")
    assert code_facts(project)[0]["diff_sha256"] != facts["diff_sha256"]
