"""What is known of models and rows before anything runs: the sizes of a model, a row of mean length.

After the tokenize stage has run, its counts take the place of the assumed row length.
"""

from pathlib import Path

from essence.data.row_records import RowTokens
from essence.data.selection import SectionBounds, select
from essence.errors import InputError, RecordError
from essence.files import read_json
from essence.plan.experiment import Experiment
from essence.plan.stage_plan import CellPlan
from essence.record.run_directory import RunDirectory
from essence.record.stage_records import DownloadManifest, TokenizeManifest, read_manifest
from essence.settings import TrainSettings, ViewSettings, first_tokens, rollout_tokens
from essence.sizes.architecture import Architecture
from essence.sizes.rollout_sizes import RolloutLoad

PROMPT_TOKENS = 200
"""Assumed of a problem with its template."""


def tokens_read(row: SectionBounds, view: ViewSettings) -> int:
    """Tokens of one row that a view reads; of a drawn place, those of the middle one; of a rollout, the most."""
    if most := rollout_tokens(view.span):
        return prompt_tokens(row) + most
    return int(select(row, view).tokens(row.lengths)[0])


def longest_read(settings: TrainSettings) -> int:
    """The most tokens that a view reads of a row: of the longest, which is taken to be all chain of thought.

    Where a row decides how much is read of it, one row may be read whole; `first-k` and a rollout read a prompt too.
    """
    longest, view = settings.rows.max_row_tokens - 1, settings.view
    if most := rollout_tokens(view.span):
        return PROMPT_TOKENS + most
    if view.span in ("random-span", "to-first-answer", "schedule"):
        return longest
    prompt = PROMPT_TOKENS if first_tokens(view.span) else 0
    return min(longest, prompt + tokens_read(_row(0, longest, 0), view))


def prompt_tokens(row: SectionBounds) -> int:
    """Of the prompt of a row; assumed where the row is."""
    return int(row.think_start[0]) or PROMPT_TOKENS


def rollouts_together(settings: TrainSettings) -> RolloutLoad | None:
    """What a student that learns from its own words says at once; None of every other training."""
    most = rollout_tokens(settings.view.span)
    if most is None or settings.rollouts is None:
        return None
    return RolloutLoad(settings.optimizer.batch_rows * settings.rollouts.every_steps, PROMPT_TOKENS, most)


def mean_row(plan: CellPlan, loaded: Experiment, run_directory: RunDirectory) -> tuple[SectionBounds | None, bool]:
    """A row of mean length and mean sections, and whether they were counted; assumed rows are all chain of thought.

    Counts are of all rows, of which the longest are not trained on: the mean is that of rows under the limit, by the
    histogram of their lengths, with sections in equal parts.
    """
    folder = run_directory.stage(plan.stages["tokenize"])
    if folder.done:
        manifest = read_manifest(folder.manifest)
        if isinstance(manifest, TokenizeManifest) and (counted := manifest.results.statistics):
            limit, rows = loaded.experiment.data[plan.cell.dataset].max_row_tokens, max(1, manifest.results.rows_kept)
            mean = sum(counted.section_tokens.values()) / rows
            shorter = _mean_below(counted.row_tokens, limit, mean) / mean / rows if mean else 0.0
            tokens = {name: int(number * shorter) for name, number in counted.section_tokens.items()}
            thought = tokens.get("cot", 0) + tokens.get("unknown", 0)
            answer = int((counted.tokens_to_first_answer or 0) * shorter) - 1
            return _row(tokens.get("prompt", 0), thought, tokens.get("answer", 0), answer), True
    assumed = loaded.catalogue.datasets[plan.cell.dataset].mean_row_tokens
    return (_row(0, assumed, 0) if assumed else None), False


def row_lengths(plan: CellPlan, run_directory: RunDirectory) -> RowTokens | None:
    """Lengths of the rows of a cell's data set, as the tokenize stage counted them; None until it has."""
    folder = run_directory.stage(plan.stages["tokenize"])
    manifest = read_manifest(folder.manifest) if folder.done else None
    counted = manifest.results.statistics if isinstance(manifest, TokenizeManifest) else None
    return counted.row_tokens if counted else None


def _mean_below(row_tokens: RowTokens, limit: int, mean: float) -> float:
    """Mean length of the rows shorter than a limit, from bins that count with their middle; `mean` is that of all."""
    if row_tokens.largest is None or row_tokens.largest < limit:
        return mean
    width, weighted, rows = row_tokens.bin_tokens, 0.0, 0.0
    for place, count in enumerate(row_tokens.histogram):
        first = place * width
        inside = count * min(1.0, max(0.0, (limit - first) / width))
        weighted += inside * (first + min(limit, first + width)) / 2
        rows += inside
    return weighted / rows if rows else min(mean, float(limit))


def _row(prompt: int, thought: int, answer: int, stated: int = -1) -> SectionBounds:
    """A row by the tokens of its sections, and by the index at which the final answer is first stated."""
    length = prompt + thought + answer
    return SectionBounds.of(length, prompt, prompt + thought - 1, min(stated, length - 1))


def architecture(name: str, stage: str | None, loaded: Experiment, run_directory: RunDirectory) -> Architecture | None:
    """From the model that `stage` brought in, from a local folder, or as the catalogue says."""
    folder, pin = run_directory.stage(stage) if stage else None, loaded.catalogue.models[name]
    try:
        if folder and folder.done:
            manifest = read_manifest(folder.manifest)
            config = manifest.results.config if isinstance(manifest, DownloadManifest) else None
            return Architecture.from_config(config) if config else None
        if pin.path and not pin.architecture:
            return Architecture.from_config(read_json(Path(pin.path) / "config.json"))
    except (InputError, RecordError):
        return None
    return Architecture(**pin.architecture.model_dump()) if pin.architecture else None
