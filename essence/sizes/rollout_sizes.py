"""What a student's rollouts take on paper: FLOPs, and memory while they are drawn. Plain Python; no torch.

A rollout of P tokens of prompt and k of its own reads P + k - 1 tokens once each, since keys and values are kept;
logits are made for the k that are drawn. So with the formulas of `essence/sizes/architecture.py`

```
flops = layers(P + k - 1) + head(k)
```
"""

from dataclasses import dataclass

from essence.sizes.architecture import FLOAT32_BYTES, Architecture, head_flops, layer_flops

ROLLOUT_FORMULA = "a rollout of k tokens after a prompt of P: student layers(P + k - 1) + head(k)"
DRAWING_BYTES_PER_LOGIT = FLOAT32_BYTES + 3 * 8
"""Of the logits that a token is drawn from: as the head gives them, and three forms of them in float64."""


@dataclass(frozen=True)
class RolloutLoad:
    """Rollouts that are drawn together."""

    rows: int
    prompt: int
    """Tokens of the longest prompt, to which the others are padded."""
    tokens: int
    """The most that a rollout has of its own."""


def rollout_flops(model: Architecture, prompt: int, tokens: int) -> int:
    """FLOPs of drawing one rollout; 0 of one without a token."""
    return layer_flops(model, prompt + tokens - 1) + head_flops(model, tokens) if tokens else 0


def cache_bytes_per_token(model: Architecture, element_bytes: int) -> int:
    """Keys and values of one token in all layers."""
    return 2 * element_bytes * model.layers * model.kv_heads * model.head_dim


def rollout_bytes(model: Architecture, load: RolloutLoad, element_bytes: int) -> int:
    """Above the weights, at most: the whole cache while one layer of it grows, or all prompts in one layer."""
    cache = load.rows * cache_bytes_per_token(model, element_bytes)
    last = cache * (load.prompt + load.tokens) * (model.layers + 1) // model.layers
    drawing = load.rows * DRAWING_BYTES_PER_LOGIT * model.vocabulary
    layer = 3 * model.hidden + 3 * model.intermediate + 2 * model.attention_width
    reading = load.rows * load.prompt * (FLOAT32_BYTES * layer + load.prompt * (FLOAT32_BYTES + 1))
    return max(last + drawing, cache * load.prompt + reading + drawing)
