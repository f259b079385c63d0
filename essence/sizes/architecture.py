"""What a training costs on paper: parameters, FLOPs, static memory. Plain Python; the host uses it for its estimates.

One multiply-add is two FLOPs. Only matrix products are counted; norms, softmax, rotary embeddings and the optimiser are
left out (under 2 % at the paper's sizes), and so is padding. T is the number of tokens of a row, `hd` the size of an
attention head.

```
N            = layers * (2 * hidden * heads * hd + 2 * hidden * kv_heads * hd + 3 * hidden * intermediate)
layers(T)    = 2 * N * T + 2 * T^2 * heads * hd * layers      (attention is causal: half of T^2, two products)
head(T)      = 2 * vocabulary * hidden * T
forward(T)   = layers(T) + head(T)
training(T)  = 3 * forward(T); with activation checkpointing 4 * layers(T) + 3 * head(T)
```
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from essence.errors import InputError
from essence.settings import LoraSettings, TeacherForm

FLOPS_FORMULA = (
    "matrix products only, no padding, logits for every token read; a row of T tokens: "
    "layers = 2 * N_linear * T + 2 * T^2 * heads * head_dim * layers, head = 2 * vocabulary * hidden * T; "
    "student 3 * (layers + head) a training row (4 * layers + 3 * head with activation checkpointing; under LoRA one "
    "less for what is frozen, and the adapters), "
    "teacher layers + head (stored states: head alone); validation rows layers + head"
)
FLOAT32_BYTES, BFLOAT16_BYTES = 4, 2
MASTER_BYTES = 4 * FLOAT32_BYTES
"""A trained parameter in float32: weight, gradient, two AdamW moments."""


SIZE_KEYS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("intermediate_size", "vocab_size"),
)


@dataclass(frozen=True)
class Architecture:
    """The sizes of a dense decoder with gated feed-forward layers (Qwen3, Qwen2, Llama)."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool
    """True when the head is the embedding."""
    qk_norm: bool = True
    """Qwen3 normalises queries and keys: 2 * head_dim parameters a layer."""
    qkv_bias: bool = False
    """Qwen2 adds a bias to queries, keys and values."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Architecture":
        """From a Hugging Face `config.json`; InputError when a size is missing or none."""
        for key in SIZE_KEYS:
            if key in config and config[key] is not None and (type(config[key]) is not int or config[key] < 1):
                raise InputError(f"the model's config.json has {key} = {config[key]!r}, wanted: a positive integer")
        try:
            return cls(
                hidden=config["hidden_size"],
                layers=config["num_hidden_layers"],
                heads=config["num_attention_heads"],
                kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
                head_dim=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
                intermediate=config["intermediate_size"],
                vocabulary=config["vocab_size"],
                tied=bool(config.get("tie_word_embeddings", False)),
                qk_norm=config.get("model_type") == "qwen3",
                qkv_bias=config.get("model_type") == "qwen2",
            )
        except KeyError as error:
            raise InputError(f"the model's config.json has no {error}: the kit knows dense decoders only") from None

    @property
    def attention_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def linear_parameters(self) -> int:
        """Weights of the matrices of all layers: N above."""
        attention = 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head_parameters(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def root_parameters(self) -> int:
        """Embedding and head; tied weights once."""
        return self.head_parameters * (1 if self.tied else 2)

    @property
    def layer_parameters(self) -> int:
        """All parameters of all layers."""
        norms = 2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        bias = (self.heads + 2 * self.kv_heads) * self.head_dim if self.qkv_bias else 0
        return self.linear_parameters + self.layers * (norms + bias)

    @property
    def parameters(self) -> int:
        """All parameters; tied weights once."""
        return self.layer_parameters + self.root_parameters + self.hidden


def layer_flops(model: Architecture, tokens: int) -> int:
    """Forward FLOPs of all layers on one row of `tokens`."""
    return 2 * model.linear_parameters * tokens + 2 * tokens**2 * model.attention_width * model.layers


def head_flops(model: Architecture, tokens: int) -> int:
    """Forward FLOPs of the head on `tokens` states."""
    return 2 * model.head_parameters * tokens


def forward_flops(model: Architecture, tokens: int) -> int:
    """FLOPs of reading one row, with logits for each token."""
    return layer_flops(model, tokens) + head_flops(model, tokens)


def training_flops(
    model: Architecture, tokens: int, *, activation_checkpointing: bool, lora: LoraSettings | None = None
) -> int:
    """FLOPs of forward and backward on one row; checkpointing runs the layers' forward twice.

    With adapters the frozen matrices have no gradient of their own, and the adapters come on top.
    """
    again = 1 if activation_checkpointing else 0
    if lora is None or lora.rank == 0:
        return (3 + again) * layer_flops(model, tokens) + 3 * head_flops(model, tokens)
    attention = 2 * tokens**2 * model.attention_width * model.layers
    frozen = layer_flops(model, tokens) - attention
    adapters = 2 * adapter_parameters(model, lora) * tokens
    return (2 + again) * frozen + (3 + again) * (attention + adapters) + 2 * head_flops(model, tokens)


def adapter_parameters(model: Architecture, lora: LoraSettings) -> int:
    """Parameters of all adapters; 0 without."""
    query, key = model.attention_width, model.kv_heads * model.head_dim
    sizes = {
        "q_proj": model.hidden + query,
        "k_proj": model.hidden + key,
        "v_proj": model.hidden + key,
        "o_proj": query + model.hidden,
        "gate_proj": model.hidden + model.intermediate,
        "up_proj": model.hidden + model.intermediate,
        "down_proj": model.intermediate + model.hidden,
    }
    return lora.rank * model.layers * sum(sizes[target] for target in set(lora.targets))


def distillation_flops(
    student: Architecture,
    teacher: Architecture | None,
    lengths: Iterable[int],
    *,
    activation_checkpointing: bool,
    teacher_form: TeacherForm = "live",
    lora: LoraSettings | None = None,
) -> int:
    """FLOPs of one training pass over rows of these lengths (tokens read); without a teacher, of fine-tuning."""
    return sum(
        training_flops(student, length, activation_checkpointing=activation_checkpointing, lora=lora)
        + (teaching_flops(teacher, length, teacher_form) if teacher else 0)
        for length in lengths
    )


def teaching_flops(teacher: Architecture, tokens: int, form: TeacherForm) -> int:
    """FLOPs of the teacher on one row in a training: layers and head, or the head alone on stored states."""
    return head_flops(teacher, tokens) + (layer_flops(teacher, tokens) if form == "live" else 0)


def stored_bytes_per_token(teacher: Architecture, compute_dtype: Literal["float32", "bfloat16"]) -> int:
    """What a teacher's stored states take: the state in the dtype of the computation, the token's id, the entropy."""
    return teacher.hidden * (FLOAT32_BYTES if compute_dtype == "float32" else BFLOAT16_BYTES) + 4 + 2


def static_bytes(
    student: Architecture,
    teacher: Architecture | None,
    compute_dtype: Literal["float32", "bfloat16"],
    teacher_form: TeacherForm = "live",
    lora: LoraSettings | None = None,
) -> int:
    """Bytes on one device that do not depend on sequence length: 16 a student parameter, and the teacher.

    Under bfloat16 the student has a copy of 2 bytes per parameter and the teacher takes 2; under float32 the teacher 4.
    Of a teacher whose states are stored only the head is there. A frozen student takes 2 or 4 a parameter, its adapters
    16.
    """
    taught = teacher_parameters(teacher, teacher_form) if teacher else 0
    if lora is not None and lora.rank:
        size = FLOAT32_BYTES if compute_dtype == "float32" else BFLOAT16_BYTES
        return size * (student.parameters + taught) + MASTER_BYTES * adapter_parameters(student, lora)
    if compute_dtype == "float32":
        return MASTER_BYTES * student.parameters + FLOAT32_BYTES * taught
    return MASTER_BYTES * student.parameters + BFLOAT16_BYTES * (student.parameters + taught)


def teacher_parameters(teacher: Architecture, form: TeacherForm) -> int:
    """Parameters of the teacher that a training loads."""
    return teacher.parameters if form == "live" else teacher.head_parameters
