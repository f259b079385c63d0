"""The one door through which a stage loads a model: checked before an hour is spent on it, from local files only.

transformers 5 loads a checkpoint in the dtype it was saved in, fills missing weights at random with a warning, takes
integers for weights, leaves over what has no place, and lets a head that should be tied be one of its own. What it
would do with a folder it tells without reading a weight, when it loads onto torch's `meta` device: so it is asked,
whatever the kind of model, and no decoder is given a folder that has not passed.
"""

import functools
import importlib.util
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging

from essence.errors import InputError
from essence.models.decoder import KNOWN
from essence.models.folder import check_folder
from essence.models.headers import DOWNLOAD_AGAIN
from essence.models.saving import try_saving
from essence.models.template import QUESTION, reason
from essence.models.unchanged import State, state_of

SAID = "the model cannot be loaded"


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder; InputError when there is none or it cannot be read.

    One object for each state of the folder's files: it is asked, and not changed.
    """
    return _tokenizer(folder, state_of(folder))


@functools.lru_cache(maxsize=4)
def _tokenizer(folder: Path, _state: State) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001 - the tokenizers library raises Exception itself for a damaged file
        raise InputError(f"{folder}: no usable tokenizer ({reason(error)})", DOWNLOAD_AGAIN) from None


def check_model(folder: Path, scratch: Path) -> dict[str, Any]:
    """Pass a folder, or refuse it; its config.json. Nothing of its weights is read but their headers.

    Its files are what they say, the tokenizer reads and writes, the library finds a place for every weight and a weight
    for every place, and all but the weights can be written back, which is tried in `scratch`.

    Raises:
        InputError: in one sentence, what is wrong with which file.
    """
    config = check_folder(folder).config
    model = without_weights(folder, config)
    _check_tokenizer(load_tokenizer(folder), config.get("vocab_size"), folder)
    try_saving(model, folder, scratch, load_tokenizer)
    return config


def without_weights(folder: Path, config: dict[str, Any]) -> Any:
    """The model on torch's meta device; InputError where the library would not take every weight from the files.

    config: of `folder.check_folder`, which the folder has passed.

    The environment of evaluation has no accelerate, without which the library loads nothing there. Then `check_folder`
    has compared names and shapes where it knows the kind by heart, and a model of another kind is loaded to see.
    """
    logging.disable_progress_bar()
    try:
        if importlib.util.find_spec("accelerate"):
            model, found = _from_files(folder, device_map="meta")
        elif config.get("model_type") in KNOWN:
            return _from_config(folder)
        else:
            model, found = _from_files(folder)
    except Exception as error:  # noqa: BLE001 - a configuration can make the library raise anything; nothing was loaded
        said = f"{type(error).__name__}: {reason(error)}"
        raise InputError(f"{folder}: {SAID} ({said})", DOWNLOAD_AGAIN) from None
    _check_found(found, folder)
    return model


def _from_config(folder: Path, **options: Any) -> Any:
    """The model as its configurations describe it, without a weight."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False, **options)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model


def load_model(folder: Path, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """A causal language model whose every weight comes from the folder's safetensors files, in `dtype`, and is finite.

    Raises:
        InputError: a file is missing or damaged, a weight is missing, left over, of another shape or not finite.
    """
    without_weights(folder, check_folder(folder).config)
    try:
        model, found = _from_files(folder, dtype=dtype, attn_implementation="sdpa")
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{folder}: {SAID} ({reason(error)})", DOWNLOAD_AGAIN) from None
    _check_found(found, folder)
    loaded: nn.Module = model.to(device)
    for name, parameter in loaded.named_parameters():
        _check_finite(name, parameter, folder)
        if parameter.dtype != dtype:
            raise InputError(
                f"{folder}: {name} was loaded as {parameter.dtype}, wanted: {dtype}", "choose another model"
            )
    return loaded


def load_unfilled(folder: Path, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The same model with room for every weight and nothing in it yet: memory is taken as it is written to."""
    model: nn.Module = _from_config(folder, dtype=dtype, attn_implementation="sdpa").to_empty(device=device)
    model.tie_weights()  # type: ignore[operator]
    return model.eval()


def check_values(folder: Path) -> None:
    """InputError where a stored weight is not finite; for a decoder that loads the files by itself."""
    for path in sorted({weight.file for weight in check_folder(folder).weights.values()}):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                _check_finite(name, file.get_tensor(name), folder)


def _from_files(folder: Path, **options: Any) -> tuple[Any, dict[str, Any]]:
    """The model and what the library says of how it came by its weights."""
    model, found = AutoModelForCausalLM.from_pretrained(
        folder,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
        **options,
    )
    return model, found


def _check_found(found: dict[str, Any], folder: Path) -> None:
    kinds = {
        "missing_keys": "are missing",
        "mismatched_keys": "are of another shape than config.json says",
        "unexpected_keys": "have no place in a model of this config.json",
    }
    for kind, what in kinds.items():
        names = sorted(str(name) for name in found.get(kind) or ())
        if names:
            raise InputError(f"{folder}: {len(names)} weights {what}, the first is {names[0]}", DOWNLOAD_AGAIN)
    if found.get("error_msgs"):
        raise InputError(f"{folder}: {SAID} ({found['error_msgs'][0]})", DOWNLOAD_AGAIN)


def _check_finite(name: str, tensor: torch.Tensor, folder: Path) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise InputError(f"{folder}: {name} holds numbers that are not finite", DOWNLOAD_AGAIN)


def _check_tokenizer(tokenizer: Any, vocabulary: Any, folder: Path) -> None:
    """It encodes and decodes, and every token has a row of the embedding."""
    try:
        ids = tokenizer(QUESTION, add_special_tokens=False)["input_ids"]
        tokenizer.decode(ids)
        largest = max(tokenizer.get_vocab().values(), default=-1)
    except Exception as error:  # noqa: BLE001 - as in `load_tokenizer`
        raise InputError(f"{folder}: the tokenizer cannot be used ({reason(error)})", DOWNLOAD_AGAIN) from None
    if not ids:
        raise InputError(f"{folder}: the tokenizer makes no token of {QUESTION!r}", DOWNLOAD_AGAIN)
    if type(vocabulary) is int and largest >= vocabulary:
        raise InputError(
            f"{folder}: the tokenizer has a token with id {largest}, but the embedding has {vocabulary} rows "
            "(vocab_size in config.json)",
            "give the model its own tokenizer",
        )
