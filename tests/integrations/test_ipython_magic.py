"""``%session`` in IPython: sessions open and resume, and a cell that runs again replaces its turn."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell

from session_middleware import Session

Cell = Callable[[str, str], Any]

GRAPH = """
from langgraph.graph import START, MessagesState, StateGraph
def answer(state): return {"messages": [("ai", f"answer to {state['messages'][-1].text}")]}
agent = sessions.attach(StateGraph(MessagesState).add_node("answer", answer).add_edge(START, "answer").compile())
def ask(text): agent.invoke({"messages": text}, config)
def said(): return [message.text for message in session.messages() if message.role == "user"]
"""


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Cell]]:
    """Starts a kernel, whose cells run by their code and their id."""
    monkeypatch.chdir(tmp_path)
    shells: list[InteractiveShell] = []

    def start() -> Cell:
        shell = InteractiveShell()  # type: ignore[no-untyped-call]
        shells.append(shell)

        def cell(code: str, cell_id: str) -> Any:
            done = shell.run_cell(code, cell_id=cell_id)  # type: ignore[no-untyped-call]
            done.raise_error()
            return done.result

        cell("%load_ext session_middleware", "load")
        return cell

    yield start
    for shell in shells:
        shell.run_cell("%unload_ext session_middleware\nsessions.close()")  # type: ignore[no-untyped-call]


def test_a_cell_that_runs_again_replaces_its_turn(kernel: Callable[[], Cell]) -> None:
    cell = kernel()
    opened = cell("%session lab --db lab.db --user ada", "open")
    assert isinstance(opened, Session)
    assert (opened.id, opened.user_id, opened.opened_as) == ("lab", "ada", "opened")
    cell(GRAPH, "graph")
    cell("ask('one'); ask('two')", "first")
    cell("ask('three')", "second")
    assert cell("said()", "look") == ["one", "two", "three"]
    cell("ask('THREE')", "second")
    assert cell("said()", "look") == ["one", "two", "THREE"]
    cell("ask('ONE')", "first")  # the later cells run again from here
    assert cell("said()", "look") == ["ONE"]
    cell("ask('three')", "second")
    assert cell("said()", "look") == ["ONE", "three"]
    values = cell("agent.get_state(config).values['messages']", "state")
    assert [message.text for message in values] == ["ONE", "answer to ONE", "three", "answer to three"]
    assert cell("sessions.check(deep=True)", "check") == []


def test_a_restarted_kernel_resumes_by_id(kernel: Callable[[], Cell]) -> None:
    for opened_as in ("opened", "resumed"):  # each time all cells of the notebook
        cell = kernel()
        assert cell("%session lab --db lab.db", "open").opened_as == opened_as
        cell(GRAPH, "graph")
        cell("ask('one')", "first")
        cell("ask('two')", "second")
        assert cell("said()", "look") == ["one", "two"]
        cell("sessions.close()", "close")


@pytest.mark.parametrize(("code", "reason"), [("sessions.close()", "closed"), ("session.delete()", "no session")])
def test_the_end_of_a_session_is_told_once(
    kernel: Callable[[], Cell], capsys: pytest.CaptureFixture[str], code: str, reason: str
) -> None:
    cell = kernel()
    cell("%session lab --db lab.db", "open")
    cell(code, "end")
    assert cell("'config' in dir()", "look") is False
    assert re.fullmatch(rf"%session: .*{reason}.*\n", capsys.readouterr().err)
    assert cell("1", "look") == 1
    assert capsys.readouterr().err == ""
    assert cell("%session lab --db lab.db", "again").id == "lab"


def test_the_notebooks_own_sessions_are_used(kernel: Callable[[], Cell]) -> None:
    cell = kernel()
    cell("from session_middleware import Sessions\nsessions = Sessions(':memory:', idle_timeout='1h')", "own")
    assert cell("%session lab", "open").expires_at is not None
    assert cell("%session", "show").id == "lab"
    assert cell("sessions.settings.storage_url", "url") == ":memory:"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("%session", "name the session"),
        ("%session lab --what", "unrecognized arguments"),
        ("%session lab --db missing/lab.db", "its folder does not exist"),
    ],
)
def test_a_wrong_line_is_one_sentence(kernel: Callable[[], Cell], line: str, reason: str) -> None:
    from IPython.core.error import UsageError

    with pytest.raises(UsageError, match=reason):
        kernel()(line, "wrong")


def test_another_users_session_is_refused(kernel: Callable[[], Cell]) -> None:
    from IPython.core.error import UsageError

    cell = kernel()
    cell("%session lab --db lab.db --user ada", "open")
    with pytest.raises(UsageError, match="name its owner with --user"):
        cell("%session lab --user eve", "eve")
    assert cell("session.user_id", "still") == "ada"
