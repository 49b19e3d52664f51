"""The tables of the reference, made from the code: settings, errors, commands, methods, values, extras, examples."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import tomllib
from collections.abc import Iterable, Iterator
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import session_middleware
from docs.generators.meanings import meanings_of
from session_middleware import errors as errors_module
from session_middleware import models
from session_middleware.cli import main
from session_middleware.display.text import duration_text
from session_middleware.settings import SessionSettings

ROOT = Path(__file__).parents[2]
_CLASSES = {
    "Sessions": "session_middleware.sessions.Sessions",
    "UserSessions": "session_middleware.user_sessions.UserSessions",
    "Session": "session_middleware.session.Session",
    "SessionMemory": "session_middleware.memory.session_memory.SessionMemory",
}
_MANUAL = "session_middleware.recording.manual.ManualRecorder"
_BY_HAND = ("add", "add_history", "record_tool", "record_model_call")
VALUES = (
    *("Message", "ToolCall", "ModelCall", "Run", "Question", "Event", "Branch", "Siblings", "Stats", "Usage"),
    *("RepairedCall", "SweepResult", "Explanation", "ErasureReceipt", "Problem", "Pin"),
)


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(header)]
    lines += [["---"] * len(lines[0]), *(list(row) for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _code(value: object) -> str:
    return f"`{value}`" if str(value) else ""


def settings() -> str:
    meanings, rows = meanings_of(SessionSettings), []
    for name, field in SessionSettings.model_fields.items():
        value = field.default
        shown = duration_text(value / timedelta(milliseconds=1)) if isinstance(value, timedelta) else _plain(value)
        rows.append((f'<span id="{name}"></span>`{name}`', _code(f"SESSION_{name.upper()}"), shown, meanings[name]))
    return table(("setting", "variable", "default", "meaning"), rows)


def _plain(value: object) -> str:
    return "none" if value is None else _code(str(value).lower() if isinstance(value, bool) else value)


def errors() -> str:
    """The exceptions as the tree in the docstring of `errors.py` has them, and when each is raised."""
    from session_middleware.integrations.fastapi_errors import status_of

    tree = re.findall(
        r"^    ([│ ]*)[├└]── (\w+)\s+(?:\(([\w, ]+)\)\s+)?(.+)$", errors_module.__doc__ or "", re.MULTILINE
    )
    rows = []
    for indent, name, _, when in tree:
        cls = getattr(session_middleware, name)
        bases = [base.__name__ for base in cls.__mro__[1:] if base.__module__ == "builtins"]
        built_in = next(iter(base for base in bases if base not in ("Exception", "object", "BaseException")), "")
        status = status_of(cls.__new__(cls))
        mark = "&nbsp;&nbsp;↳ " if indent else ""
        rows.append((f'<span id="{name}"></span>{mark}`{name}`', _code(built_in), when.strip(), str(status)))
    return table(("exception", "is also", "when", "HTTP status"), rows)


def commands() -> str:
    """Every command with its help, options and examples."""
    parts = []
    for theme, themed in main._THEMES.items():
        parts.append(f"## {theme}")
        for command in themed:
            text = textwrap.dedent(command.help or "").replace("\b\n", "").strip()
            arguments = [each.make_metavar(_context(command)) for each in command.params if not hasattr(each, "help")]
            usage = " ".join(["session-middleware", str(command.name), "[OPTIONS]", *arguments])
            examples = "\n".join(line.strip() for line in (command.epilog or "").splitlines()[2:])
            parts += [f"### {command.name}", text, f"```text\n{usage}\n```"]
            options = [each.get_help_record(_context(command)) for each in command.params if hasattr(each, "help")]
            parts += [table(("option", ""), ((_code(one[0]), _escaped(one[1])) for one in options if one))]
            parts += [f"```console\n{re.sub('^', '$ ', examples, flags=re.MULTILINE)}\n```"]
    return "\n\n".join(parts)


def _context(command: Any) -> Any:
    import click

    return click.Context(command, info_name=command.name)


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace("[", "\\[")


def methods(name: str) -> str:
    """The public methods of a class, each with its asyncio twin and the first sentence of its docstring."""
    path = _CLASSES[name]
    cls = getattr(import_module(path.rpartition(".")[0]), name)
    public = {each: inspect.getattr_static(cls, each) for each in dir(cls) if not each.startswith("_")}
    fields = set(getattr(models.SessionFields, "__annotations__", ())) | {"columns"}
    rows = []
    for each, member in sorted(public.items()):
        if each in fields or (each.startswith("a") and each[1:] in public):
            continue
        twin = f"`a{each}`" if f"a{each}" in public else ""
        first = re.split(r"(?<=\.)\s|\n\n", inspect.getdoc(member) or "")[0].replace("\n", " ")
        owner = _MANUAL if name == "Session" and each in _BY_HAND else path
        rows.append((f"[`{each}`][{owner}.{each}]", twin, _escaped(first)))
    return table(("", "for asyncio", ""), rows)


def values() -> str:
    """The values that methods return, with their fields."""
    parts = []
    for name in VALUES:
        cls = getattr(models, name)
        meanings = meanings_of(cls)
        hints = {each: field.annotation for each, field in cls.model_fields.items()}
        rows = [
            (_code(each), _code(_type(hint)), meanings.get(each) or _of_column(name, each))
            for each, hint in hints.items()
        ]
        parts += [
            f"## {name} {{#{name}}}",
            (inspect.getdoc(cls) or "").replace("``", "`"),
            table(("field", "type", ""), rows),
        ]
    return "\n\n".join(parts)


_TABLE_OF = {"ToolCall": "tool_calls", "ModelCall": "model_calls", "Branch": "branches"}


def _of_column(value: str, field: str) -> str:
    """What the column of the same name means."""
    from docs.generators.dictionary import columns_of

    found = columns_of(_TABLE_OF.get(value, f"{value.lower()}s"))
    return found.get(field, "")


def _type(hint: Any) -> str:
    text = hint.__name__ if isinstance(hint, type) and not getattr(hint, "__args__", ()) else str(hint)
    text = re.sub(r"typing\.|datetime\.(?=datetime|timedelta)|session_middleware\.models\.|NoneType", "", text)
    return re.sub(r"Annotated\[(\w+), .*?\)\]", r"\1", text)


EXTRAS = {  # what each extra is for
    "chat": "`session-middleware chat --model …`",
    "client": "`SessionClient`, the client of the session gateway",
    "fastmcp": "sessions across the tools of servers made with FastMCP",
    "fastapi": "errors as HTTP statuses in your own FastAPI or Starlette app",
    "langchain": "`SessionMiddleware` for `create_agent`",
    "mcp": "the MCP server, and sessions across the tools of other MCP servers",
    "openai-agents": "`OpenAIAgentsSession` for OpenAI's Agents SDK",
    "opentelemetry": "spans of runs, model calls and tools",
    "pandas": "`to_pandas()`",
    "plots": "plots in notebooks",
    "postgres": "PostgreSQL",
    "server": "the HTTP server and its page",
    "vectors": "memory by meaning",
}


def extras() -> str:
    """The optional dependencies of `pyproject.toml`."""
    given = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    rows = ((_code(name), EXTRAS.get(name, ""), ", ".join(map(_code, needs))) for name, needs in sorted(given.items()))
    return table(("extra", "for", "installs"), rows)


def _examples() -> Iterator[tuple[Path, str]]:
    for path in sorted((ROOT / "examples").glob("*.py")):
        yield path, (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0].replace("\n", " ")


def examples() -> str:
    rows = ((f"[examples/{path.name}]({path.stem}.md)", text) for path, text in _examples())
    return table(("file", ""), rows)


def example(path: Path) -> str:
    return f"# {path.name}\n\n```python\n{path.read_text()}```\n"
