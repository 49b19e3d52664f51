"""Whole conversations in SQLite: a history aligned with what its branch holds, and what is new in it written down.

A message that was deleted from the branch takes part in that as long as the history may bring it back.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from session_middleware.storage.seen import Alignment, HistorySeen, Said
from session_middleware.storage.sqlite.record import branches, deletions, said
from session_middleware.storage.sqlite.record.branches import Line
from session_middleware.storage.sqlite.record.deletions import Deleted
from session_middleware.storage.sqlite.record.tally import Tally
from session_middleware.storage.visit import Visit


def append(connection: sqlite3.Connection, visit: Visit, seen: HistorySeen, tally: Tally, now: datetime) -> None:
    messages = [said.clean_message(message) for message in seen.messages]
    branch = branches.branch_of(connection, visit, tally)
    rows = [row for row in said.view(connection, visit.session_id, branch) if row[5] == "complete"]
    recorded = [_Standing(row[3], row[1], Said(row[0], row[7:12], row[12])) for row in rows]
    given = [Said(None if m.minted else m.message_id, (*said.words_of(m), m.tool_call_id)) for m in messages]
    gone = deletions.deleted(connection, visit.session_id)
    found = seen.align([each.said for each in recorded], given)
    if gone and (brought := _brought_back(gone, given, branches.line(connection, visit.session_id, branch))):
        with_gone = sorted([*recorded, *brought], key=lambda each: each[:2])
        other = seen.align([each.said for each in with_gone], given)
        if _known(other) > _known(found):
            recorded, found = with_gone, other
    if found.branch_after is not None:
        seq = max((each.seq for each in recorded[: found.branch_after]), default=0)
        visit.branch = branches.begin(connection, visit, branch, seq, now)
        tally.move_to(visit.branch)
    ids = [known or message.message_id for known, message in zip(found.ids, messages, strict=True)]
    left = {each.message_id for each in gone}
    kept = [message._replace(message_id=own) for message, own in zip(messages, ids, strict=True) if own not in left]
    following = [*(message.message_id for message in kept[1:]), None]
    named = [message._replace(followed_by=after) for message, after in zip(kept, following, strict=False)]
    said.append(connection, visit, named, tally, now)
    if seen.is_said:
        connection.execute(_NOT_ASIDE, (visit.session_id, json.dumps([message.message_id for message in named])))


_NOT_ASIDE = """
    UPDATE messages SET marks = (SELECT NULLIF(json_group_array(value), '[]') FROM json_each(marks)
    WHERE value != 'aside') WHERE session_id = ? AND message_id IN (SELECT value FROM json_each(?))
    AND marks LIKE '%"aside"%'
"""


class _Standing(NamedTuple):
    """A message where it stands in a conversation, or stood before it was deleted."""

    place: float
    seq: int
    said: Said


def _brought_back(gone: Sequence[Deleted], given: Sequence[Said], line: Line) -> list[_Standing]:
    """Those deleted from this line of the conversation that a history may bring back, with the words it has."""
    found = []
    told = [(one, deletions.in_bytes(one.words)) for one in given]
    for each in gone:
        is_ours = any(each.branch == branch and each.place <= upto for branch, upto in line)
        same = (one for one, words in told if one.message_id == each.message_id or each.is_same(words))
        if is_ours and (one := next(same, None)) is not None:
            found.append(_Standing(each.place, int(each.place), Said(each.message_id, one.words)))
    return found


def _known(found: Alignment) -> int:
    return sum(known is not None for known in found.ids)
