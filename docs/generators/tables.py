"""The tables of the reference, made from the code: settings, errors, commands, methods, values, extras, examples."""

from __future__ import annotations

import ast
import inspect
import re
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
from session_middleware.settings import SessionSettings

ROOT = Path(__file__).parents[2]
_CLASSES = {
    "Sessions": "session_middleware.sessions.Sessions",
    "UserSessions": "session_middleware.user_sessions.UserSessions",
    "Session": "session_middleware.session.Session",
    "SessionMemory": "session_middleware.memory.session_memory.SessionMemory",
}
_MANUAL = "session_middleware.recording.manual.ManualRecorder"
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
        names = f'<span id="{name}"></span>`{name}`<br>`SESSION_{name.upper()}`'
        rows.append((names, _plain(field.default), meanings[name]))
    return table(("setting and variable", "default", "meaning"), rows)


_UNITS = {"days": timedelta(days=1), "minutes": timedelta(minutes=1), "ms": timedelta(milliseconds=1)}


def _plain(value: object) -> str:
    if isinstance(value, timedelta):
        unit, length = next((unit, length) for unit, length in _UNITS.items() if not value % length)
        count = value // length
        return f"{count} {unit if count != 1 else unit.removesuffix('s')}"
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
        names = f'<span id="{name}"></span>{mark}`{name}`' + (f"<br>{_code(built_in)}" if built_in else "")
        rows.append((names, when.strip(), ", ".join(map(_code, _attributes(cls))), str(status)))
    return table(("exception, which is also", "when", "has", "HTTP"), rows)


def _attributes(cls: type) -> list[str]:
    """The attributes that a constructor sets."""
    own = inspect.getsource(vars(cls)["__init__"]) if "__init__" in vars(cls) else ""
    return list(dict.fromkeys(name for name in re.findall(r"self\.(\w+)(?=[ ,]*(?:= |self\.))", own)))


def commands() -> str:
    """Every command with its help, options and examples."""
    parts = []
    for theme, themed in main._THEMES.items():
        parts.append(f"## {theme}")
        for command in themed:
            text = inspect.cleandoc(command.help or "").replace("\b\n", "")
            arguments = [each.make_metavar(_context(command)) for each in command.params if _is_argument(each)]
            usage = " ".join(["session-middleware", str(command.name), "[OPTIONS]", *arguments])
            examples = "\n".join(line.strip() for line in (command.epilog or "").splitlines()[2:])
            parts += [f"### {command.name}", text, f"```text\n{usage}\n```"]
            options = [each.get_help_record(_context(command)) for each in command.params if not _is_argument(each)]
            parts += [
                table(
                    ("option", "meaning"), ((_code(one[0]) + "{.option}", _escaped(one[1])) for one in options if one)
                )
            ]
            parts += [f"```console\n{re.sub('^', '$ ', examples, flags=re.MULTILINE)}\n```"]
    return "\n\n".join(parts)


def _is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


def _context(command: Any) -> Any:
    import click

    return click.Context(command, info_name=command.name)


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace("[", "\\[")


def methods(name: str) -> str:
    """The public methods of a class, each with its async twin and the first sentence of its docstring."""
    path = _CLASSES[name]
    cls = getattr(import_module(path.rpartition(".")[0]), name)
    public = {each: inspect.getattr_static(cls, each) for each in dir(cls) if not each.startswith("_")}
    fields = set(getattr(models.SessionFields, "__annotations__", ())) | {"columns"}
    rows = []
    for each, member in sorted(public.items()):
        if each in fields or (each.startswith("a") and each[1:] in public):
            continue
        twin = f"<br>`a{each}`" if f"a{each}" in public else ""
        first = re.split(r"(?<=\.)\s|\n\n", inspect.getdoc(member) or "")[0].replace("\n", " ")
        is_by_hand = name == "Session" and getattr(member, "__module__", "") == _MANUAL.rpartition(".")[0]
        owner = _MANUAL if is_by_hand else path
        rows.append((f"[`{each}`][{owner}.{each}]{twin}", _escaped(first)))
    return table(("method and async twin", "what it does"), rows)


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
            table(("field", "type", "meaning"), rows),
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
    text = re.sub(r"Annotated\[(\w+), .*?\)\]", r"\1", text)
    text = re.sub(r"Literal\[(.*?)\]", lambda values: values[1].replace("', '", "' or '"), text)
    text = re.sub(r"^Union\[(.*)\]$", lambda parts: parts[1].replace(", ", " or "), text)
    return text.replace(" | ", " or ").removesuffix(" or ") + (" or None" if text.endswith(", ") else "")


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
    return table(("file", "what it shows"), rows)


def example(path: Path) -> str:
    return f"# {path.name}\n\n```python\n{path.read_text()}```\n"
