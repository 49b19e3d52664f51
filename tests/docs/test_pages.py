"""The Python of these pages is run, and its output compared."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(
    {path.name for path in DOCS.glob("*.md")} - {"command_line.md", "scale.md"}
)  # which have tests of their own
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", PAGES)
def test_the_python_prints_what_the_page_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "chat_app.md":
        pytest.importorskip("fastapi")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for (kind, text), (next_kind, output) in itertools.pairwise([*BLOCK.findall((DOCS / name).read_text()), ("", "")]):
        if kind == "python":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(text, name, "exec"), names)
            assert printed.getvalue() == (output if next_kind == "text" else "")
    names["sessions"].close()
