"""Whole conversations in SQLite: each is aligned with the branch that holds most of it, and then added to that.

A message that was deleted from the branch takes part in that as long as the history may bring it back.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from session_middleware.storage.record_entries import Alignment, ComparableMessage, HistoryEntry, MessageEntry
from session_middleware.storage.run import RunContext
from session_middleware.storage.sql.record import branches, deletions, message_rows, reads
from session_middleware.storage.sql.record.branches import Line
from session_middleware.storage.sql.record.deletions import DeletedMessage
from session_middleware.storage.sql.session_state import SessionWrite


class _Standing(NamedTuple):
    """A message where it stands in a conversation, or stood before it was deleted."""

    place: float
    seq: int
    said: ComparableMessage


class _Given(NamedTuple):
    """A message of a history, as it is compared with those recorded, and with those deleted."""

    said: ComparableMessage
    words: tuple[Any, ...]


class _Aligning:
    """A history beside what is recorded of a session."""

    def __init__(self, connection: SessionWrite, context: RunContext, history: HistoryEntry) -> None:
        self._connection = connection
        self._session_id = context.session_id
        self._align = history.align
        self.messages = [message_rows.cleaned(message) for message in history.messages]
        self._given = [_given(message) for message in self.messages]
        self.gone = (
            deletions.deleted(connection.connection, context.session_id) if connection.state.has_deletions else []
        )

    def beside(self, branch: str) -> tuple[list[_Standing], Alignment]:
        """What a branch holds, and how the history is aligned with it."""
        given = [each.said for each in self._given]
        recorded = _view(self._connection, self._session_id, branch)
        found = self._align([each.said for each in recorded], given)
        line = branches.line(self._connection.connection, self._session_id, branch) if self.gone else ()
        if brought := _brought_back(self.gone, self._given, line):
            with_gone = sorted([*recorded, *brought], key=lambda each: each[:2])
            other = self._align([each.said for each in with_gone], given)
            if _known(other) >= _known(found):  # else the history has other words like those of one deleted
                return with_gone, other
        return recorded, found

    def better(self, recorded: Sequence[_Standing], found: Alignment) -> str | None:
        """A branch that begins with more of the history, where this one says something else; or ``None``.

        It has said the first message that is missing itself, or a branch has that it came from, and is looked at
        in turn.
        """
        given = [each.said for each in self._given if each.said.words[0] != "system"]
        held, best = _beginning(recorded, given), None
        if held == len(given) or not _differs(found, recorded, [each.said for each in self._given]):
            return None
        for (branch,) in self._connection.query(_SAYING, (self._session_id, *given[held].words)).fetchall():
            length = _beginning(_view(self._connection, self._session_id, branch), given)
            if length > held:
                best, held = branch, length
        return best


def append(connection: SessionWrite, context: RunContext, history: HistoryEntry, now: datetime) -> None:
    tally = connection.counters
    aligning = _Aligning(connection, context, history)
    branch = branches.branch_of(connection, context)
    recorded, found = aligning.beside(branch)
    while (better := aligning.better(recorded, found)) is not None:
        context.record.branch = branch = better
        tally.move_to(branch)
        recorded, found = aligning.beside(branch)
    if found.branch_after is not None:
        seq = max((each.seq for each in recorded[: found.branch_after]), default=0)
        context.record.branch = branches.begin(connection, context, branch, seq, now)
        tally.move_to(context.record.branch)
    named = _named(context, aligning, found)
    # what is recorded under another id cannot be a new version of it
    message_rows.append(connection, context, [m for m, known in named if known is None or not found.renamed], now)
    if not found.renamed:  # the graph may give them ids
        context.record.unclaimed.update(
            {m.claim: m.message_id for m, known in named if known is None and m.minted and m.text}
        )
    if history.is_said:
        message_rows.clear_aside(connection, context.session_id, [message.message_id for message, _ in named])


def _named(context: RunContext, aligning: _Aligning, found: Alignment) -> list[tuple[MessageEntry, str | None]]:
    """The messages but those deleted, as what they were found to be; and as which recorded ones."""
    ids = [known or message.message_id for known, message in zip(found.ids, aligning.messages, strict=True)]
    pairs = list(zip(aligning.messages, ids, found.ids, strict=True))
    if found.renamed:
        context.record.aliases.update(
            {message.message_id: own for message, own, _ in pairs if message.message_id != own}
        )
    gone = {each.message_id for each in aligning.gone}
    kept = [(message._replace(message_id=own), known) for message, own, known in pairs if own not in gone]
    named: list[tuple[MessageEntry, str | None]] = []
    following = spoken = None
    for message, known in reversed(kept):  # an instruction is repeated anywhere: nothing has its place by one
        is_instruction = message.role == "system"
        named.append((message._replace(followed_by=following if is_instruction else spoken), known))
        following = message.message_id
        spoken = spoken if is_instruction else following
    return named[::-1]


def _differs(found: Alignment, recorded: Sequence[_Standing], given: Sequence[ComparableMessage]) -> bool:
    """Whether the branch says something else than what was given: that leaves it, or is an edit of it."""
    if found.renamed:
        return False
    if found.branch_after is not None:
        return True
    words = {old.said.message_id: old.said.words for old in recorded}
    return any(known is not None and words[known] != new.words for known, new in zip(found.ids, given, strict=True))


_SAYING = """
    SELECT branch FROM messages WHERE session_id = ? AND role = ? AND text = ? AND content IS ?
    AND (tool_calls IS NULL) = (CAST(? AS TEXT) IS NULL) AND tool_call_id IS ? AND status = 'complete'
    GROUP BY branch ORDER BY MAX(seq) DESC
"""


def _beginning(recorded: Sequence[_Standing], given: Sequence[ComparableMessage]) -> int:
    """How many messages the two have in common at their beginning; system messages do not count."""
    spoken = [each.said for each in recorded if each.said.words[0] != "system"]
    length = min(len(spoken), len(given))
    return next((place for place in range(length) if not given[place].is_same_as(spoken[place])), length)


def _view(connection: SessionWrite, session_id: str, branch: str) -> list[_Standing]:
    """What a branch holds, in its order, each message as the branch has it."""
    latest: dict[str, tuple[Any, ...]] = {}
    for row in reads.rows_of(connection.connection, f"{message_rows.FIELDS}, tool_call_id, run_id", session_id, branch):
        latest[row[0]] = row
    rows = [row for row in sorted(latest.values(), key=lambda row: row[3]) if row[5] == "complete"]
    return [
        _Standing(row[3], row[1], ComparableMessage(row[0], message_rows.normalized(row[7:12]), row[12]))
        for row in rows
    ]


def _given(message: MessageEntry) -> _Given:
    words = (*message_rows.comparison_key(message), message.tool_call_id)
    return _Given(
        ComparableMessage(None if message.minted else message.message_id, message_rows.normalized(words)), words
    )


def _brought_back(gone: Sequence[DeletedMessage], given: Sequence[_Given], line: Line) -> list[_Standing]:
    """Those deleted from this line of the conversation that a history may bring back, with the words it has."""
    found = []
    told = [(one.said, deletions.in_bytes(one.words)) for one in given] if gone else []
    for each in gone:
        is_ours = any(each.branch == branch and each.place <= upto for branch, upto in line)
        same = (one for one, words in told if one.message_id == each.message_id or each.is_same(words))
        if is_ours and (one := next(same, None)) is not None:
            found.append(_Standing(each.place, int(each.place), ComparableMessage(each.message_id, one.words)))
    return found


def _known(found: Alignment) -> int:
    return sum(known is not None for known in found.ids)
