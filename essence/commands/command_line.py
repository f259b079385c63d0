"""The command line: options with the types of their annotations, and the nearest word for a misspelt one.

invoke takes the type of an option from its default alone, so that one without a default is text; it ends with 1 for a
word that it does not know, and with a traceback for a number that is none.
"""

import re
from collections.abc import Callable, Mapping
from types import NoneType
from typing import Any, NoReturn, get_args, get_type_hints

from invoke import Collection, Exit, Task, collection
from invoke.exceptions import ParseError
from invoke.parser import Argument, Parser, ParserContext
from invoke.program import Program

from essence.commands import terminal
from essence.errors import ExitCode, ExperimentError, KitError, disk_error, nearest, shortened

HELP = {
    "accept_earlier": "take finished stages of earlier code where settings, inputs and environment are equal",
    "account": "with --engine slurm: the account that pays, instead of that in the site file",
    "accuracy": "with --decide: accuracy expected at LSP 1.0",
    "archives": "folder of archives from docker save, train-cuda.tar and so on",
    "assurance": "with --decide: wanted chance that a true claim is called reproduced",
    "benchmark": "benchmark by short name, as in aime25",
    "cell": "only cells with this text in their name",
    "checkpoint": "best or last",
    "costs": "instead, computed time, memory and FLOPs at LSP 0.1 to 1.0 for each pair",
    "csv": "beside the report also evaluations.csv and samples.csv: the results as rows",
    "dataset": "data set by short name",
    "decide": "instead, what the cells can decide of a claim, as in --decide retention-half",
    "decoder": "vllm or transformers (default: as the experiment says)",
    "dry_run": "print every command line, start none",
    "earlier": "also remove stages that earlier code finished",
    "engine": "what runs the stages: local, docker or apptainer; slurm submits jobs and returns "
    "(default: the first available if GPUs are asked for, else local)",
    "experiment": "an experiment in experiments/, or a path to a TOML file (default: the one in the run directory, the "
    "last one run there, or bespoke)",
    "file": 'JSON lines of {"gold", "completion"}; - is standard input',
    "first": "run directory, experiment in it, or stage folder; FOLDER:TEXT is the cell with TEXT in its name",
    "flavour": "images: cuda or cpu (default: cuda; for stages, cpu where no GPU is asked for)",
    "folder": "run directory, one experiment in it, or an exported archive",
    "gpus": "GPUs of one stage, instead of what the experiment says; a step keeps its rows",
    "from_": "one image or SIF in a registry: docker://REGISTRY/essence-train@sha256:... or oras://...",
    "grader": "math-verify, lighteval-0.10 or math-verify-0.9",
    "json": "print JSON for machines",
    "lsp": "lead-span proportion, 0 < p <= 1",
    "max_model_tokens": "prompt and completion together (default: as the experiment says)",
    "max_new_tokens": "token cap of a completion (default: as the experiment says)",
    "model": "a folder in Hugging Face format, or owner/name@COMMIT on the hub",
    "name": "an experiment in experiments/, or a path to a TOML file",
    "offline": "count every missing download as an error, even with a network",
    "only": "stop after these stages: download, tokenize, train, generate, grade or evaluate",
    "output": "file or folder to write to",
    "pair": "teacher_student, as in qwen3-8b_qwen3-4b-base",
    "parquet": "as --csv, as Parquet; needs the environment of make setup",
    "partition": "with --engine slurm: the partition, instead of that in the site file",
    "pins": "TOML file whose models, datasets and benchmarks replace those of experiments/pins.toml",
    "problems": "take only the first N problems",
    "protocol": "released or corrected",
    "push": "registry to push each image to, as REGISTRY/essence-train:cuda; the digest goes to locks/images.toml",
    "repository": "owner/name on the hub; created as private if it does not exist",
    "rows": "number of evenly spaced rows of each data set to count",
    "runs": "run directory (default: runs/)",
    "samples": "completions per problem",
    "second": "the run to compare it with",
    "sections": "a, p+a, cot, cot+a, p+cot or p+cot+a",
    "seed": "seed of the cell",
    "sif_folder": "with --engine slurm: where the SIFs lie, instead of the folder in the site file",
    "site": "cluster for --engine slurm: a name in experiments/sites/ or a TOML file (default: generic)",
    "span": "left, right, random-span, first-512, ...: docs/arms.md has all",
    "training_sd": "with --decide: points between two trainings of one arm, where measured",
    "upgrade": "take the newest versions that pyproject.toml allows",
    "watch": "redraw until all stages have ended",
    "weights": "include the trained weights",
    "yes": "do it; without this option only show what would be done",
}
"""Option -> its help, where a task has no other."""
WANTED = {int: "an integer", float: "a number"}
FOR_HELP = ("--help", "-h")
BINARY = "inv[oke]"
"""As invoke names itself in what it prints."""
INTEGER = re.compile(r"[+-]?[0-9]{1,18}")


class Option(Argument):  # type: ignore[misc]  # invoke has no types
    """An option that says in one sentence what it cannot take."""

    def __repr__(self) -> str:
        return f"--{self.names[0]}"

    def set_value(self, value: Any, cast: bool = True) -> None:
        try:
            if cast and self.kind is int and not INTEGER.fullmatch(value):
                raise ValueError
            super().set_value(value, cast)
        except ValueError:
            raise ExperimentError(f"{self!r} {shortened(value)}: must be {WANTED[self.kind]}") from None


class Command(Task[Any]):  # type: ignore[misc]  # invoke has no types
    """A task that returns an exit code; a failure that the user can cure ends it with one sentence and 2."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        try:
            with terminal.interruptible():
                terminal.check_surroundings()
                code = super().__call__(*args, **options)
                terminal.check_output()
        except KeyboardInterrupt:
            raise Exit("stopped", code=ExitCode.INTERRUPTED) from None
        except (KitError, OSError) as error:
            sentence = error if isinstance(error, KitError) else disk_error(error, "the run directory")
            if sentence is None:
                raise
            raise Exit(str(sentence), code=ExitCode.CURABLE) from None
        if code:
            raise Exit(code=code)

    help: dict[str, str]
    """Of options that HELP does not fit."""

    def get_arguments(self, ignore_unknown_help: bool | None = None) -> list[Argument]:
        hints = get_type_hints(self.body)
        told = dict(self.help)
        found = [_option(argument, hints) for argument in super().get_arguments(ignore_unknown_help)]
        self.help = told  # invoke takes out what it has used, and asks twice
        return found


def _option(argument: Argument, hints: Mapping[str, object]) -> Option:
    hint = hints[str(argument.name)]
    kind = next(kind for kind in get_args(hint) or (hint,) if kind is not NoneType)
    return Option(
        names=argument.names,
        kind=kind,
        default=argument.default,
        help=argument.help or HELP[str(argument.name)],
        positional=argument.positional,
        attr_name=argument.attr_name,
    )


class Context(ParserContext):  # type: ignore[misc]  # invoke has no types
    """A task as `--help` shows it, where invoke has no word for a number that is no integer."""

    def help_for(self, flag: str) -> tuple[str, str]:
        names, text = super().help_for(flag)
        return (f"{names}=FLOAT" if self.flags[flag].kind is float else names), text


collection.ParserContext = Context  # invoke copies a collection into one of its own class, so a subclass would be lost


def command(**told: str) -> Callable[[Callable[..., int]], Command]:
    """Make a task of a function that returns an exit code; `told` is the help of options that HELP does not fit."""
    return lambda body: Command(body, auto_shortflags=False, help=told)


def check_words(commands: Collection, words: list[str]) -> None:
    """End with 2 and one sentence for words that invoke cannot read, before it reads them by the same rules."""
    try:
        _check(commands, words)
    except KitError as error:
        raise Exit(str(error), code=ExitCode.CURABLE) from None


def _check(commands: Collection, words: list[str]) -> None:
    contexts, initial = commands.to_contexts(), Program().initial_context
    names = [str(context.name) for context in contexts]
    core = Parser(initial=initial, ignore_unknown=True).parse_argv(words)
    asked = core[0].args["help"].value
    try:
        found = Parser(contexts, initial=initial, ignore_unknown=True).parse_argv(core.unparsed)
    except ParseError as error:
        if error.context and _asks_for_help(error.context):
            _print_help(commands, contexts, error.context)
        task = error.context.name if error.context else ""
        raise ExperimentError(f"invoke {task}: {error}", f"invoke --help {task} explains it") from None
    for one in found:
        if _asks_for_help(one):
            _print_help(commands, contexts, one)
    unknown = [*([asked] if isinstance(asked, str) and asked not in names else []), *found.unparsed[:1]]
    # invoke takes an option that it does not know for an argument that it waits for.
    unknown = [value for one in found for value in _odd(one)] or unknown
    if unknown:
        raise _unknown(unknown[0], found[-1], names)


def _odd(context: ParserContext) -> list[str]:
    return [value for value in _positional(context) if value.startswith("--")]


def _positional(context: ParserContext) -> list[str]:
    """What was given for the arguments that a task waits for."""
    values = [argument.value for argument in context.args.values() if argument.positional]
    return [value for value in values if isinstance(value, str)]


def _asks_for_help(context: ParserContext) -> bool:
    """Whether a task that waits for an argument was given a word for help as one; of others invoke knows it."""
    return any(value in FOR_HELP for value in _positional(context))


def _print_help(commands: Collection, contexts: list[ParserContext], asked: ParserContext) -> NoReturn:
    """Print what `invoke --help TASK` prints, and end with 0."""
    program = Program(binary=BINARY)
    program.collection, program.parser = commands, Parser(contexts)
    program.print_task_help(asked.name)
    raise Exit


def _unknown(word: str, context: ParserContext, names: list[str]) -> KitError:
    flag = word.startswith("-")
    what = "option" if flag else "word" if context.name else "command"
    close = nearest(word, context.flags if context.name or flag else names).removeprefix("; ")
    listed = f"invoke --help {context.name} lists its options" if context.name else "invoke --list names all commands"
    told = f"invoke {context.name}: " if context.name else ""
    return ExperimentError(f"{told}unknown {what} {shortened(word)}", close or listed)
