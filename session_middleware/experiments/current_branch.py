"""The part of a session's record that its conversation now consists of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from session_middleware.models import Message, ToolCall

if TYPE_CHECKING:
    from session_middleware.session import Session


def current_branch(session: Session) -> tuple[list[Message], list[ToolCall]]:
    """The messages of the current branch, and the tool calls except those that messages of other branches requested."""
    messages = session.messages()
    others = {each.message_id for each in session.messages(branch="all")} - {each.message_id for each in messages}
    return messages, [call for call in session.tool_calls() if call.message_id not in others]
