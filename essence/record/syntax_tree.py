"""Source as a syntax tree that says only what is executed: the same under Python 3.11 to 3.14.

Positions, comments, docstrings, `pass` and `...` do nothing and are left out. So are empty fields, as later versions of
Python have fields that earlier ones lack.
"""

import ast
import functools
from collections.abc import Iterator

NOT_EXECUTED = {"ctx", "kind", "type_comment", "type_ignores"}


def canonical(node: object) -> object:
    """A node as nested lists of names and texts."""
    if isinstance(node, ast.Constant):
        return ["Constant", type(node.value).__name__, repr(node.value)]
    if isinstance(node, ast.JoinedStr):
        return ["JoinedStr", *_joined(node.values)]
    if isinstance(node, ast.AST):
        fields = ((name, canonical(getattr(node, name, None))) for name in _counted(node._fields))
        return [type(node).__name__, *([name, value] for name, value in fields if value is not None and value != [])]
    if isinstance(node, list):
        return [canonical(item) for item in node if not _is_idle(item)]
    return node


@functools.cache
def _counted(fields: tuple[str, ...]) -> list[str]:
    return sorted(name for name in fields if name not in NOT_EXECUTED)


def _is_idle(statement: object) -> bool:
    constant = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return constant or isinstance(statement, ast.Pass)


def _joined(values: list[ast.expr]) -> Iterator[object]:
    """The parts of an f-string, its texts as long as they can be: versions of Python cut them at different places."""
    text = ""
    for value in values:
        if isinstance(value, ast.Constant):
            text += str(value.value)
            continue
        if text:
            yield text
        text = ""
        yield canonical(value)
    if text:
        yield text
