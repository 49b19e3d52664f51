"""An MCP server with state for the tests: a counter in a file of its folder. ``counter_mcp.py FOLDER``.

It starts at once, because it imports no package; the server of `docs/gateway.md` is one of the SDK.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

folder = Path(sys.argv[1])
tools: dict[str, Callable[..., Any]] = {}
TYPES = {"int": "integer", "float": "number", "str": "string"}


def tool(function: Callable[..., Any]) -> Callable[..., Any]:
    tools[function.__name__] = function
    return function


@tool
def add(n: int = 1) -> int:
    """Add to the counter, and return it."""
    file = folder / "counter"
    total = (int(file.read_text()) if file.exists() else 0) + n
    file.write_text(str(total))
    return total


@tool
def process() -> int:
    """The id of this process."""
    return os.getpid()


@tool
def double(x: float) -> float:
    """Twice a number."""
    return 2 * x


@tool
def fail() -> str:
    """Report an error."""
    raise ValueError("no")


@tool
def die() -> str:
    """End the process."""
    os._exit(3)


@tool
def hang() -> str:
    """Answer never."""
    (folder / "hangs").touch()
    threading.Event().wait()
    return ""


@tool
def write(characters: int) -> str:
    """A long text."""
    return "x" * characters


def described(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    types = {each: {"type": TYPES[kind]} for each, kind in function.__annotations__.items()}
    result = {"type": "object", "properties": {"result": types.pop("return")}, "required": ["result"]}
    arguments = {"type": "object", "properties": types}
    return {"name": name, "description": function.__doc__, "inputSchema": arguments, "outputSchema": result}


def call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        result = tools[name](**arguments)
    except ValueError:
        return {"content": [{"type": "text", "text": f"Error executing tool {name}"}], "isError": True}
    if result == math.inf:  # which JSON does not have
        result = None
    return {"content": [{"type": "text", "text": str(result)}], "structuredContent": {"result": result}}


def answer(method: str, parameters: dict[str, Any]) -> dict[str, Any]:
    match method:
        case "initialize":
            about = {"name": "counter", "version": "1"}
            return {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": about}
        case "tools/list":
            return {"tools": [described(*each) for each in tools.items()]}
        case "tools/call":
            return call(parameters["name"], parameters.get("arguments") or {})
    return {}


def respond(asked: dict[str, Any]) -> None:
    result = answer(asked["method"], asked.get("params") or {})
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}) + "\n")
    sys.stdout.flush()


for line in sys.stdin:
    request = json.loads(line)
    if "id" in request:  # as in the SDK, others are answered while one hangs, and that one keeps the process
        threading.Thread(target=respond, args=(request,)).start()
