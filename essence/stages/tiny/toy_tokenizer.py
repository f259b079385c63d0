"""A tokenizer of a few hundred tokens that behaves like Qwen's: same pre-tokeniser, same markup, same kinds of tokens.

Byte-level BPE whose merges are learned from generated rows until every word of them is one token; digits stay single,
since the pre-tokeniser cuts between them. The result is the same bytes on every machine. `<think>` and `</think>` are
added tokens that are not special, as in Qwen3, so that decoding keeps them.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from essence.files import write_atomically, write_json
from essence.stages.tiny.problems import training_rows

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)
THINK_TOKENS = ("<think>", "</think>")
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen's pre-tokeniser: letters with what comes before them, each digit alone, punctuation, white space."""
LEARNED_FROM_ROWS = 64
"""More rows give the same merges: all words of a row are in every row, and digits never merge."""
LARGEST_VOCABULARY = 600
"""Far above what the words need, so learning ends because nothing is left to merge."""

CHAT_TEMPLATE = r"""
{#- Qwen3's markup: thoughts of earlier assistant turns are dropped, that of the last turn is laid out again. -#}
{%- for message in messages %}
    {%- set thought = '' %}
    {%- set answer = message.content %}
    {%- if message.role == 'assistant' and '</think>' in answer %}
        {%- set thought = answer.split('</think>')[0].split('<think>')[-1].strip('\n') %}
        {%- set answer = answer.split('</think>')[-1].lstrip('\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- if message.role == 'assistant' and loop.last %}
        {{- '<think>\n' + thought + '\n</think>\n\n' }}
    {%- endif %}
    {{- answer + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
""".lstrip()
"""Renders as Qwen3's template does for system, user and assistant turns without tools."""


def write_tokenizer(folder: Path, end_of_sequence: str) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`.

    `end_of_sequence` is the token that the tokenizer names its eos: `<|endoftext|>` of a Base model, `<|im_end|>` of
    a chat model. It is the only thing in which the two differ.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = learn_tokenizer()
    write_atomically(folder / "tokenizer.json", tokenizer.to_str(pretty=True) + "\n")
    write_atomically(folder / "chat_template.jinja", CHAT_TEMPLATE)
    write_json(folder / "tokenizer_config.json", _configuration(tokenizer, end_of_sequence))


def learn_tokenizer() -> Any:
    """A `tokenizers.Tokenizer` with all merges and added tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(QWEN_PATTERN), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=LARGEST_VOCABULARY,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in THINK_TOKENS])
    return tokenizer


def _texts() -> list[str]:
    """Rows as they look between the markup tokens."""
    texts: list[str] = []
    for row in training_rows(LEARNED_FROM_ROWS, digits=(2,), seed=0, slip=0):
        question, answer = (turn["value"] for turn in row["conversations"])
        _, thought, _, solution, _ = re.split(r"<\|\w+\|>", answer)
        texts += ["system\n", f"user\n{question}", "assistant\n", f"\n{thought.strip()}\n", f"\n\n{solution.strip()}"]
    return texts


def _configuration(tokenizer: Any, end_of_sequence: str) -> Mapping[str, object]:
    """tokenizer_config.json in the words of transformers."""
    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": token in SPECIAL_TOKENS,
        }
        for token in (*SPECIAL_TOKENS, *THINK_TOKENS)
    }
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": end_of_sequence,
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": END_OF_TEXT,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
