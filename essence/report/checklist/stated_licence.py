"""The licence of a download: what its licence files and its card say of it, and nothing beside."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from essence.record.manifest import OutputFile

LICENCE_FILE = re.compile(r"(?:(?:UN)?LICEN[CS]E|COPYING)(?:[-_. ].*)?", re.IGNORECASE)
"""`LICENSE`, `COPYING.LESSER`, and `LICENSE-MODEL` beside `LICENSE-CODE`."""
NO_TEXT = (".csv", ".json", ".jsonl", ".parquet", ".py", ".safetensors", ".sh", ".toml", ".yaml", ".yml")
"""Data or code on licences."""
PAPER = ".pdf"
"""A licence whose first line cannot be quoted."""
CARD = "readme.md"
FENCE = "---"
"""The lines around the front matter of a card."""
NO_VALUE = ("", "null", "~")
LONGEST_LICENCE_LINE = 80


@dataclass(frozen=True)
class StatedLicence:
    """What the files of one download say."""

    words: str
    known: bool
    """False: `words` is why it is not known."""


def stated_licence(folder: Path, outputs: Sequence[OutputFile]) -> StatedLicence:
    """The licence files with their hashes, and what the cards declare; `folder` is what the paths are of."""
    files = [output for output in outputs if _is_licence(Path(output.path))]
    cards = [folder / output.path for output in outputs if Path(output.path).name.lower() == CARD]
    said = [_of_file(folder, output) for output in files]
    said += [f"its card declares {words}" for card in cards if (words := _declared(card))]
    if said:
        return StatedLicence("; ".join(said), known=True)
    if any(not card.is_file() for card in cards):
        return StatedLicence("its card is not in this copy", known=False)
    return StatedLicence("no file that was downloaded states one", known=False)


def _is_licence(path: Path) -> bool:
    return LICENCE_FILE.fullmatch(path.name) is not None and path.suffix.lower() not in NO_TEXT


def _of_file(folder: Path, output: OutputFile) -> str:
    words = _first_line(folder / output.path)
    begins = f", which begins “{words}”" if words else ""
    return f"its file {Path(output.path).name}{begins} (sha256 {output.sha256[:16]})"


def _first_line(file: Path) -> str:
    """The first line with words; empty where the file is not here, or is no text."""
    if not file.is_file() or file.suffix.lower() == PAPER:
        return ""
    lines = (" ".join(line.split()) for line in _text(file).splitlines())
    return next((line[:LONGEST_LICENCE_LINE] for line in lines if line), "")


def _declared(card: Path) -> str:
    """`license` in the front matter of a card, with the name of one that is `other`; empty where there is none."""
    lines = _front_matter(card)
    found, names = (list(_values(lines, key)) for key in ("license", "license_name"))
    return ", ".join(found) + (f" ({', '.join(names)})" if found and names else "")


def _front_matter(card: Path) -> list[str]:
    head, *lines = _text(card).splitlines() or [""] if card.is_file() else [""]
    return list(takewhile(lambda line: line.strip() != FENCE, lines)) if head.strip() == FENCE else []


def _values(lines: Sequence[str], key: str) -> Iterator[str]:
    """The value of a key of the outermost table, or each of its list, in the forms that cards have in YAML."""
    place = next((n for n, line in enumerate(lines) if re.match(rf"{key}\s*:(?:\s|$)", line)), None)
    if place is None:
        return
    first = _plain(lines[place].partition(":")[2])
    below = takewhile(lambda line: not line.strip() or line.startswith((" ", "-")), lines[place + 1 :])
    if not first or re.fullmatch(r"[|>][+-]?", first):
        written = [re.sub(r"^\s*-\s+", "", line) for line in below]
    else:
        written = first.strip("[]").split(",") if first.startswith("[") else [first]
    yield from (value for text in written if (value := _plain(text)) not in NO_VALUE)


def _plain(text: str) -> str:
    """Without a comment, and without quotes."""
    return re.sub(r"(?:^|\s)#.*", "", text).strip().strip("'\"")


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8-sig", errors="replace")
