"""The JSON files of a model folder, and the sentence for one that cannot be used."""

from pathlib import Path

from pydantic import JsonValue

from essence.errors import InputError, RecordError
from essence.files import read_json
from essence.models.headers import DOWNLOAD_AGAIN, check_no_pointer


def read_object(path: Path, named: Path) -> dict[str, JsonValue]:
    """A JSON object of a model folder; InputError, which calls the file `named`, when the file is none."""
    if path.is_file():
        check_no_pointer(path, named)
    try:
        return read_json(path)
    except RecordError as error:
        raise InputError(str(error).replace(str(path), str(named)), DOWNLOAD_AGAIN) from None
