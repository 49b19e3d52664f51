"""What the fields of a class mean, as its source says: a comment beside the field or above it, or a text below it."""

from __future__ import annotations

import ast
import inspect
import io
import textwrap
import tokenize
from functools import cache


@cache
def meanings_of(cls: type) -> dict[str, str]:
    """The meanings of the fields that the class and its bases declare, by name; of a field without one, ``""``."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("session_middleware"):
            found |= {name: text for name, text in _own(base).items() if text or name not in found}
    return found


def _own(cls: type) -> dict[str, str]:
    source = textwrap.dedent(inspect.getsource(cls))
    [tree] = ast.parse(source).body
    assert isinstance(tree, ast.ClassDef)
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    comments = {one.start[0]: one for one in tokens if one.type == tokenize.COMMENT}
    found = {}
    for node, below in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            said = [comments[line] for line in range(node.lineno, (node.end_lineno or 0) + 1) if line in comments]
            line = node.lineno - 1
            while not said and line in comments and comments[line].line.lstrip().startswith("#"):
                above = [comments[line]]
                while (line := line - 1) in comments and comments[line].line.lstrip().startswith("#"):
                    above.insert(0, comments[line])
                said = above
            text = " ".join(one.string.lstrip("# ") for one in said)
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                text = inspect.cleandoc(str(below.value.value))
            found[node.target.id] = " ".join(text.split())
    return found
