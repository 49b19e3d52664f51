"""Extras that a command needs, and objects of a person's own code that it names as ``module:attribute``."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import click


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Name the extra to install where a module of it is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("session_middleware"):
            raise
        advice = f"install it with pip install 'session-middleware[{name}]'"
        raise click.ClickException(f"{error.name} is not installed, which this command needs; {advice}") from error


def import_object(option: str, name: str) -> Any:
    """The object ``module:attribute``.

    Raises:
        click.UsageError: the name has no such form.
        click.ClickException: there is no such module or attribute, or the module raised.
    """
    module_name, separator, path = name.partition(":")
    if not separator or not path or not all(part.isidentifier() for part in module_name.split(".")):
        advice = "write a module as Python imports it, a colon and a name in it, such as my_app.agents:graph"
        raise click.UsageError(f"{option} {name!r} names nothing; {advice}")
    found = _import(option, module_name)
    for part in path.split("."):
        if not hasattr(found, part):
            raise click.ClickException(f"{option} {name!r}: module {module_name!r} has no {path!r}; check the spelling")
        found = getattr(found, part)
    return found


def _import(option: str, module_name: str) -> Any:
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            advice = "change to the folder that has it, or install its package"
            message = f"{option}: there is no module {error.name!r} in {folder} or among the installed ones; {advice}"
            raise click.ClickException(message) from error
        raise _failure(option, module_name, error) from error
    except Exception as error:  # the module is a person's own code, which may raise any
        raise _failure(option, module_name, error) from error


def _failure(option: str, name: str, error: BaseException) -> click.ClickException:
    """What a person's own code raised, and where: the innermost line of it that is no library's."""
    own = str(Path.cwd())
    places = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(own)]
    where = f" ({Path(places[-1].filename).relative_to(own)}, line {places[-1].lineno})" if places else ""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return click.ClickException(f"{option}: {name!r} cannot be loaded: {text}{where}")


def graph_names(apps: tuple[str, ...]) -> dict[str, str]:
    """``module:attribute`` by the graph's name, which is the attribute unless it is given as ``name=…``."""
    found: dict[str, str] = {}
    for app in apps:
        name, separator, target = app.rpartition("=")
        name = name if separator else target.rpartition(":")[2].rpartition(".")[2]
        if not name:
            raise click.UsageError(f"--app {app!r} has no name before =; write name=module:graph, or module:graph")
        if name in found:
            raise click.UsageError(f"two of --app are named {name!r}; write another name, such as {name}2={target}")
        found[name] = target
    return found


async def compiled_graph(target: str, found: Any, stack: AsyncExitStack) -> Any:
    """The compiled graph that an object is or makes.

    A function is called without arguments, or with an empty config if it takes one, and may be async or a context
    manager, which the stack exits.
    """
    from langgraph.graph import StateGraph
    from langgraph.pregel import Pregel

    try:
        if not isinstance(found, StateGraph | Pregel) and callable(found):
            found = found({}) if _takes_config(found) else found()
            if inspect.isawaitable(found):
                found = await found
            if hasattr(found, "__aenter__"):
                found = await stack.enter_async_context(found)
            elif hasattr(found, "__enter__"):
                found = stack.enter_context(found)
        if isinstance(found, StateGraph):
            found = found.compile()
    except Exception as error:  # as above
        raise _failure("--app", target, error) from error
    if not isinstance(found, Pregel):
        wanted = "a graph of LangGraph, or a function that returns one"
        raise click.ClickException(f"--app {target!r} is of type {type(found).__name__}; name {wanted}")
    return found


def _takes_config(function: Any) -> bool:
    from session_middleware.storage.validation import signature_of

    needed = [
        each
        for each in signature_of(function).parameters.values()
        if each.default is each.empty and each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    return len(needed) == 1
