"""The tour: what the package does, shown by doing it, with nothing told that was not measured.

A conversation with tools; a process killed in the middle of a tool call and its turn finished by
another; the record; memory, owners and expiry; and the size of the file. No key, no network.
"""

from __future__ import annotations

import inspect
import os
import shlex
import shutil
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.graph.state import CompiledStateGraph
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from session_middleware import SessionAccessDenied, Sessions
from session_middleware.demo import sizes
from session_middleware.demo.agent import build_agent
from session_middleware.demo.crash import crash
from session_middleware.demo.model import ScriptedModel
from session_middleware.demo.tools import make_report_tool, make_tools
from session_middleware.demo.worker import QUESTION
from session_middleware.demo.workspace import make_workspace
from session_middleware.model import ToolCall, utc_now
from session_middleware.render import request_text, sweep_table, timeline
from session_middleware.wording import plural, shortened, visible

Agent = CompiledStateGraph[Any, Any, Any, Any]

THREAD, OWNER, STRANGER = "support-42", "ada", "mallory"
TURNS = 60
_CONVERSATION = (
    "My name is Ada. What is our refund policy for water filters?",
    "Which region has the highest revenue?",
    "What is 15% of 1,250?",
    "What is my name?",
)


@dataclass(frozen=True, slots=True)
class Tour:
    console: Console
    folder: Path
    path: Path  # the database
    graph: Agent

    def say(self, text: str) -> None:
        self.console.print(Text(text))

    def point(self, text: str) -> None:
        """A finding, computed from what has just happened."""
        self.console.print(Text.assemble(("  ✓ ", "green"), (visible(text), "bold")))

    def sessions(self, **settings: Any) -> Sessions:
        return Sessions(self.path, idle_timeout="30m", **settings)


def run(console: Console, *, keep: Path | None = None) -> None:
    """The whole tour; its database is kept at `keep`, or in a new folder of its own."""
    began = time.monotonic()
    keep = keep or Path(tempfile.mkdtemp(prefix="session-middleware-tour-")) / "sessions.db"
    # On Windows a file of a killed process may be held for a moment longer: never fail over rubbish.
    with tempfile.TemporaryDirectory(prefix="session-middleware-", ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        workspace = make_workspace(folder)
        tools = make_tools(workspace.files, workspace.database)
        tools.append(make_report_tool(workspace.files, workspace.database))
        graph = build_agent(tools, ScriptedModel())
        tour = Tour(console, folder, keep, graph)
        with _undisturbed(folder):
            for number, (title, section) in enumerate(_SECTIONS, start=1):
                console.print()
                console.rule(Text(f"{number} of {len(_SECTIONS)}: {title}", style="bold"), align="left")
                section(tour)
    _end(console, keep, time.monotonic() - began)


@contextmanager
def _undisturbed(folder: Path) -> Iterator[None]:
    """Keep the settings of whoever runs the tour, in the environment or in a .env file, out of it."""
    before = {name: os.environ.pop(name) for name in list(os.environ) if name.upper().startswith("SESSION_")}
    try:
        with chdir(folder):
            yield
    finally:
        os.environ.update(before)


def _end(console: Console, keep: Path, seconds: float) -> None:
    console.print()
    console.rule(style="dim")
    console.print(f"That took {seconds:.1f} seconds, without a key or a network. Its sessions are kept in")
    console.print(Text(f"  {keep}", style="bold"), soft_wrap=True)
    console.print("Talk to the agent yourself, and look at what was recorded:")
    for command in ("chat --thread my-first --user me", f"show {THREAD}"):
        line = f"{_program()} {command} --db {shlex.quote(str(keep))}"
        console.print(Text(line, style="cyan"), soft_wrap=True)


def _program() -> str:
    """How this program is called from where its user stands."""
    called = Path(sys.argv[0])
    found = shutil.which("session-middleware")
    if found is not None and called.exists() and Path(found).samefile(called):
        return "session-middleware"
    if called.name == "session-middleware" and called.exists():
        return shlex.quote(os.path.relpath(called) if called.is_relative_to(Path.cwd()) else str(called))
    return f"{shlex.quote(sys.executable)} -m session_middleware.cli"


# 1


def attach(graph: Agent, path: Path) -> tuple[Sessions, Agent, RunnableConfig]:
    sessions = Sessions(path, idle_timeout="30m")
    agent = sessions.attach(graph)
    config = sessions.config("support-42", user_id="ada")
    return sessions, agent, config


def _conversation(tour: Tour) -> None:
    tour.say("An ordinary LangGraph agent with tools. These three lines give it sessions:")
    lines = inspect.getsource(attach).splitlines()[1:-1]
    tour.console.print(Syntax(textwrap.dedent("\n".join(lines)), "python", background_color="default"))
    sessions, agent, config = attach(tour.graph, tour.path)
    with sessions:
        for question in _CONVERSATION:
            _ask(tour, agent, question, config)
        stats = sessions.get(THREAD).stats()
    tour.point(
        f"{plural(stats.run_count, 'run')}, {plural(stats.message_count, 'message')} and"
        f" {plural(stats.tool_call_count, 'tool call')} are rows in one file, {tour.path.name}"
    )


def _ask(tour: Tour, agent: Agent, question: str | None, config: RunnableConfig) -> None:
    """Take a turn, or finish one when there is no question, and print what was new in it."""
    before = len(agent.get_state(config).values.get("messages", ()))
    state = agent.invoke(None if question is None else {"messages": question}, config)
    if question is not None:
        tour.console.print(Text.assemble(("user   ", "bold cyan"), question))
    for message in state["messages"][before:]:
        if isinstance(message, AIMessage) and message.text:
            tour.console.print(Text.assemble(("agent  ", "bold green"), visible(message.text)))
        for call in message.tool_calls if isinstance(message, AIMessage) else ():
            tour.console.print(Text.assemble(("tool   ", "yellow"), request_text(call["name"], call["args"])))
        if isinstance(message, ToolMessage):
            tour.console.print(Text(f"       → {visible(shortened(message.text, 60))}", style="dim"))


# 2 and 3


def _killed(tour: Tour) -> None:
    tour.say(f'A second process resumes {THREAD} and is asked: "{QUESTION}"')
    tour.say("Its tool takes a minute. The process is killed in the middle of it.")
    crashed = crash(tour.path, tour.folder, thread=THREAD, user_id=OWNER)
    tour.say(
        f"Process {crashed.pid} was killed {crashed.tool_seconds:.1f} s into the tool call (exit code"
        f" {crashed.returncode})."
    )
    with tour.sessions() as sessions:
        call = sessions.get(THREAD).tool_calls()[-1]
    tour.point(f"the file says: {_said_of(call)}; its start was recorded before the tool ran")


def _said_of(call: ToolCall) -> str:
    result = "no result" if call.result is None else f"result {call.result!r}"
    return f"{call.name}, attempt {call.attempt}: {call.status}, {result}"


def _finished(tour: Tour) -> None:
    tour.say(f"This process ({os.getpid()}) opens the file and takes the same thread id.")
    with tour.sessions() as sessions:
        agent, config = sessions.attach(tour.graph), sessions.config(THREAD, user_id=OWNER)
        waiting = ", ".join(agent.get_state(config).next)
        tour.say(f"{THREAD} is {sessions.get(THREAD).status}; waiting to run: {waiting}. It is told to go on:")
        tour.console.print(Syntax("agent.invoke(None, config)", "python", background_color="default"))
        _ask(tour, agent, None, config)
        session = sessions.get(THREAD)
        attempts = [call for call in session.tool_calls() if call.name == "export_report"]
        asked = sum(message.text == QUESTION for message in session.messages())
        tour.point(f"{THREAD} was {session.opened_as}; its question is recorded {_times(asked)}")
        tour.point("the tool call: " + "; ".join(f"attempt {call.attempt} {call.status}" for call in attempts))
        if not agent.get_state(config).next:
            tour.point("the turn is complete: nothing is left to run")


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


# 4


def _recorded(tour: Tour) -> None:
    tour.say("What session-middleware show prints, from plain tables anyone can query:")
    with tour.sessions() as sessions:
        session = sessions.get(THREAD)
        tour.console.print(timeline(session, session.timeline()))


# 5


def _memory(tour: Tour) -> None:
    with tour.sessions() as sessions:
        first = sessions.get(THREAD)
        second = sessions.open("support-43", user_id=OWNER)
        other = sessions.open("support-44", user_id=STRANGER)
        first.memory.remember("The customer prefers store credit to a refund.")
        first.memory.remember("Ada likes her figures in euros.", scope="user")
        for session in (first, second, other):
            for query in ("store credit", "euros"):
                found = [f'"{memory.text}" ({memory.scope})' for memory in session.memory.recall(query)]
                tour.say(f"  {session.id} of {session.user_id} recalls {query!r}: {', '.join(found) or 'nothing'}")
        own, theirs = (len(one.memory.recall("store credit")) for one in (first, second))
    tour.point(f"what a session remembers is its own: {own} found there, {theirs} from another session")


# 6


def _denied(tour: Tour) -> None:
    with tour.sessions() as sessions:
        agent = sessions.attach(tour.graph)
        count = sessions.get(THREAD).message_count
        try:
            agent.invoke({"messages": "What is my name?"}, sessions.config(THREAD, user_id=STRANGER))
        except SessionAccessDenied as error:
            tour.say(f"{type(error).__name__}: {error}")
        session = sessions.get(THREAD)
        event = session.events()[-1]
        tour.point(
            f"{session.message_count - count} messages were added; an event says so: {event.kind} {event.detail}"
        )


# 7


def _expired(tour: Tour) -> None:
    tour.say('With idle_timeout="30m", and a clock that is set one hour ahead:')
    with tour.sessions(clock=lambda: utc_now() + timedelta(hours=1)) as sessions:
        agent, config = sessions.attach(tour.graph), sessions.config(THREAD, user_id=OWNER)
        due = sessions.sweep(dry_run=True)
        tour.say(f"a dry run would end {len(due)}; the sweep ends:")
        tour.console.print(sweep_table(sessions.sweep()))
        tour.say(f"{THREAD} is {sessions.get(THREAD).status}. Its user comes back all the same:")
        _ask(tour, agent, "What is my name?", config)
        session = sessions.get(THREAD)
        tour.point(f"the session was {session.opened_as} and is {session.status}; its history was kept")


# 8


def _sizes(tour: Tour) -> None:
    tour.say("The same questions to the same agent, once with LangGraph's SqliteSaver and once with ours:")
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_row("  turns", "langgraph-checkpoint-sqlite", "session-middleware", "ratio")
    ratios = []
    for turns in (TURNS // 2, TURNS):
        ours = sizes.our_size(tour.graph, tour.folder / f"ours-{turns}.db", turns=turns)
        theirs = sizes.langgraph_size(tour.graph, tour.folder / f"langgraph-{turns}.db", turns=turns)
        ratios += [theirs / ours] if theirs is not None else []
        ratio = f"{ratios[-1]:.1f}" if ratios else "-"
        table.add_row(f"  {turns}", _megabytes(theirs), _megabytes(ours), ratio)
    tour.console.print(table)
    tour.say("Ours holds the record as well: messages, tool calls and events as rows.")
    if not ratios:
        tour.say("To compare with LangGraph's: pip install 'session-middleware[demo]'")
    elif ratios[-1] > 1:
        tour.point(f"after {TURNS} turns the file is {ratios[-1]:.1f} times smaller")


def _megabytes(size: int | None) -> str:
    return "not installed" if size is None else f"{size / 1e6:.2f} MB"


_SECTIONS: tuple[tuple[str, Callable[[Tour], None]], ...] = (
    ("a conversation, resumable by its id", _conversation),
    ("kill -9 in the middle of a tool call", _killed),
    ("another process finishes the turn", _finished),
    ("everything was recorded", _recorded),
    ("memory that stays in its scope", _memory),
    ("another user is refused", _denied),
    ("idle sessions expire, and can come back", _expired),
    ("the file stays small", _sizes),
)
