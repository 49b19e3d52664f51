"""The command ``chat``: a conversation in the terminal that resumes by its thread id."""

from __future__ import annotations

import re
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

from session_middleware.cli.timeline import message_line
from session_middleware.display.text import plural, visible, visible_line
from session_middleware.session import Session
from session_middleware.sessions import Sessions
from session_middleware.settings import without_secrets

_SHOWN_MESSAGES = 4
_QUIT_COMMANDS = ("/quit", "/exit", "/q")
_COMMAND = re.compile(r"/\w*")  # a path, such as /tmp/x, is a message
_HELP = "/quit, Ctrl-D or Ctrl-C ends the chat; the session stays. /help shows this. All other lines are messages."


def converse(
    sessions: Sessions, console: Console, *, thread: str | None, user_id: str | None, model: BaseChatModel | None
) -> None:
    """Open or resume the thread, and chat until ``/quit``, Ctrl-D or Ctrl-C.

    Raises:
        SessionAccessDenied: the thread has another owner.
    """
    with suppress(ImportError):
        import readline  # noqa: F401 - gives `input` line editing, where it is available
    session = sessions.open(thread, user_id=user_id)
    agent = sessions.attach(_graph(model))
    try:
        _print_history(session, console)
        interrupted = agent.get_state(session.config()).next
        if interrupted:
            console.print(Text(f"The last turn was cut off before {', '.join(interrupted)}; finishing it now."))
            _run_turn(agent, None, session.config(), console)
        _read_turns(agent, session.config(), console)
    except KeyboardInterrupt:
        console.print()
    finally:
        command = ["session-middleware", "chat", "--thread", session.id]
        command += ["--user", session.user_id] if session.user_id else []
        command += ["--db", without_secrets(sessions.settings.storage_url)]
        console.print(Text.assemble(("resume with: ", "dim"), visible(shlex.join(command))), soft_wrap=True)


def _graph(model: BaseChatModel | None) -> Any:
    def call_model(state: MessagesState) -> dict[str, Any]:
        messages = state["messages"]
        return {"messages": [_recount(messages) if model is None else model.invoke(messages)]}

    return StateGraph(MessagesState).add_node("model", call_model).add_edge(START, "model").compile()


def _recount(messages: Sequence[BaseMessage]) -> AIMessage:
    """The answer without a model. It names the first message, which shows that the conversation was resumed."""
    inputs = [message.text for message in messages if message.type == "human"]
    return AIMessage(
        f"You have said {plural(len(inputs), 'thing')} here, first: {inputs[0]!r}. For real answers, pass --model."
    )


def _print_history(session: Session, console: Console) -> None:
    console.print(Text.assemble("session ", (visible_line(session.id), "bold"), f": {session.opened_as}"))
    messages = [message for message in session.messages() if message.text and message.role in ("user", "assistant")]
    if len(messages) > _SHOWN_MESSAGES:
        console.print(Text(f"… {len(messages) - _SHOWN_MESSAGES} earlier messages", style="dim"))
    for message in messages[-_SHOWN_MESSAGES:]:
        console.print(message_line(message))
    console.print(Text(_HELP, style="dim"))


def _read_turns(agent: Any, config: RunnableConfig, console: Console) -> None:
    while True:
        try:
            text = input("you> ").strip()
        except EOFError:
            console.print()
            return
        if text in _QUIT_COMMANDS:
            return
        if _COMMAND.fullmatch(text):
            unknown = "" if text == "/help" else f"there is no command {text}; "
            console.print(Text(visible(unknown + _HELP), style="dim"))
        elif text:
            _run_turn(agent, {"messages": text}, config, console)


def _run_turn(agent: Any, state: dict[str, Any] | None, config: RunnableConfig, console: Console) -> None:
    """Run one turn, and print the answer while it is streamed."""
    for message, _ in agent.stream(state, config, stream_mode="messages"):
        if isinstance(message, AIMessage):
            console.print(Text(visible(message.text)), end="", soft_wrap=True)
    console.print()
