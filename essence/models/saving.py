"""Models as Hugging Face folders: written at the end of a training, and tried at its start with all but the weights.

transformers 5 saves `rope_theta` where version 4 does not look for it (and uses 10,000 without a word), and refuses to
save generation configurations that it reads.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue
from transformers import AutoConfig

from essence.errors import DiskError, InputError, disk_error
from essence.files import flush_to_disk, write_json
from essence.models.template import reason

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


def save_model(model: Any, folder: Path, tokenizer_from: Path) -> None:
    """Write a model folder that transformers 4 and 5 and vLLM read alike; its tokenizer is that of another folder."""
    shutil.rmtree(folder, ignore_errors=True)  # of a killed attempt
    model.save_pretrained(folder)
    _complete(folder, tokenizer_from)
    for path in folder.iterdir():
        flush_to_disk(path)


def try_saving(model: Any, folder: Path, scratch: Path, load_tokenizer: Callable[[Path], Any]) -> None:
    """Write all that `save_model` writes but the weights into an empty folder under `scratch`, and read it again.

    `model` is on torch's meta device. InputError when the library reads the folder's configuration and does not write
    it, or what it writes is another one; DiskError when nothing can be written there.
    """
    name = next(iter(model.state_dict()))
    with tempfile.TemporaryDirectory(prefix="try-saving-", dir=scratch) as place:
        try:
            model.save_pretrained(place, state_dict={name: torch.zeros(1)})
            _complete(Path(place), folder)
            config = AutoConfig.from_pretrained(place, local_files_only=True, trust_remote_code=False)
            tokens = load_tokenizer(Path(place)).get_vocab()
        except Exception as error:  # noqa: BLE001 - what the library cannot write it says in many ways
            raise _refusal(error, folder, Path(place)) from None
        if config.to_diff_dict() != model.config.to_diff_dict():
            raise InputError(f"{folder}: config.json is another one when saved and read again", "use another model")
        if tokens != load_tokenizer(folder).get_vocab():
            raise InputError(f"{folder}: the tokenizer is another one when saved and read again", "use another model")


def _refusal(error: Exception, folder: Path, place: Path) -> InputError | DiskError:
    refused = disk_error(error, place)
    if refused:
        return refused
    of = "generation_config.json" if "GenerationConfig" in str(error) else "the model's configuration"
    return InputError(f"{folder}: {of} can be read but not be saved again ({reason(error)})", "correct it there")


def _complete(folder: Path, tokenizer_from: Path) -> None:
    """Put the tokenizer's files beside the weights, and the rotary base where every version looks for it."""
    for name in TOKENIZER_FILES:
        if (tokenizer_from / name).is_file():
            shutil.copyfile(tokenizer_from / name, folder / name)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", with_rope_theta(config))


def with_rope_theta(config: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """A config of transformers 5 with the rotary base where transformers 4 reads it, too."""
    parameters = config.get("rope_parameters")
    theta = parameters.get("rope_theta") if isinstance(parameters, dict) else None
    return dict(config) if theta is None else {**config, "rope_theta": theta}
