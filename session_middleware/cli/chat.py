"""The command ``chat``: a conversation in the terminal that resumes by its thread id."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from io import TextIOWrapper
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langgraph.graph import START, MessagesState, StateGraph
from rich.console import Console
from rich.text import Text

from session_middleware.cli import styles
from session_middleware.cli.tables import message_line
from session_middleware.display.text import plural, visible, visible_line
from session_middleware.errors import SessionError
from session_middleware.session import Session
from session_middleware.sessions import Sessions
from session_middleware.settings import without_secrets

_SHOWN_MESSAGES = 4
_QUIT_COMMANDS = ("/quit", "/exit", "/q")
_COMMAND = re.compile(r"/\w*")  # a path, such as /tmp/x, is a message
_HELP = (
    "/quit, Ctrl-D or Ctrl-C ends the chat; the session stays. /retry repeats a turn that failed. /help shows this. "
    "All other lines are messages."
)


def converse(
    sessions: Sessions, console: Console, *, thread: str | None, user_id: str | None, model: BaseChatModel | None
) -> None:
    """Open or resume the thread, and chat until ``/quit``, Ctrl-D or Ctrl-C.

    Raises:
        SessionAccessDenied: the thread has another owner.
    """
    with suppress(ImportError):
        import readline  # noqa: F401 - gives `input` line editing, where it is available
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    session = sessions.open(thread, user_id=user_id)
    chat = _Chat(sessions.attach(_graph(model)), session, console)
    try:
        _print_history(session, console)
        if chat.unfinished():
            chat.finish()
        chat.read_turns()
    except KeyboardInterrupt:
        console.print()
    finally:
        if sessions.settings.storage_url != ":memory:":
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


class _Chat:
    def __init__(self, agent: Any, session: Session, console: Console) -> None:
        self._agent = agent
        self._config = session.config()
        self._console = console

    def read_turns(self) -> None:
        while True:
            try:
                text = input("you> ").strip()
            except (EOFError, RuntimeError):  # the latter if stdin is closed
                self._console.print()
                return
            if text in _QUIT_COMMANDS:
                return
            if text == "/retry":
                self.finish()
            elif _COMMAND.fullmatch(text):
                self._note(("" if text == "/help" else f"there is no command {text}; ") + _HELP)
            elif text:
                self._run({"messages": text})

    def unfinished(self) -> tuple[str, ...]:
        """The nodes before which the last turn was cut off."""
        nodes: tuple[str, ...] = self._agent.get_state(self._config).next
        return nodes

    def finish(self) -> None:
        """Run the rest of a turn that was cut off or that failed."""
        if nodes := self.unfinished():
            self._note(f"The last turn was cut off before {', '.join(nodes)}; finishing it now.")
            self._run(None)
        else:
            self._note("the last turn was finished")

    def _run(self, state: dict[str, Any] | None) -> None:
        """Run one turn, and print the answer while it is streamed, or one line for the error of a model."""
        end = ""
        try:
            for message, _ in self._agent.stream(state, self._config, stream_mode="messages"):
                if isinstance(message, AIMessage):
                    self._console.print(Text(visible(message.text)), end="", soft_wrap=True)
                    end = "\n"
            self._console.print()
        except SessionError:
            raise
        except Exception as error:  # noqa: BLE001 - a model may raise any; the run's row has it
            text = " ".join(f"{type(error).__name__}: {error}".split())
            self._note(
                f"{end}the turn failed: {text}; try again with /retry, or send another message", style=styles.RED
            )

    def _note(self, text: str, style: str = "dim") -> None:
        self._console.print(Text(visible(text), style=style), soft_wrap=True)
