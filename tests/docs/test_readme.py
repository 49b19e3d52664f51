"""What the README shows is what happens: its Python is run, and its output compared."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_snippets_print_what_the_readme_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall((ROOT / "README.md").read_text())
    names: dict[str, object] = {}
    checked = 0
    for (kind, text), (next_kind, next_text) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if kind != "python":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(text, "README.md", "exec"), names)
        if next_kind == "text":
            assert printed.getvalue() == next_text
            checked += 1
    names["sessions"].close()  # type: ignore[attr-defined]
    assert checked >= 6


def test_every_setting_is_in_the_readme_and_every_one_there_exists() -> None:
    from session_middleware import SessionSettings

    table = (ROOT / "README.md").read_text().split("## Settings")[1].split("## ")[0]
    names = [name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)]
    assert set(names) == set(SessionSettings.model_fields)


def test_every_command_in_the_readme_exists() -> None:
    from session_middleware.cli.main import cli

    named = set(re.findall(r"^\$ session-middleware ([\w-]+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert named <= set(cli.commands)


def test_links_lead_somewhere() -> None:
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            assert target.startswith("http") or (path.parent / target).exists(), f"{path.name}: {target}"
