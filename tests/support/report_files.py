"""Where the files of a report are."""

from pathlib import Path

from support.synthetic_run import SyntheticRun


def page_of(run: SyntheticRun) -> Path:
    return run.root / run.experiment / "report" / "report.html"


def files(report: Path) -> set[str]:
    """Of a page, all that lies beside and below it, itself included."""
    return {p.relative_to(report.parent).as_posix() for p in report.parent.rglob("*") if p.is_file()}
