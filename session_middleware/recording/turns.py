"""Turns of a conversation: the message of a user, or the answer to it; and the versions that a turn has on branches."""

from __future__ import annotations

from collections.abc import Sequence

from session_middleware.models import Branch, Message, Siblings
from session_middleware.storage.record_entries import ASIDE

Conversations = dict[str, list[Message]]  # by branch: the current one first, then the latest


def conversations(messages: Sequence[Message], branches: Sequence[Branch], current: str) -> Conversations:
    """The conversation of each branch, as far as it is in the state of the outermost graph.

    Args:
        messages: all versions of the messages of all branches, by `seq`.
    """
    parents = {branch.id: branch for branch in branches}
    shown = [message for message in messages if _is_said(message)]
    found: Conversations = {}
    for branch in dict.fromkeys((current, *reversed(parents), "main")):
        line, upto, at = {branch: 2**62}, 2**62, branch
        while at in parents and parents[at].parent_id not in line:
            upto = min(upto, parents[at].parent_seq)
            at = parents[at].parent_id
            line[at] = upto
        own = {one.message_id: one for one in shown if one.seq <= line.get(one.branch, -1)}
        found[branch] = sorted(own.values(), key=lambda message: (message.position, message.seq))
    return found


def _is_said(message: Message) -> bool:
    return ASIDE not in message.flags and (not message.checkpoint_ns or "shared" in message.flags)


def is_from_user(message: Message) -> bool:
    """Whether a user said it, other than in answer to an interrupt."""
    return message.role == "user" and "resume" not in message.flags


def find(found: Conversations, message_id: str | None) -> tuple[str, int] | None:
    """The branch of a message, and its place in the conversation; by default of the last one of the current branch."""
    for branch, messages in found.items():
        if message_id is None:
            return (branch, len(messages) - 1) if messages else None
        for place, message in enumerate(messages):
            if message.message_id == message_id:
                return branch, place
    return None


def begin_of_turn(messages: Sequence[Message], place: int) -> int:
    """The place of the first message of the turn: of an answer, the one after the user's message."""
    while place > 0 and not is_from_user(messages[place]) and not is_from_user(messages[place - 1]):
        place -= 1
    return place


def siblings(found: Conversations, branch: str, place: int) -> Siblings:
    """The turns on all branches that follow the same message as this one."""
    messages = found[branch]
    begin = begin_of_turn(messages, place)
    before = messages[begin - 1].seq if begin else None
    versions: dict[int, tuple[Message, str]] = {}
    for branch, conversation in found.items():
        places = [number for number, one in enumerate(conversation) if one.seq == before]
        following = conversation[places[0] + 1 if places else 0 :] if places or before is None else []
        if following:
            versions.setdefault(following[0].seq, (following[0], branch))
    ordered = [versions[seq] for seq in sorted(versions)]
    return Siblings(
        index=sorted(versions).index(messages[begin].seq) + 1,
        total=len(ordered),
        messages=tuple(message for message, _ in ordered),
        branches=tuple(branch for _, branch in ordered),
    )
