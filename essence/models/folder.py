"""Find out if a folder holds a model, as far as that is possible without torch.

The host looks before anything starts, the download stage looks at what arrived, and every stage that loads a model
looks again (essence/models/loading.py). What is refused is refused in one sentence that names the file.
"""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from essence.errors import InputError
from essence.models.decoder import BUFFERS, EMBEDDING, HEAD, KNOWN, Shape, read_sizes, ties, wanted_weights
from essence.models.headers import DOWNLOAD_AGAIN, DTYPE_BYTES, Weight, read_header
from essence.models.objects import read_object
from essence.models.template import check_template
from essence.models.tokenizer_files import check_generation_config, check_tokenizer
from essence.models.unchanged import State, state_of

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = ("pytorch_model*.bin", "*.bin", "*.pt", "*.pth", "*.ckpt")
CHUNK_BYTES = 1 << 20
DTYPES = (None, "auto", "float64", "float32", "float16", "bfloat16")
QUANTISED = ("quantization_config", "compression_config")


@dataclass(frozen=True)
class ModelFolder:
    """What a folder was found to hold."""

    config: dict[str, JsonValue]
    weights: dict[str, Weight]
    """By name; of all files together."""


def check_folder(folder: Path, named: Path | None = None) -> ModelFolder:
    """Look at everything; InputError in one sentence, in which the folder is called `named`.

    Once for each state of its files. What is given back belongs to all callers.
    """
    place = named or folder
    with _readable(folder, place):
        read_config(folder, place)  # before all below it is listed: a mistaken path may be the top of a disk
    return _look(folder, place, state_of(folder))


@functools.lru_cache(maxsize=8)
def _look(folder: Path, named: Path, _state: State) -> ModelFolder:
    with _readable(folder, named):
        config = read_config(folder, named)
        weights = read_weights(folder, named)
        _check_dtypes(weights, named)
        check_names(config, weights, named)
        check_tokenizer(folder, named, config.get("vocab_size"))
        check_generation_config(folder, named, config.get("vocab_size"))
        check_template(folder, named)
    return ModelFolder(config, weights)


@contextlib.contextmanager
def _readable(folder: Path, named: Path) -> Iterator[None]:
    """InputError for what the disk refuses, in which the folder is called `named`."""
    try:
        yield
    except OSError as error:
        place = str(error.filename or folder).replace(str(folder), str(named))
        raise InputError(f"{place}: cannot be read ({error.strerror})", "make it readable") from None


def read_config(folder: Path, named: Path | None = None) -> dict[str, JsonValue]:
    """config.json of a model that the kit can load; InputError when it is missing or of a model that it cannot."""
    place = (named or folder) / "config.json"
    if not folder.is_dir():
        raise InputError(f"{named or folder}: no such folder, so no model", "name the folder that holds config.json")
    if not (folder / "config.json").is_file():
        adapters = (folder / "adapter_config.json").is_file()
        found = "adapters alone, without the model they belong to" if adapters else "no config.json, so no model"
        raise InputError(f"{named or folder}: {found}", "give the folder of a whole model")
    config = read_object(folder / "config.json", place)
    if any(config.get(key) for key in QUANTISED):
        raise InputError(f"{place}: quantised weights are not supported", "choose the model that is not quantised")
    if config.get("auto_map"):
        raise InputError(
            f"{place}: auto_map names code that comes with the model, which is never run",
            "choose a model that transformers knows by itself",
        )
    stored = config.get("dtype", config.get("torch_dtype"))
    if stored not in DTYPES:
        raise InputError(f"{place}: dtype is {stored!r}, wanted: float32, bfloat16 or float16", DOWNLOAD_AGAIN)
    if not isinstance(config.get("model_type"), str):
        raise InputError(f"{place}: model_type is {config.get('model_type')!r}, wanted: a word", DOWNLOAD_AGAIN)
    if config["model_type"] in KNOWN:
        read_sizes(config, place)
    return config


def weight_files(folder: Path, named: Path) -> list[Path]:
    """The files that make up the model: `model.safetensors`, or all that the index names and no other."""
    there = {path.name for path in folder.glob("*.safetensors")}
    if (folder / INDEX).is_file():
        wanted = set(_weight_map(folder, named).values())
        lacking = sorted(wanted - there)
        if lacking:
            raise InputError(
                f"{named / INDEX}: names {lacking[0]}, which is not there ({len(lacking)} of {len(wanted)} shards are "
                f"missing)",
                DOWNLOAD_AGAIN,
            )
    else:
        wanted = {SINGLE}
        _check_there(folder, named, there)
    left_over = sorted(there - wanted)
    if left_over:
        by = f"{INDEX} does not name it" if (folder / INDEX).is_file() else f"{SINGLE} is all of it"
        raise InputError(f"{named / left_over[0]}: is no part of the model, {by}", "remove it")
    return [folder / name for name in sorted(wanted)]


def _check_there(folder: Path, named: Path, there: set[str]) -> None:
    if SINGLE in there:
        return
    if there:
        found = ", ".join(sorted(there)[:3])
        raise InputError(
            f"{named}: {SINGLE} is missing, and there is no {INDEX} that names other files (found: {found})",
            DOWNLOAD_AGAIN,
        )
    pickled = [path.name for pattern in PICKLED for path in sorted(folder.glob(pattern))]
    if pickled:
        raise InputError(
            f"{named}: no .safetensors file, and pickled weights ({pickled[0]}) are not read, since they run code",
            "save the model as safetensors",
        )
    raise InputError(f"{named}: no .safetensors file, so no weights", DOWNLOAD_AGAIN)


def _weight_map(folder: Path, named: Path) -> dict[str, str]:
    found = read_object(folder / INDEX, named / INDEX).get("weight_map")
    table = found if isinstance(found, dict) else {}
    files = {weight: file for weight, file in table.items() if isinstance(file, str)}
    if not files or len(files) < len(table):
        raise InputError(f"{named / INDEX}: weight_map is no table of weights and files", DOWNLOAD_AGAIN)
    outside = [name for name in files.values() if Path(name).name != name or not name.endswith(".safetensors")]
    if outside:
        raise InputError(f"{named / INDEX}: names {outside[0]}, which is no .safetensors file of this folder")
    return files


def read_weights(folder: Path, named: Path) -> dict[str, Weight]:
    """Every tensor of the folder's files, from their headers; InputError when they and the index disagree."""
    weights: dict[str, Weight] = {}
    for path in weight_files(folder, named):
        for name, weight in read_header(path, named / path.name).items():
            if name in weights:
                other = weights[name].file.name
                raise InputError(f"{named / path.name}: holds {name}, which {other} holds too", DOWNLOAD_AGAIN)
            weights[name] = weight
    if (folder / INDEX).is_file():
        for name, file in _weight_map(folder, named).items():
            if name not in weights or weights[name].file.name != file:
                raise InputError(f"{named / INDEX}: places {name} in {file}, which does not hold it", DOWNLOAD_AGAIN)
    return weights


def _check_dtypes(weights: dict[str, Weight], named: Path) -> None:
    for name, weight in weights.items():
        if weight.dtype not in DTYPE_BYTES and not BUFFERS.fullmatch(name):
            raise InputError(
                f"{named / weight.file.name}: {name} is stored as {weight.dtype}, quantised weights are not supported; "
                f"wanted: {', '.join(DTYPE_BYTES)}"
            )


def check_names(config: Mapping[str, JsonValue], weights: dict[str, Weight], named: Path) -> None:
    """Every weight that config.json promises is there in its shape, and none is left over, where the kind is known."""
    wanted = wanted_weights(config, named / "config.json")
    if wanted is None:
        return
    lacking = [name for name in wanted if name not in weights]
    if lacking:
        raise InputError(
            f"{named}: {len(lacking)} weights that config.json promises are missing, the first is {lacking[0]}",
            DOWNLOAD_AGAIN,
        )
    for name, shape in wanted.items():
        if weights[name].shape != shape:
            raise InputError(_other_shape(named, name, weights[name], shape))
    if ties(config) and HEAD in weights:
        _check_tied(weights[HEAD], weights[EMBEDDING], named)
    left_over = [n for n in weights if n not in wanted and n != HEAD and not BUFFERS.fullmatch(n)]
    if left_over:
        file = weights[left_over[0]].file.name
        raise InputError(
            f"{named / file}: {len(left_over)} weights have no place in a model of this config.json, the first is "
            f"{left_over[0]}",
            "give the model its own config.json",
        )


def _other_shape(named: Path, name: str, weight: Weight, shape: Shape) -> str:
    return (
        f"{named / weight.file.name}: {name} has shape {list(weight.shape)}, config.json says {list(shape)}; give the "
        "model its own config.json"
    )


def _check_tied(head: Weight, embedding: Weight, named: Path) -> None:
    """A stored head that is tied is the embedding to the bit; otherwise readers differ in which they use."""
    same = (head.dtype, head.shape) == (embedding.dtype, embedding.shape) and _same_bytes(head, embedding)
    if not same:
        raise InputError(
            f"{named / head.file.name}: {HEAD} is not {EMBEDDING}, but config.json has tie_word_embeddings = true",
            "set it to false there if the head is one of its own",
        )


def _same_bytes(one: Weight, other: Weight) -> bool:
    with one.file.open("rb") as first, other.file.open("rb") as second:
        first.seek(one.start)
        second.seek(other.start)
        left = one.end - one.start
        while left > 0:
            size = min(CHUNK_BYTES, left)
            if first.read(size) != second.read(size):
                return False
            left -= size
    return True
