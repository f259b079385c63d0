"""Text that people write, in UTF-8: what a byte-order mark, another encoding or a place that is no file makes of it."""

import codecs
from pathlib import Path

OTHER_ENCODINGS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
"""UTF-32 first: its little-endian mark begins with that of UTF-16."""


def decode_text(content: bytes) -> str:
    """Text of a file; a byte-order mark of UTF-8 is no part of it. ValueError in words for anything but UTF-8."""
    refuse_other_encodings(content)
    try:
        return content.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"byte 0x{content[error.start]:02x} in line {line} is not UTF-8: save it as UTF-8") from None


def refuse_other_encodings(beginning: bytes) -> None:
    """ValueError where the first bytes are those of UTF-16 or UTF-32, with or without a byte-order mark."""
    for mark, name in OTHER_ENCODINGS:
        if beginning.startswith(mark):
            raise ValueError(f"it is {name}, wanted: UTF-8; save it as UTF-8")
    if b"\0" in beginning[:2]:  # TOML and JSON begin with two characters of ASCII, neither of them NUL
        raise ValueError("it is UTF-16 or binary, wanted: UTF-8; save it as UTF-8")


def read_text(path: Path) -> str:
    """Text of a file that a person wrote; ValueError in words where there is none."""
    try:
        return decode_text(path.read_bytes())
    except FileNotFoundError:
        raise ValueError("no such file") from None
    except IsADirectoryError:
        raise ValueError("a folder, wanted: a file") from None
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from None
