"""Models and tokenizers as Hugging Face folders: loaded from local files only, checked before an hour is spent on them.

transformers 5 loads a checkpoint in the dtype it was saved in, fills missing weights at random with a warning, and
saves `rope_theta` where version 4 does not look for it (and uses 10,000 without a word). All three are met here.
"""

import importlib.util
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from essence.atomic import read_json, write_json
from essence.distill.checkpoint import flush_to_disk
from essence.errors import InputError, MachineError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
SCALED_HEADS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Config keys of models whose logits are not just the head's output on `batches.states_at`."""


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder; InputError when there is none or it cannot be read."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: no usable tokenizer ({_first_line(error)})") from None


def think_token_ids(tokenizer: Any, folder: Path) -> tuple[int, int]:
    """Ids of `<think>` and `</think>`; InputError when the tokenizer has no such tokens."""
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in ("<think>", "</think>") if token not in vocabulary]
    if missing:
        raise InputError(f"{folder}: the tokenizer has no token {' and '.join(missing)}: use a model that has them")
    return vocabulary["<think>"], vocabulary["</think>"]


def load_model(folder: Path, dtype: torch.dtype, device: torch.device, attention: str = "sdpa") -> nn.Module:
    """A causal language model whose every weight comes from the folder's safetensors files.

    Raises:
        InputError: a file is missing or damaged, a weight is missing, or the architecture is not a plain decoder.
        MachineError: the package of the attention is not installed.
    """
    check_model_files(folder)
    if attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        raise MachineError("attention = 'flash_attention_2', but flash-attn is not installed here: choose 'sdpa'")
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attention,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{folder}: the model cannot be loaded ({_first_line(error)})") from None
    lacking = sorted([*found["missing_keys"], *(str(key) for key in found["mismatched_keys"])])
    if lacking:
        raise InputError(f"{folder}: {len(lacking)} weights are missing or of another shape, the first is {lacking[0]}")
    loaded: nn.Module = model.to(device)
    return loaded


def check_model_files(folder: Path) -> dict[str, Any]:
    """The folder's config, after a look at every weight file's header and size; InputError in one sentence."""
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: no config.json, so no model")
    config = read_json(folder / "config.json")
    for key in SCALED_HEADS:
        if config.get(key) not in (None, 1, 1.0):
            raise InputError(
                f"{folder}: config.json has {key} = {config[key]}: models with scaled logits are not known"
            )
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder}: no .safetensors file: other weight formats are not read")
    for path in files:
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: damaged weights ({_first_line(error)}): download them again") from None
    return config


def load_head(folder: Path, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The matrix that makes logits, shape (vocabulary, hidden), without the rest of the model: tied, the embedding; of
    a teacher stage, the one it has stored.

    InputError when the folder has none, or it is not as `config.json` says.
    """
    config = check_model_files(folder)
    for name in ("lm_head.weight", "head", "model.embed_tokens.weight"):
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                if name in file.keys():  # noqa: SIM118 - not a mapping
                    head: torch.Tensor = file.get_tensor(name)
                    if head.shape != (config["vocab_size"], config["hidden_size"]):
                        raise InputError(f"{path}: {name} has shape {tuple(head.shape)}, which config.json denies")
                    return head.to(device, dtype)
    raise InputError(f"{folder}: no lm_head.weight and no model.embed_tokens.weight: the kit knows dense decoders only")


def check_pair(student: Path, teacher: Path) -> None:
    """InputError unless teacher and student share a tokenizer, and the teacher's logits cover the student's."""
    ours, theirs = load_tokenizer(student).get_vocab(), load_tokenizer(teacher).get_vocab()
    if ours != theirs:
        differing = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
        token = differing[0]
        raise InputError(
            f"teacher and student have different tokenizers: {len(differing)} tokens differ, the first is {token!r} "
            f"(id {theirs.get(token)} in {teacher}, {ours.get(token)} in {student}): choose a pair of one model family"
        )
    sizes = [check_model_files(folder)["vocab_size"] for folder in (student, teacher)]
    if sizes[1] < sizes[0]:
        raise InputError(
            f"the teacher's vocabulary ({sizes[1]}) is smaller than the student's ({sizes[0]}): choose another teacher"
        )


def save_model(model: Any, folder: Path, tokenizer_from: Path) -> None:
    """Write a model folder that transformers 4 and 5 and vLLM read alike; its tokenizer is that of another folder."""
    shutil.rmtree(folder, ignore_errors=True)  # of a killed attempt
    model.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        if (tokenizer_from / name).is_file():
            shutil.copyfile(tokenizer_from / name, folder / name)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", with_rope_theta(config))
    for path in folder.iterdir():
        flush_to_disk(path)


def with_rope_theta(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config of transformers 5 with the rotary base where transformers 4 reads it, too."""
    parameters = config.get("rope_parameters") or {}
    theta = parameters.get("rope_theta")
    return dict(config) if theta is None else {**config, "rope_theta": theta}


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
