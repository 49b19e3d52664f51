"""Writing whole conversations: each is aligned with the branch that contains most of it, and then added to that.

Deleted messages of the branch take part in the alignment, because a history may contain them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from operator import itemgetter
from typing import NamedTuple

from session_middleware.storage.record_entries import Alignment, ComparableMessage, HistoryEntry, MessageEntry
from session_middleware.storage.sql.record import branches, deletions, message_rows, reads
from session_middleware.storage.sql.record.message_rows import Key
from session_middleware.storage.sql.run_write import RunWrite
from session_middleware.storage.sql.session_state import SessionWrite


class _Recorded(NamedTuple):
    """A recorded or deleted message at its position in the conversation."""

    position: float
    seq: int
    message: ComparableMessage


def append(write: SessionWrite, run: RunWrite, history: HistoryEntry, now: datetime) -> None:
    conversation = _Conversation(write, run, history)
    branch = branches.branch_of(write, run)
    recorded, found = conversation.aligned_with(branch)
    while (better := conversation.find_better_branch(recorded, found)) is not None:
        _move_to(write, run, branch := better)
        recorded, found = conversation.aligned_with(branch)
    if found.branch_after is not None:
        seq = max((each.seq for each in recorded[: found.branch_after]), default=0)
        _move_to(write, run, branches.begin(write, run, branch, seq, now))
    named = conversation.named(found)
    if found.renamed:
        pairs = zip(conversation.messages, found.ids, strict=True)
        run.record.aliases.update({m.message_id: own for m, own in pairs if own is not None and own != m.message_id})
    # a message that is recorded under another id cannot be a new version of it
    message_rows.Appender(write, run, now).append([m for m, known in named if known is None or not found.renamed])
    if not found.renamed:  # the graph may give them ids
        run.add_unclaimed({m.claim: m.message_id for m, known in named if known is None and m.minted and m.text})
    if history.is_said:
        message_rows.clear_aside(write, run.session_id, [message.message_id for message, _ in named])


def _move_to(write: SessionWrite, run: RunWrite, branch: str) -> None:
    run.state = run.state._replace(branch=branch)
    write.counters.move_to(branch)


class _Conversation:
    """A given conversation, compared with recorded ones."""

    def __init__(self, write: SessionWrite, run: RunWrite, history: HistoryEntry) -> None:
        self._write = write
        self._session_id = run.session_id
        self._written = run.record.written
        self._align = history.align
        self.messages = [message_rows.cleaned(message) for message in history.messages]
        self._keys: list[Key] = [(*message_rows.comparison_key(m), m.tool_call_id) for m in self.messages]
        self._given = [
            ComparableMessage(None if message.minted else message.message_id, message_rows.normalized(key))
            for message, key in zip(self.messages, self._keys, strict=True)
        ]
        self._deleted = deletions.deleted(write.connection, self._session_id) if write.state.has_deletions else []

    def aligned_with(self, branch: str) -> tuple[list[_Recorded], Alignment]:
        """Return the messages of a branch, with deleted ones if more of the history is found so, and the alignment."""
        recorded = self._messages_of(branch)
        found = self._align([each.message for each in recorded], self._given)
        if contained := self._contained_deleted(branch):
            with_deleted = sorted([*recorded, *contained], key=lambda each: each[:2])
            other = self._align([each.message for each in with_deleted], self._given)
            if other.ids.count(None) <= found.ids.count(None):  # otherwise a new text equals a deleted one
                return with_deleted, other
        return recorded, found

    def find_better_branch(self, recorded: Sequence[_Recorded], found: Alignment) -> str | None:
        """Return a branch that begins with more of the history, if this branch differs from it; or ``None``.

        The branch contains the first missing message itself, or is a descendant of one that does.
        """
        contents = {old.message.message_id: old.message.words for old in recorded}
        is_edited = any(
            known is not None and contents[known] != new.words
            for known, new in zip(found.ids, self._given, strict=True)
        )
        if found.renamed or (found.branch_after is None and not is_edited):
            return None
        given = [message for message in self._given if message.words[0] != "system"]
        longest, best = _common_length(recorded, given), None
        if longest == len(given):
            return None
        for (branch,) in self._write.query(_BRANCHES_WITH, (self._session_id, *given[longest].words)).fetchall():
            length = _common_length(self._messages_of(branch), given)
            if length > longest:
                best, longest = branch, length
        return best

    def named(self, found: Alignment) -> list[tuple[MessageEntry, str | None]]:
        """Return the messages except deleted ones, with their recorded ids and successors, and these ids if any."""
        deleted = {each.message_id for each in self._deleted}
        named: list[tuple[MessageEntry, str | None]] = []
        following: str | None = None
        spoken: str | None = None
        for message, known in zip(reversed(self.messages), reversed(found.ids), strict=True):
            own = known or message.message_id
            if own in deleted:
                continue
            is_instruction = message.role == "system"  # it may be repeated anywhere, so nothing is positioned by it
            followed_by = following if is_instruction else spoken
            named.append((message._replace(message_id=own, followed_by=followed_by), known))
            following = own
            spoken = spoken if is_instruction else own
        return named[::-1]

    def _messages_of(self, branch: str) -> list[_Recorded]:
        """Return the complete messages of a branch in their order, in the version that the branch has."""
        fields = "message_id, position, seq, status, run_id, role, text, content, tool_calls, tool_call_id"
        rows = reads.rows_of(self._write.connection, fields, self._session_id, branch)
        latest = {row[0]: row for row in rows}
        return [
            _Recorded(
                position,
                seq,
                ComparableMessage(
                    message_id,
                    message_rows.normalized(tuple(words)),
                    "" if run_id is None and message_id in self._written else run_id,
                ),
            )
            for message_id, position, seq, status, run_id, *words in sorted(latest.values(), key=itemgetter(1))
            if status == "complete"
        ]

    def _contained_deleted(self, branch: str) -> list[_Recorded]:
        """Return the deleted messages of a branch that the history contains, by id or by content."""
        if not self._deleted:
            return []
        line = branches.line(self._write.connection, self._session_id, branch)
        given = [(one, deletions.in_bytes(key)) for one, key in zip(self._given, self._keys, strict=True)]
        found = []
        for each in self._deleted:
            is_ours = any(each.branch == branch and each.position <= upto for branch, upto in line)
            same = (one for one, key in given if one.message_id == each.message_id or each.is_same(key))
            if is_ours and (one := next(same, None)) is not None:
                found.append(
                    _Recorded(each.position, int(each.position), ComparableMessage(each.message_id, one.words))
                )
        return found


_BRANCHES_WITH = """
    SELECT branch FROM messages WHERE session_id = ? AND role = ? AND text = ? AND content IS ?
    AND (tool_calls IS NULL) = (CAST(? AS TEXT) IS NULL) AND tool_call_id IS ? AND status = 'complete'
    GROUP BY branch ORDER BY MAX(seq) DESC
"""


def _common_length(recorded: Sequence[_Recorded], given: Sequence[ComparableMessage]) -> int:
    """Return how many messages two conversations have in common at their beginning, without system messages."""
    spoken = [each.message for each in recorded if each.message.words[0] != "system"]
    length = min(len(spoken), len(given))
    return next((number for number in range(length) if not given[number].is_same_as(spoken[number])), length)
