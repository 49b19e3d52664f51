"""An MCP server with state for the tests: a counter in a file of its folder. ``counter_mcp.py FOLDER``."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from mcp.server import MCPServer

server = MCPServer("counter", log_level="CRITICAL")
folder = Path(sys.argv[1])
(folder / "pids").open("a").write(f"{os.getpid()}\n")


@server.tool()
def add(n: int = 1) -> int:
    """Add to the counter, and return it."""
    file = folder / "counter"
    total = (int(file.read_text()) if file.exists() else 0) + n
    file.write_text(str(total))
    return total


@server.tool()
def process() -> int:
    """The id of this process."""
    return os.getpid()


@server.tool()
def double(x: float) -> float:
    """Twice a number."""
    return 2 * x


@server.tool()
def fail() -> str:
    """Report an error."""
    raise ValueError("no")


@server.tool()
def die() -> str:
    """End the process."""
    os._exit(3)


@server.tool()
def hang() -> str:
    """Answer never."""
    (folder / "hangs").touch()
    threading.Event().wait()
    return ""


@server.tool()
def write(characters: int) -> str:
    """A long text."""
    return "x" * characters


server.run("stdio")
