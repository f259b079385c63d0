"""Teacher and student: small Qwen3 models, pre-trained from scratch with the kit's own trainer.

Both read the same kind of documents: one problem each, in the chat markup, closed by `<|endoftext|>`. The teacher's
traces are right. The student's totals slip (essence/stages/tiny/problems.py), so it answers in the format, carries its
stated result into the box, and is nearly always wrong. As with Qwen3, the chat model (teacher) stops at `<|im_end|>`
and the Base model (student) at `<|endoftext|>`.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from essence.data.markers import split_trace
from essence.data.readers import read_conversation
from essence.data.reasons import Fault, Reason
from essence.data.truncation import Example
from essence.distill.trainer import train
from essence.models.loading import load_tokenizer
from essence.models.saving import save_model
from essence.progress import StageContext
from essence.record.stage_records import DownloadResults
from essence.settings import (
    EVERY_TOKEN,
    ObjectiveSettings,
    OptimizerSettings,
    OrderSettings,
    RowsSettings,
    TrainSettings,
)
from essence.stages.tiny.problems import TrainingRow, training_rows
from essence.stages.tiny.source_options import ModelOptions
from essence.stages.tiny.toy_tokenizer import END_OF_TEXT, TURN_END, write_tokenizer

VOCABULARY_MULTIPLE = 128
"""Embeddings are padded to a multiple of this, as Qwen's 151,669 tokens are to 151,936."""


def make_model(
    folder: Path, options: ModelOptions, slip: int, end_of_sequence: str, context: StageContext
) -> DownloadResults:
    """Pre-train a model and write it to `folder`; resumes from the checkpoints in the stage's scratch folder."""
    torch.set_num_threads(context.resources.threads)
    tokenizer_folder = context.scratch / "tokenizer"
    write_tokenizer(tokenizer_folder, end_of_sequence)
    tokenizer = load_tokenizer(tokenizer_folder)
    documents = make_documents(tokenizer, options, slip)
    model = new_model(options, tokenizer)
    result = train(
        model,
        None,
        documents[options.validation_documents :],
        documents[: options.validation_documents],
        pretraining_settings(options),
        context.resources,
        context.scratch / "pretraining",
        context.progress,
        context.stop,
        phase="pre-train",
    )
    save_model(model, folder, tokenizer_from=tokenizer_folder)
    return DownloadResults(
        parameters=sum(p.numel() for p in model.parameters()),
        steps=result.steps,
        tokens=result.tokens,
        last_loss=result.last_loss,
        validation_ce=result.validations[-1].ce,
        pretraining_s=result.seconds,
    )


def make_documents(tokenizer: Any, options: ModelOptions, slip: int) -> list[Example]:
    """Problems with their traces as token ids, every token but the first a label."""
    rows = training_rows(options.validation_documents + options.documents, options.digits, options.seed, slip)
    texts = [render_document(tokenizer, row) for row in rows]
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    return [_document(number, np.array(ids, dtype=np.int32)) for number, ids in enumerate(encoded)]


def render_document(tokenizer: Any, row: TrainingRow) -> str:
    """A row through the kit's own reader and the chat template, and the end of the document."""
    exchange = read_conversation(row)
    trace = exchange.reason if isinstance(exchange, Fault) else split_trace(exchange)
    if isinstance(trace, Reason):
        raise TypeError(f"a generated row was refused: {trace.value}")
    exchange = trace.exchange
    turns = [{"role": "user", "content": exchange.user}, {"role": "assistant", "content": exchange.assistant}]
    text: str = tokenizer.apply_chat_template(turns, tokenize=False, enable_thinking=True)
    return text + END_OF_TEXT


def new_model(options: ModelOptions, tokenizer: Any) -> Any:
    """A Qwen3 with seeded weights; its eos is that of the tokenizer, and a chat model stops at both, as Qwen3 does."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(options.seed)
    end, end_of_text = tokenizer.eos_token_id, tokenizer.get_vocab()[END_OF_TEXT]
    config = Qwen3Config(
        vocab_size=math.ceil(len(tokenizer) / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE,
        hidden_size=options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=options.kv_heads,
        head_dim=options.head_dim,
        intermediate_size=options.intermediate,
        max_position_embeddings=options.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": options.rope_theta},
        initializer_range=options.initializer_range,
        tie_word_embeddings=True,
        eos_token_id=end,
        pad_token_id=end_of_text,
    )
    model = Qwen3ForCausalLM(config)
    if tokenizer.eos_token == TURN_END:
        model.generation_config.eos_token_id = [end, end_of_text]
    return model


def pretraining_settings(options: ModelOptions) -> TrainSettings:
    """Plain cross entropy on whole documents, validated once an epoch."""
    optimizer = {name: getattr(options, name) for name in OptimizerSettings.model_fields}
    return TrainSettings(
        rows=RowsSettings(
            max_row_tokens=options.max_positions,
            train_rows=options.documents,
            validation_rows=options.validation_documents,
            split_seed=options.seed,
        ),
        view=EVERY_TOKEN,
        validation_view="same",
        objective=ObjectiveSettings(
            kd_weight=0.0,
            temperature=1.0,
            divergence="forward_kl",
            normalisation="row",
        ),
        optimizer=OptimizerSettings(**optimizer),
        order=OrderSettings(seed=options.seed, multiple=1),
        checkpoint_ranks=1,
        validations_per_epoch=1,
        compute_dtype="float32",
        pad_to_multiple=options.pad_to_multiple,
        seed=options.seed,
    )


def _document(number: int, input_ids: np.ndarray[tuple[int], np.dtype[np.int32]]) -> Example:
    supervised = np.ones(input_ids.size, dtype=np.bool_)
    supervised[0] = False
    return Example(number, input_ids, supervised)
