"""Whole conversations in SQLite: each is aligned with the branch that holds most of it, and then added to that."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from session_middleware.storage.seen import Alignment, HistorySeen, MessageSeen, Said
from session_middleware.storage.sqlite.record import branches, said
from session_middleware.storage.sqlite.record.tally import Tally
from session_middleware.storage.visit import Visit


def append(connection: sqlite3.Connection, visit: Visit, history: HistorySeen, tally: Tally, now: datetime) -> None:
    messages = [said.cleaned(message) for message in history.messages]
    given = [Said(None if m.minted else m.message_id, _words(*said.words_of(m), m.tool_call_id)) for m in messages]
    branch = branches.branch_of(connection, visit, tally)
    seqs, recorded = _view(connection, visit.session_id, branch)
    found = history.align(recorded, given)
    while _differs(found, recorded, given):
        held = _beginning(recorded, given)
        better = _holding_more(connection, visit.session_id, given, held)
        if better is None:
            break
        visit.branch = branch = better
        tally.move_to(branch)
        seqs, recorded = _view(connection, visit.session_id, branch)
        found = history.align(recorded, given)
    if found.branch_after is not None:
        visit.branch = branches.begin(connection, visit, branch, max(seqs[: found.branch_after], default=0), now)
        tally.move_to(visit.branch)
    said.append(connection, visit, _named(visit, messages, found), tally, now)


def _named(visit: Visit, messages: Sequence[MessageSeen], found: Alignment) -> list[MessageSeen]:
    """The messages as what they were found to be; without those that are recorded and cannot be new versions."""
    ids = [known or message.message_id for known, message in zip(found.ids, messages, strict=True)]
    if found.renamed:
        visit.aliases.update({m.message_id: own for m, own in zip(messages, ids, strict=True) if m.message_id != own})
    following = [*ids[1:], None][: len(ids)]
    return [
        message._replace(message_id=own, followed_by=after)
        for message, own, after, known in zip(messages, ids, following, found.ids, strict=True)
        if known is None or not found.renamed
    ]


def _differs(found: Alignment, recorded: Sequence[Said], given: Sequence[Said]) -> bool:
    """Whether the branch says something else than what was given: that leaves it, or is an edit of it."""
    if found.renamed:
        return False
    if found.branch_after is not None:
        return True
    words = {old.message_id: old.words for old in recorded}
    return any(known is not None and words[known] != new.words for known, new in zip(found.ids, given, strict=True))


def _holding_more(connection: sqlite3.Connection, session_id: str, given: Sequence[Said], held: int) -> str | None:
    """The branch that begins with most of what was given; ``None``: none does with more than `held` messages.

    It has said the first message that is missing itself, or a branch has that it came from, and is looked at in turn.
    """
    if held == len(given):
        return None
    best = None
    for (branch,) in connection.execute(_SAYING, (session_id, *given[held].words)).fetchall():
        length = _beginning(_view(connection, session_id, branch)[1], given)
        if length > held:
            best, held = branch, length
    return best


_SAYING = """
    SELECT branch FROM messages WHERE session_id = ? AND role = ? AND text = ? AND content IS ?
    AND (tool_calls IS NULL) = (? IS NULL) AND tool_call_id IS ? AND status = 'complete'
    GROUP BY branch ORDER BY MAX(seq) DESC
"""


def _words(*words: Any) -> tuple[Any, ...]:
    return said.in_any_order(words)


def _beginning(recorded: Sequence[Said], given: Sequence[Said]) -> int:
    """How many messages the two have in common at their beginning."""
    length = min(len(recorded), len(given))
    return next((place for place in range(length) if not given[place].is_same_as(recorded[place])), length)


def _view(connection: sqlite3.Connection, session_id: str, branch: str) -> tuple[list[int], list[Said]]:
    """What a branch holds, in its order, each message as the branch has it; and the seqs of its rows."""
    latest: dict[str, tuple[Any, ...]] = {}
    for row in said.rows_of(connection, f"{said.FIELDS}, tool_call_id, run_id", session_id, branch):
        latest[row[0]] = row
    rows = [row for row in sorted(latest.values(), key=lambda row: row[3]) if row[5] == "complete"]
    return [row[1] for row in rows], [Said(row[0], _words(*row[7:12]), row[12]) for row in rows]
