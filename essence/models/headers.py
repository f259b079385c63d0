"""What a .safetensors file says it holds, read without torch: names, dtypes, shapes, and whether all bytes are there.

The format: 8 bytes with the length of the header, the header (a JSON object: name -> dtype, shape, data_offsets), then
the tensors' bytes without gaps.
"""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from essence.errors import InputError

LENGTH = struct.Struct("<Q")
MOST_HEADER_BYTES = 100_000_000
"""As the library that writes these files has it."""
POINTER_START = b"version https://git-lfs.github.com/spec"
DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""What a weight may be stored in; anything else is a quantised weight, or none."""
OTHER_BYTES = {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}
DOWNLOAD_AGAIN = "download it again"


@dataclass(frozen=True)
class Weight:
    """One tensor of a file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    """Of its bytes in the file."""
    end: int


def is_pointer(path: Path) -> bool:
    """True when the file only stands for one in large-file storage (git-lfs)."""
    with path.open("rb") as file:
        return file.read(len(POINTER_START)) == POINTER_START


def check_no_pointer(path: Path, named: Path) -> None:
    """InputError for a file that only stands for another one."""
    if is_pointer(path):
        raise InputError(
            f"{named}: is a pointer of large-file storage, not the file itself", "fetch the files with `git lfs pull`"
        )


def read_header(path: Path, named: Path) -> dict[str, Weight]:
    """The tensors of a file by name; InputError, which calls the file `named`, when it is damaged or cut off."""
    check_no_pointer(path, named)
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(LENGTH.size)
        length = LENGTH.unpack(start)[0] if len(start) == LENGTH.size else 0
        if not 0 < length <= min(MOST_HEADER_BYTES, size - LENGTH.size):
            raise InputError(f"{named}: damaged weights, {size} bytes without a whole header", DOWNLOAD_AGAIN)
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f"{named}: damaged weights, the header is not JSON", DOWNLOAD_AGAIN) from None
    if not isinstance(header, dict):
        raise InputError(f"{named}: damaged weights, the header is no object", DOWNLOAD_AGAIN)
    header.pop("__metadata__", None)
    first = LENGTH.size + length
    weights = {name: _weight(path, named, name, entry, first) for name, entry in header.items()}
    _check_bytes(weights, first, size, named)
    return weights


def _weight(path: Path, named: Path, name: str, entry: Any, first: int) -> Weight:
    try:
        dtype, shape, (start, end) = str(entry["dtype"]), tuple(entry["shape"]), entry["data_offsets"]
        whole = all(type(number) is int and number >= 0 for number in (*shape, start, end))
    except (TypeError, KeyError, ValueError):
        whole = False
    if not whole:
        raise InputError(f"{named}: damaged weights, {name} has no dtype, shape and place", DOWNLOAD_AGAIN)
    width = DTYPE_BYTES.get(dtype) or OTHER_BYTES.get(dtype)
    if width and end - start != width * math.prod(shape):
        raise InputError(
            f"{named}: damaged weights, {name} of shape {list(shape)} and dtype {dtype} has {end - start} bytes",
            DOWNLOAD_AGAIN,
        )
    return Weight(path, dtype, shape, first + start, first + end)


def _check_bytes(weights: dict[str, Weight], first: int, size: int, named: Path) -> None:
    """The tensors lie one behind the other, and the last one ends where the file does."""
    place = first
    for name, weight in sorted(weights.items(), key=lambda item: (item[1].start, item[1].end)):
        if weight.start != place:
            raise InputError(
                f"{named}: damaged weights, {name} does not begin where the one before ends", DOWNLOAD_AGAIN
            )
        place = weight.end
    if place != size:
        found = "cut off" if size < place else "longer than its tensors"
        raise InputError(f"{named}: damaged weights, {found} ({size} bytes, wanted: {place})", DOWNLOAD_AGAIN)
