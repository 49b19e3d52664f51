"""Commands that run something: a chat."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from session_middleware.cli import options
from session_middleware.cli.loading import extra
from session_middleware.cli.options import command
from session_middleware.cli.output import make_console

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel


@command("chat --thread my-chat", "chat --thread last", "chat --user alice --model openai:gpt-5-mini", db=None)
@options.new_db_option
@click.option(
    "--thread",
    metavar="ID",
    help="The session to open or resume, or last. [default: a new one]",
    shell_complete=options.complete,
)
@click.option("--user", "user_id", metavar="ID", help="The owner of the session.")
@click.option(
    "--model",
    "name",
    metavar="PROVIDER:NAME",
    help="A LangChain model. [default: none; each answer repeats your first]",
)
def chat(db: str | None, thread: str | None, user_id: str | None, name: str | None) -> None:
    """Chat with a model. The same --thread resumes the conversation."""
    model = _make_model(name)
    from session_middleware.cli.chat import converse
    from session_middleware.cli.opening import id_of, opened

    with opened(db, create=True) as sessions:
        chosen = id_of(sessions, thread) if thread == "last" else thread
        converse(sessions, make_console(), thread=chosen, user_id=user_id, model=model)


def _make_model(name: str | None) -> BaseChatModel | None:
    if name is None:
        return None
    with extra("chat"):
        from langchain.chat_models import init_chat_model
    try:
        return init_chat_model(name)
    except Exception as error:  # the providers' own errors too; their sentences name a package to install, or a key
        raise click.ClickException(f"{name!r} cannot be used: {' '.join(str(error).split())}") from error


COMMANDS = (chat,)
