"""Requirements of a student-teacher pair: one tokenizer, think tokens and plain logits.

Models are loaded and saved in `essence/models/`.
"""

from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue
from safetensors import safe_open

from essence.errors import InputError
from essence.models.decoder import read_sizes
from essence.models.folder import read_config
from essence.models.loading import load_tokenizer

SCALED_HEADS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Config keys of models whose logits are not just the head's output on `batches.states_at`."""


def think_token_ids(tokenizer: Any, folder: Path) -> tuple[int, int]:
    """Ids of `<think>` and `</think>`; InputError when the tokenizer has no such tokens."""
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in ("<think>", "</think>") if token not in vocabulary]
    if missing:
        raise InputError(f"{folder}: the tokenizer has no token {' and '.join(missing)}: use a model that has them")
    return vocabulary["<think>"], vocabulary["</think>"]


def read_decoder(folder: Path) -> dict[str, JsonValue]:
    """The configuration of a student or teacher; InputError when its logits are not just the head's output."""
    config = read_config(folder)
    for key in SCALED_HEADS:
        if config.get(key) not in (None, 1, 1.0):
            raise InputError(
                f"{folder}: config.json has {key} = {config[key]}: models with scaled logits are not known"
            )
    return config


def load_head(folder: Path, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The matrix that makes logits, shape (vocabulary, hidden), without the rest of the model: tied, the embedding; of
    a teacher stage, the one it has stored.

    InputError when the folder has none, or it is not as `config.json` says.
    """
    sizes = read_sizes(read_decoder(folder), folder / "config.json")
    for name in ("lm_head.weight", "head", "model.embed_tokens.weight"):
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                if name in file.keys():  # noqa: SIM118 - not a mapping
                    head: torch.Tensor = file.get_tensor(name)
                    if head.shape != (sizes["vocab_size"], sizes["hidden_size"]):
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
    own_rows, theirs_rows = (read_sizes(read_decoder(f), f / "config.json")["vocab_size"] for f in (student, teacher))
    if theirs_rows < own_rows:
        raise InputError(
            f"the teacher's vocabulary ({theirs_rows}) is smaller than the student's ({own_rows})",
            "choose another teacher",
        )
