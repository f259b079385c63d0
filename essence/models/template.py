"""The chat template of a model folder: which one there is, and that it renders the two things that the kit renders.

The host tries it as transformers renders it (a sandbox, the same options and functions), before anything starts. A
stage renders with the tokenizer's own, through `render`.
"""

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import JsonValue

from essence.errors import InputError
from essence.models.headers import check_no_pointer
from essence.models.objects import read_object

FILE, CONFIG, MORE = "chat_template.jinja", "tokenizer_config.json", "additional_chat_templates"
QUESTION, ANSWER = "What is 2 + 3?", "The answer is 5."
USER_TURN = {"role": "user", "content": QUESTION}
ASSISTANT_TURN = {"role": "assistant", "content": f"<think>\n2 and 3 is 5.\n</think>\n\n{ANSWER}"}
MOST_REASON = 200
CURE = "give the model a chat template that renders a user and an assistant turn"
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def check_template(folder: Path, named: Path) -> None:
    """Try the folder's template, where it has one; InputError when it has several or it renders no conversation."""
    found = find_template(folder, named)
    if found is None:
        return
    text, place = found
    described = read_object(folder / CONFIG, named / CONFIG) if (folder / CONFIG).is_file() else {}
    for turns, ends in (([USER_TURN], True), ([USER_TURN, ASSISTANT_TURN], False)):
        values = {"messages": turns, "tools": None, "documents": None, "add_generation_prompt": ends}
        try:
            template = _environment().from_string(text)
            rendered = template.render(**_special(described), **values, enable_thinking=True)
        except TemplateSyntaxError as error:
            raise InputError(
                f"{place}: line {error.lineno}: the chat template has an error ({reason(error)})", CURE
            ) from None
        except Exception as error:  # noqa: BLE001 - it is a program that came with the model: it may raise anything
            raise InputError(f"{place}: the chat template fails ({reason(error)})", CURE) from None
        _check_rendered(rendered, turns, str(place))


def find_template(folder: Path, named: Path) -> tuple[str, Path] | None:
    """(text, where it is) of the one template; None where there is none, InputError where there are several."""
    if any((folder / MORE).glob("*.jinja")):
        raise InputError(f"{named / MORE}: the model has several chat templates", f"leave one, in {FILE}")
    described = read_object(folder / CONFIG, named / CONFIG) if (folder / CONFIG).is_file() else {}
    inside = described.get("chat_template")
    if inside is not None and not isinstance(inside, str):
        raise InputError(f"{named / CONFIG}: chat_template holds several templates", f"leave one, in {FILE}")
    if not (folder / FILE).exists():
        return None if inside is None else (inside, named / CONFIG)
    check_no_pointer(folder / FILE, named / FILE)
    try:
        text = (folder / FILE).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{named / FILE}: the chat template is not UTF-8 ({error})", CURE) from None
    if inside is not None and inside != text:
        raise InputError(f"{named / FILE}: differs from chat_template in {CONFIG}", "leave one of the two")
    return text, named / FILE


def render(tokenizer: Any, turns: list[dict[str, str]], add_generation_prompt: bool) -> str:
    """A conversation in the tokenizer's template; InputError when it fails or renders nothing."""
    place = tokenizer.name_or_path
    try:
        text: str = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=add_generation_prompt, enable_thinking=True
        )
    except Exception as error:  # noqa: BLE001 - it is a program that came with the model: it may raise anything
        raise InputError(f"{place}: the chat template fails ({reason(error)})", CURE) from None
    if not text.strip():
        raise InputError(f"{place}: the chat template renders nothing", CURE)
    return text


def reason(error: BaseException) -> str:
    """What an error says, in one line of bearable length; its name where it says nothing."""
    return " ".join(str(error).split())[:MOST_REASON] or type(error).__name__


def _check_rendered(rendered: str, turns: list[dict[str, str]], place: str) -> None:
    if not rendered.strip():
        raise InputError(f"{place}: the chat template renders nothing", CURE)
    if QUESTION not in rendered or (len(turns) > 1 and ANSWER not in rendered):
        what = "question" if QUESTION not in rendered else "answer"
        raise InputError(f"{place}: the chat template leaves out the {what}", CURE)


def _special(described: Mapping[str, JsonValue]) -> dict[str, str]:
    """The special tokens that tokenizer_config.json names, as a template is given them."""
    found = {}
    for name in SPECIAL:
        value = described.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            found[name] = content
    return found


class _Generation(Extension):
    """`{% generation %}` marks what a model wrote; what it encloses is rendered as it stands."""

    tags = {"generation"}  # noqa: RUF012 - as the base class has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)
