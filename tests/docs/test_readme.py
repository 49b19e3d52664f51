"""What the README shows is what happens: its Python is run, and its output compared."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import tomllib
from pathlib import Path

import pytest

from tests.support.commands import serving
from tests.support.processes import run

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_snippets_print_what_the_readme_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall((ROOT / "README.md").read_text())
    names: dict[str, object] = {}
    checked = 0
    for (kind, text), (next_kind, next_text) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if kind != "python" or "get_sync_client" in text:  # which has a test of its own
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(text, "README.md", "exec"), names)
        if next_kind == "text":
            assert printed.getvalue() == next_text
            checked += 1
    names["sessions"].close()  # type: ignore[attr-defined]
    assert checked >= 1


@pytest.mark.slow
def test_the_client_is_answered_by_the_served_graph(tmp_path: Path) -> None:
    blocks = BLOCK.findall((ROOT / "README.md").read_text())
    (tmp_path / "my_agent.py").write_text(
        blocks[0][1].partition("sessions = ")[0].replace("from session_middleware import Sessions\n", "")
        + "graph = builder.compile()\n"
    )
    [(client, printed)] = [
        (text, output) for (_, text), (_, output) in itertools.pairwise(blocks) if "get_sync_client" in text
    ]
    [start] = re.findall(r"^\$ session-middleware (serve [^#\n]*)", (ROOT / "README.md").read_text(), re.MULTILINE)
    with serving(*start.split()) as (_, address):
        assert run("-c", client.replace("http://127.0.0.1:8123", address), check=True).stdout == printed


def test_it_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 115


def test_its_table_has_every_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    table = (ROOT / "README.md").read_text().split("## Install")[1].split("## ")[0]
    named = re.findall(r"`([\w-]+)`", " ".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)))
    assert set(named) == set(extras)


def test_every_command_on_a_page_exists() -> None:
    from session_middleware.cli.main import cli

    for path in (ROOT / "README.md", *ROOT.glob("docs/*.md")):
        for block in re.findall(r"^```console\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL):
            named = set(re.findall(r"^\$ session-middleware ([\w-]+)", block, re.MULTILINE))
            assert named <= set(cli.commands), path.name


def test_every_make_target_on_a_page_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")):
        named = re.findall(r"(?:^\$ |`)make ([\w-]+)", path.read_text(), re.MULTILINE)
        assert set(named) <= targets, path.name


def test_links_lead_somewhere() -> None:
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")):
        for target in re.findall(r"\]\(([^)#]+)(?:#[\w-]+)?\)", path.read_text()):
            assert target.startswith("http") or (path.parent / target).exists(), f"{path.name}: {target}"
