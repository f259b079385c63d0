"""Random changes of a small model folder, as in folders of real users, harmless ones included."""

import json
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from support.model_folders import DAMAGE, LATER, POINTER, SINGLE, configure, rewrite, shard, weights

TENSOR_MOVES = ("drop", "add", "rename", "reshape", "swap", "float16", "float64", "bfloat16", "not finite")
FILE_MOVES = ("none", "truncate", "pointer", "config", "stray", "shard", "known", "value", "cut text")
MOVES = (*TENSOR_MOVES, *FILE_MOVES)
KNOWN_DAMAGE = {**DAMAGE, **LATER}
TEXTS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 10**9, 1.5, "", "x", "float16", [], {}, [None], {"a": 1}),
)


def disturb(folder: Path, moves: Sequence[tuple[str, int]]) -> None:
    """Apply changes to a folder, until one has nothing left to change."""
    with suppress(
        OSError, ValueError, RuntimeError, ArithmeticError, LookupError, AttributeError, TypeError, SafetensorError
    ):
        for move, pick in moves:
            _move(folder, move, pick)


def _move(folder: Path, move: str, pick: int) -> None:
    files = sorted(folder.glob("*.safetensors"))
    path = files[pick % len(files)]
    if move in ("truncate", "pointer"):
        whole = path.read_bytes()
        path.write_bytes(POINTER.encode() if move == "pointer" else whole[: pick % len(whole)])
    elif move == "config":
        keys = ("num_hidden_layers", "intermediate_size", "num_key_value_heads", "vocab_size", "head_dim")
        configure(folder, **{keys[pick % len(keys)]: (1, 2, 16, 64, 384)[pick // 5 % 5], "layer_types": None})
    elif move == "stray":
        shutil.copy(path, folder / ("model-00001-of-00001.safetensors", "consolidated.safetensors")[pick % 2])
    elif move == "known":
        KNOWN_DAMAGE[sorted(KNOWN_DAMAGE)[pick % len(KNOWN_DAMAGE)]][0](folder)
    elif move == "value":
        _change_a_value(folder / TEXTS[pick % 4], random.Random(pick))
    elif move == "cut text":
        text = folder / TEXTS[pick % 5]
        text.write_bytes(text.read_bytes()[: pick // 5 % (text.stat().st_size + 1)])
    elif move == "shard" and [file.name for file in files] == [SINGLE]:
        names = shard(folder)
        if pick % 3 == 0:
            (folder / names[pick // 3 % 3]).unlink()
    elif move in TENSOR_MOVES and [file.name for file in files] == [SINGLE]:
        rewrite(folder, _changed(weights(folder), move, pick))


def _change_a_value(path: Path, chosen: random.Random) -> None:
    """Replace a random value in a JSON file by an odd one."""
    found = json.loads(path.read_text())
    place = found
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = chosen.choice(keys)
        if isinstance(place[key], dict | list) and place[key] and chosen.random() < 0.7:
            place = place[key]
            continue
        place[key] = chosen.choice(ODD_VALUES)
        break
    path.write_text(json.dumps(found))


def _changed(found: dict[str, torch.Tensor], move: str, pick: int) -> dict[str, torch.Tensor]:
    names = sorted(found)
    name, other = names[pick % len(names)], names[(pick // 7) % len(names)]
    tensor = found[name]
    if move == "drop":
        del found[name]
    elif move == "add":
        found[f"{name}.copy" if pick % 2 else "lm_head.weight"] = tensor.clone()
    elif move == "rename":
        found[f"base.{name}"] = found.pop(name)
    elif move == "reshape":
        found[name] = tensor.T.contiguous() if tensor.dim() == 2 else torch.cat([tensor, tensor[:1]])
    elif move == "swap":
        found[name], found[other] = found[other].clone(), tensor.clone()
    elif move == "not finite":
        found[name].view(-1)[pick % tensor.numel()] = (float("nan"), float("inf"))[pick % 2]
    else:  # a dtype
        found[name] = tensor.to(getattr(torch, move))
    return found


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """What the files hold, read without the kit; a head that is there beside a tied one counts once."""
    tensors: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            tensors.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - not a mapping
    if json.loads((folder / "config.json").read_text()).get("tie_word_embeddings"):
        tensors.pop("lm_head.weight", None)
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("rotary_emb.inv_freq")}


@contextmanager
def decoders_that_run() -> Iterator[list[dict[str, torch.Tensor]]]:
    """The weights of every decoder of transformers that computes anything, as they are when it does so first.

    By the names in the files, without the head; adapters are left out.
    """
    seen: dict[int, tuple[nn.Module, dict[str, torch.Tensor]]] = {}
    found: list[dict[str, torch.Tensor]] = []

    def look(module: nn.Module, _: Any) -> None:
        if hasattr(module, "embed_tokens") and hasattr(module, "layers") and id(module) not in seen:
            names = ((name.replace(".base_layer", ""), tensor) for name, tensor in module.named_parameters())
            kept = {f"model.{name}": t.detach().clone() for name, t in names if "lora_" not in name}
            seen[id(module)] = module, kept
            found.append(kept)

    handle = nn.modules.module.register_module_forward_pre_hook(look)
    try:
        yield found
    finally:
        handle.remove()
