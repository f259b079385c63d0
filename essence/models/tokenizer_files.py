"""The tokenizer's files and the generation configuration of a model folder, as far as they can be judged as JSON."""

from pathlib import Path
from typing import Any

from pydantic import JsonValue

from essence.errors import InputError
from essence.models.headers import DOWNLOAD_AGAIN
from essence.models.objects import read_object

TOKENIZER, TOKENIZER_CONFIG, GENERATION = "tokenizer.json", "tokenizer_config.json", "generation_config.json"
ONLY_SAMPLING = {"temperature": 1.0, "top_p": 1.0, "typical_p": 1.0, "top_k": 50, "min_p": None}
"""What has no effect without do_sample, with the values that say nothing; the library refuses to save any other."""


def check_tokenizer(folder: Path, named: Path, vocabulary: Any) -> None:
    """The tokenizer is there and no token of it is beyond the `vocabulary` rows of the embedding."""
    if not (folder / TOKENIZER).is_file():
        raise InputError(f"{named}: no {TOKENIZER}, so no usable tokenizer", DOWNLOAD_AGAIN)
    described = read_object(folder / TOKENIZER, named / TOKENIZER)
    model = described.get("model")
    if not isinstance(model, dict):
        raise InputError(f"{named / TOKENIZER}: holds no model of a tokenizer", DOWNLOAD_AGAIN)
    if (folder / TOKENIZER_CONFIG).exists():
        read_object(folder / TOKENIZER_CONFIG, named / TOKENIZER_CONFIG)
    largest = _largest_id(model.get("vocab"), described.get("added_tokens"))
    if type(vocabulary) is int and largest >= vocabulary:
        raise InputError(
            f"{named / TOKENIZER}: has a token with id {largest}, but the embedding of the model has {vocabulary} rows "
            "(vocab_size in config.json)",
            "give the model its own tokenizer",
        )


def _largest_id(vocabulary: JsonValue, added: JsonValue) -> int:
    listed = len(vocabulary) - 1 if isinstance(vocabulary, list) else -1
    numbers = list(vocabulary.values()) if isinstance(vocabulary, dict) else [listed]
    numbers += [entry.get("id") for entry in added if isinstance(entry, dict)] if isinstance(added, list) else []
    return max((number for number in numbers if type(number) is int), default=-1)


def check_generation_config(folder: Path, named: Path, vocabulary: Any) -> None:
    """Where there is one, its stop tokens are tokens, and the library can write it back."""
    place = named / GENERATION
    if not (folder / GENERATION).exists():
        return
    found = read_object(folder / GENERATION, place)
    stops = found.get("eos_token_id")
    ids = stops if isinstance(stops, list) else [] if stops is None else [stops]
    for number in ids:
        if type(number) is not int or number < 0 or (type(vocabulary) is int and number >= vocabulary):
            raise InputError(f"{place}: eos_token_id has {number!r}, which is no token of the model", DOWNLOAD_AGAIN)
    idle = [name for name, value in ONLY_SAMPLING.items() if found.get(name, value) not in (value, None)]
    if idle and found.get("do_sample") is not True:
        raise InputError(
            f"{place}: has {idle[0]} = {found[idle[0]]} without do_sample = true, which cannot be saved again",
            "set do_sample to true there, or take it out",
        )
