"""A conversation in the terminal that is resumed by its id, whatever ended it the last time."""

from __future__ import annotations

import shlex
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.graph.state import CompiledStateGraph
from rich.console import Console
from rich.text import Text

from session_middleware.demo.agent import build_agent
from session_middleware.demo.tools import make_report_tool, make_tools
from session_middleware.demo.workspace import make_workspace
from session_middleware.render import message_line, request_text
from session_middleware.session import Session
from session_middleware.sessions import Sessions
from session_middleware.wording import visible

Agent = CompiledStateGraph[Any, Any, Any, Any]

_LAST_MESSAGES = 4
_QUITS = ("/quit", "/exit", "/q")


def converse(
    sessions: Sessions, console: Console, *, thread: str | None, user_id: str | None, model: BaseChatModel
) -> None:
    """Open or resume the thread, and talk until ``/quit``, Ctrl-D or Ctrl-C.

    Raises:
        SessionAccessDenied: the thread is another user's.
    """
    with suppress(ImportError):
        import readline  # noqa: F401 - gives `input` its line editing, where there is one
    session = sessions.open(thread, user_id=user_id)
    with tempfile.TemporaryDirectory(prefix="session-middleware-") as folder:
        workspace = make_workspace(Path(folder))
        tools = make_tools(workspace.files, workspace.database)
        tools.append(make_report_tool(workspace.files, workspace.database))
        agent = sessions.attach(build_agent(tools, model))
        try:
            _greet(session, console)
            _finish(agent, session.config(), console)
            _talk(agent, session.config(), console)
        except KeyboardInterrupt:
            console.print()
        finally:
            _say_goodbye(sessions, session, console)


def _greet(session: Session, console: Console) -> None:
    console.print(Text.assemble("session ", (visible(session.id), "bold"), f": {session.opened_as}"))
    messages = [message for message in session.messages() if message.text and message.role in ("user", "assistant")]
    if len(messages) > _LAST_MESSAGES:
        console.print(Text(f"… {len(messages) - _LAST_MESSAGES} earlier messages", style="dim"))
    for message in messages[-_LAST_MESSAGES:]:
        console.print(message_line(message))
    console.print(Text("/quit, Ctrl-D or Ctrl-C ends the chat; the session stays.", style="dim"))


def _finish(agent: Agent, config: RunnableConfig, console: Console) -> None:
    """A turn that was cut off is finished first: its question was asked and its tool call is due."""
    waiting = agent.get_state(config).next
    if waiting:
        console.print(Text(f"The last turn was cut off before {', '.join(waiting)}; finishing it now.", style="yellow"))
        _take_turn(agent, None, config, console)


def _talk(agent: Agent, config: RunnableConfig, console: Console) -> None:
    while True:
        try:
            said = input("you> ").strip()
        except EOFError:
            console.print()
            return
        if said in _QUITS:
            return
        if said:
            _take_turn(agent, {"messages": said}, config, console)


def _take_turn(agent: Agent, given: dict[str, Any] | None, config: RunnableConfig, console: Console) -> None:
    """Print the answer as it is streamed, and each tool call with its result when they are known."""
    talking = False
    for mode, part in agent.stream(given, config, stream_mode=["messages", "updates"]):
        if mode == "messages":
            message = part[0]
            if isinstance(message, AIMessage) and message.text:
                console.print(Text(visible(message.text)), end="", soft_wrap=True)
                talking = True
            continue
        if talking:
            console.print()
            talking = False
        for message in _messages_of(cast("dict[str, Any]", part)):
            _show_tools(message, console)


def _messages_of(update: dict[str, Any]) -> list[BaseMessage]:
    return [message for change in update.values() if change for message in change.get("messages", ())]


def _show_tools(message: BaseMessage, console: Console) -> None:
    if isinstance(message, AIMessage):
        for call in message.tool_calls:
            console.print(Text.assemble(("  tool ", "yellow"), request_text(call["name"], call["args"])))
    elif isinstance(message, ToolMessage):
        style = "red" if message.status == "error" else "dim"
        text = " ".join(visible(message.text).split())
        console.print(Text(f"    → {text}", style=style), overflow="ellipsis", no_wrap=True)


def _say_goodbye(sessions: Sessions, session: Session, console: Console) -> None:
    command = ["session-middleware", "chat", "--thread", session.id]
    command += ["--user", session.user_id] if session.user_id else []
    command += ["--db", sessions.settings.storage_url]
    console.print(Text.assemble(("resume with: ", "dim"), visible(shlex.join(command))), soft_wrap=True)
