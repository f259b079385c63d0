"""A small whole model folder, and the ways in which people's folders are damaged."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from essence.stages.tiny.toy_tokenizer import END_OF_TEXT, write_tokenizer

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 126216\n"
SINGLE = "model.safetensors"


def make_folder(folder: Path, tied: bool = True, **changes: Any) -> Path:
    """A Qwen3 with random weights, and the miniature's tokenizer with its chat template."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 384, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512}
    config = Qwen3Config(**{**sizes, **heads, **changes}, tie_word_embeddings=tied, initializer_range=0.2)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    write_tokenizer(folder, END_OF_TEXT)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(folder / SINGLE)
    return found


def rewrite(folder: Path, changed: dict[str, torch.Tensor]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in changed.items()}, folder / SINGLE, {"format": "pt"})


def configure(folder: Path, name: str = "config.json", **changes: Any) -> None:
    """Change keys of a JSON file; None takes one out."""
    path = folder / name
    found = {**(json.loads(path.read_text()) if path.is_file() else {}), **changes}
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))


def shard(folder: Path) -> list[str]:
    """Cut the one file into three with an index; their names."""
    tensors, names = weights(folder), [f"model-{n:05d}-of-00003.safetensors" for n in (1, 2, 3)]
    places = {name: names[number % 3] for number, name in enumerate(sorted(tensors))}
    for file in names:
        save_file({name: t for name, t in tensors.items() if places[name] == file}, folder / file, {"format": "pt"})
    (folder / f"{SINGLE}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / SINGLE).unlink()
    return names


def _missing_shard(folder: Path) -> None:
    (folder / shard(folder)[1]).unlink()


def _missing_weight(folder: Path) -> None:
    rewrite(folder, {name: tensor for name, tensor in weights(folder).items() if name != "model.norm.weight"})


def _left_over(folder: Path) -> None:
    configure(folder, num_hidden_layers=1, layer_types=["full_attention"])


def _own_head(folder: Path) -> None:
    rewrite(folder, {**weights(folder), "lm_head.weight": torch.ones(384, 32)})


def _integers(folder: Path) -> None:
    found = weights(folder)
    rewrite(folder, {**found, "model.norm.weight": found["model.norm.weight"].to(torch.int8)})


def _truncated(folder: Path) -> None:
    (folder / SINGLE).write_bytes((folder / SINGLE).read_bytes()[:-100])


def _pickled(folder: Path) -> None:
    torch.save(weights(folder), folder / "pytorch_model.bin")
    (folder / SINGLE).unlink()


def _two_templates(folder: Path) -> None:
    configure(folder, "tokenizer_config.json", chat_template="{{ messages[0].content }} and no more")


def _more_templates(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages[0].content }}")


def _list_of_templates(folder: Path) -> None:
    text = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    configure(folder, "tokenizer_config.json", chat_template=[{"name": "default", "template": text}])


def _text(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def _with(name: str, **changes: Any) -> Callable[[Path], object]:
    return lambda folder: configure(folder, name, **changes)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "shapes": (_with("config.json", intermediate_size=96), r"has shape \[64, 32\], config.json says \[96, 32\]"),
    "missing shard": (_missing_shard, "names model-00002-of-00003.safetensors, which is not there"),
    "missing weight": (_missing_weight, "1 weights that config.json promises are missing.*model.norm.weight"),
    "left over": (_left_over, "11 weights have no place in a model of this config.json"),
    "head of its own": (_own_head, "lm_head.weight is not model.embed_tokens.weight"),
    "no head": (_with("config.json", tie_word_embeddings=False), "missing, the first is lm_head.weight"),
    "integers": (_integers, "stored as I8, quantised weights are not supported"),
    "truncated": (_truncated, "damaged weights, cut off"),
    "pointer": (_text(SINGLE, POINTER), "pointer of large-file storage"),
    "pointer of the tokenizer": (_text("tokenizer.json", POINTER), "pointer of large-file storage"),
    "pickled": (_pickled, r"pickled weights \(pytorch_model.bin\) are not read"),
    "second file": (lambda f: shutil.copy(f / SINGLE, f / "adapter_model.safetensors"), "is no part of the model"),
    "quantised": (_with("config.json", quantization_config={"quant_method": "gptq"}), "quantised weights are not supp"),
    "remote code": (_with("config.json", auto_map={"AutoModelForCausalLM": "m.M"}), "auto_map names code"),
    "no kind": (_with("config.json", model_type=None), "model_type is None, wanted: a word"),
    "no object": (_text("config.json", "[1, 2]"), "holds list where an object is expected"),
    "no JSON": (_text("config.json", "{"), "damaged, not valid JSON"),
    "size as text": (_with("config.json", hidden_size="32"), "hidden_size is '32', wanted: a positive integer"),
    "dtype": (_with("config.json", dtype="int4"), "dtype is 'int4', wanted: float32, bfloat16 or float16"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer.json"),
    "tokens beyond": (_with("config.json", vocab_size=300), r"has a token with id \d+, but the embedding|has shape"),
    "stop token": (_with("generation_config.json", eos_token_id="<|im_end|>"), r"eos_token_id has .<\|im_end\|>."),
    "idle sampling": (_with("generation_config.json", temperature=0.6), "temperature = 0.6 without do_sample = true"),
    "template raises": (_text("chat_template.jinja", "{{ raise_exception('must alternate') }}"), "fails .must alter"),
    "template is empty": (_text("chat_template.jinja", ""), "renders nothing"),
    "template is blank": (_text("chat_template.jinja", "{% if false %}x{% endif %}\n \n"), "renders nothing"),
    "template syntax": (
        _text("chat_template.jinja", "{% for m in messages %}"),
        "line 1: the chat template has an e",
    ),
    "template type": (_text("chat_template.jinja", "{{ messages + 1 }}"), "the chat template fails"),
    "template constant": (_text("chat_template.jinja", "Hello."), "leaves out the question"),
    "two templates": (_two_templates, "differs from chat_template in tokenizer_config.json"),
    "more templates": (_more_templates, "several chat templates"),
    "list of templates": (_list_of_templates, "chat_template holds several templates"),
}
"""What the host refuses: name -> (how a folder comes to it, what the sentence says)."""

LATER: dict[str, tuple[Callable[[Path], object], str]] = {
    "unknown kind": (_with("config.json", model_type="nope"), "model type `nope`"),
    "activation": (_with("config.json", hidden_act="nope"), "KeyError: 'nope'"),
    "layer types": (_with("config.json", layer_types=["full_attention"]), "layer_types"),
    "cache": (_with("generation_config.json", cache_implementation="nope"), "cache_implementation"),
    "tokenizer": (_with("tokenizer.json", model={"type": "nope", "vocab": {}}), "no usable tokenizer"),
}
"""What a stage refuses at its start, since it takes the library to know."""
