"""The command ``chat``: a conversation in the terminal that is resumed by its id."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import RunnableConfig
from langgraph.graph import START, MessagesState, StateGraph
from rich.console import Console
from rich.text import Text

from session_middleware.cli.terminal import message_line
from session_middleware.display.text import plural, visible
from session_middleware.session import Session
from session_middleware.sessions import Sessions

_LAST_MESSAGES = 4
_QUITS = ("/quit", "/exit", "/q")


def converse(
    sessions: Sessions, console: Console, *, thread: str | None, user_id: str | None, model: BaseChatModel | None
) -> None:
    """Open or resume the thread, and talk until ``/quit``, Ctrl-D or Ctrl-C.

    Raises:
        SessionAccessDenied: the thread is another user's.
    """
    with suppress(ImportError):
        import readline  # noqa: F401 - gives `input` its line editing, where there is one
    session = sessions.open(thread, user_id=user_id)
    agent = sessions.attach(_graph(model))
    try:
        _greet(session, console)
        waiting = agent.get_state(session.config()).next
        if waiting:
            console.print(Text(f"The last turn was cut off before {', '.join(waiting)}; finishing it now."))
            _take_turn(agent, None, session.config(), console)
        _talk(agent, session.config(), console)
    except KeyboardInterrupt:
        console.print()
    finally:
        _say_goodbye(sessions, session, console)


def _graph(model: BaseChatModel | None) -> Any:
    def call_model(state: MessagesState) -> dict[str, Any]:
        said = state["messages"]
        return {"messages": [_recount(said) if model is None else model.invoke(said)]}

    builder = StateGraph(MessagesState)
    builder.add_node("model", call_model)
    builder.add_edge(START, "model")
    return builder.compile()


def _recount(said: Sequence[BaseMessage]) -> AIMessage:
    """The answer where there is no model: it shows that the conversation was resumed."""
    asked = [message.text for message in said if message.type == "human"]
    return AIMessage(
        f"You have said {plural(len(asked), 'thing')} here, first: {asked[0]!r}. For real answers, pass --model."
    )


def _greet(session: Session, console: Console) -> None:
    console.print(Text.assemble("session ", (visible(session.id), "bold"), f": {session.opened_as}"))
    messages = [message for message in session.messages() if message.text and message.role in ("user", "assistant")]
    if len(messages) > _LAST_MESSAGES:
        console.print(Text(f"… {len(messages) - _LAST_MESSAGES} earlier messages", style="dim"))
    for message in messages[-_LAST_MESSAGES:]:
        console.print(message_line(message))
    console.print(Text("/quit, Ctrl-D or Ctrl-C ends the chat; the session stays.", style="dim"))


def _talk(agent: Any, config: RunnableConfig, console: Console) -> None:
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


def _take_turn(agent: Any, given: dict[str, Any] | None, config: RunnableConfig, console: Console) -> None:
    """Print the answer as it is streamed."""
    for message, _ in agent.stream(given, config, stream_mode="messages"):
        if isinstance(message, AIMessage):
            console.print(Text(visible(message.text)), end="", soft_wrap=True)
    console.print()


def _say_goodbye(sessions: Sessions, session: Session, console: Console) -> None:
    command = ["session-middleware", "chat", "--thread", session.id]
    command += ["--user", session.user_id] if session.user_id else []
    command += ["--db", sessions.settings.storage_url]
    console.print(Text.assemble(("resume with: ", "dim"), visible(shlex.join(command))), soft_wrap=True)
