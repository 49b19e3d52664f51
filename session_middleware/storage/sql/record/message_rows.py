"""Messages in SQLite: each is one row a version, in its place in the conversation, on its branch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from session_middleware.models import to_text
from session_middleware.storage.record_entries import ASIDE, SHARED, MessageEntry, ModelCallEntry
from session_middleware.storage.run import RunContext
from session_middleware.storage.sql.record import branches, deletions, tool_call_rows
from session_middleware.storage.sql.record.branches import Line
from session_middleware.storage.sql.row_mapping import clean, marks_of, to_json
from session_middleware.storage.sql.session_state import SessionWrite


class _Row(NamedTuple):
    """A message as it is recorded, as far as another sighting of it asks."""

    message_id: str
    seq: int
    version: int
    place: float
    branch: str
    status: str
    checkpoint_ns: str
    role: str
    text: str
    content: str | None
    tool_calls: str | None

    def says(self, words: tuple[Any, ...]) -> bool:
        return self.words == words or in_any_order(self.words) == in_any_order(words)

    @property
    def words(self) -> tuple[Any, ...]:
        return self[7:]


_IS_USERS = """
    SELECT EXISTS (SELECT 1 FROM messages WHERE session_id = ? AND text = ? AND role = 'user' AND checkpoint_ns = '')
    OR (? AND NOT EXISTS (SELECT 1 FROM messages WHERE session_id = ? AND role = 'user'))
"""
_NO_LONGER_ASIDE = """
    UPDATE messages SET checkpoint_ns = '', marks = (SELECT NULLIF(json_group_array(value), '[]') FROM json_each(marks)
    WHERE value != 'aside') WHERE session_id = ? AND message_id = ? AND marks LIKE '%"aside"%'
"""
_OUTERMOST = "UPDATE messages SET checkpoint_ns = '' WHERE session_id = ? AND message_id = ?"
_SHARED = f"""
    UPDATE messages SET marks = json_insert(COALESCE(marks, '[]'), '$[#]', '{SHARED}')
    WHERE session_id = ? AND message_id = ? AND COALESCE(marks, '') NOT LIKE '%"{SHARED}"%'
"""
_MOVE_BEHIND = """
    UPDATE messages SET place = asked.last + 0.5 FROM (SELECT MAX(place) AS last FROM messages WHERE session_id = ?1
    AND seq IN (SELECT CAST(value AS INTEGER) FROM json_each(?3)) AND role = 'user' AND checkpoint_ns = ''
    AND COALESCE(marks, '') NOT LIKE '%"resume"%') AS asked
    WHERE session_id = ?1 AND message_id = ?2 AND place < asked.last
"""
FIELDS = "message_id, seq, version, place, branch, status, checkpoint_ns, role, text, content, tool_calls"
_IS_ASIDE = """
    SELECT 1 FROM messages WHERE session_id = ? AND message_id = ? AND marks LIKE '%"aside"%'
"""
_AT_ONCE = 500  # ids looked for by one statement


def append(write: SessionWrite, context: RunContext, messages: Sequence[MessageEntry], now: datetime) -> None:
    _Appending(write, context, now).append([cleaned(message) for message in messages])


class _Appending:
    """One batch of messages on its way into the record."""

    def __init__(self, write: SessionWrite, context: RunContext, now: datetime) -> None:
        self._connection = write
        self._context = context
        self._tally = write.counters
        self._now = now
        self._branch = branches.branch_of(write, context)
        self._line: Line | None = None
        self._known: dict[str, list[_Row]] = {}
        self._new: list[tuple[Any, ...]] = []
        self._answers: list[MessageEntry] = []
        self._minted: set[str] = set()

    def append(self, messages: Sequence[MessageEntry]) -> None:
        if aliases := self._context.aliases:
            messages = [_under_its_own_id(message, aliases) for message in messages]
        if self._connection.state.has_deletions:
            deleted = deletions.deleted(self._connection.connection, self._context.session_id)
            gone = {each.message_id for each in deleted}
            messages = [message for message in messages if message.message_id not in gone]
        self._look_up(messages)
        self._minted = {message.message_id for message in messages if message.minted}
        for message in messages:
            if self._answers and message.role != "tool":
                self._answer()
            self._append_one(message)
        self._answer()
        self._connection.state.keep_messages(self._known)

    def _answer(self) -> None:
        """Rows for executions, after the messages that tell of them and before what was said then."""
        self._insert()
        for answer in self._answers:
            tool_call_rows.answer(self._connection, self._context, answer)
            if answer.artifact is not None:
                tool_call_rows.keep_artifact(self._connection, self._context, answer)
        self._answers.clear()

    def _insert(self) -> None:
        if self._new:
            self._connection.insert("messages", _COLUMNS, self._new)
            self._new.clear()

    def _look_up(self, messages: Sequence[MessageEntry]) -> None:
        """Find the recorded versions of the messages, reading those that are not known."""
        ids = {message.message_id for message in messages}
        ids |= {other for message in messages for other in (message.followed_by, message.again) if other}
        ids |= {heard for message in messages if (heard := self._context.unclaimed.get(message.claim))}
        state, own = self._connection.state, self._context.session_id
        self._known = {one: list(rows) for one in ids if (rows := state.message_rows.get(one))}
        wanted = ids - self._known.keys()
        if wanted and state.may_read_ids():
            found = self._connection.query("SELECT DISTINCT message_id FROM messages WHERE session_id = ?", (own,))
            state.message_ids = {message_id for (message_id,) in found}
        if state.message_ids is not None:
            wanted &= state.message_ids
        for start in range(0, len(wanted), _AT_ONCE):
            some = list(wanted)[start : start + _AT_ONCE]
            for row in self._connection.query(
                f"SELECT {FIELDS} FROM messages WHERE session_id = ?"
                f" AND message_id IN ({', '.join('?' * len(some))}) ORDER BY version",
                (own, *some),
            ):
                self._known.setdefault(row[0], []).append(_Row(*row))

    def _append_one(self, message: MessageEntry) -> None:
        if message.again is not None:
            message = self._said_again(message)
        known = self._known.get(message.message_id, [])
        message = self._by_whom(message, known)
        words = comparison_key(message)
        if self._context.unclaimed:
            if message.minted and not known and self._has_other_id(message):
                return
            known = self._claim(message, words) or known
        if known and known[-1].checkpoint_ns and _is_outermost(message):
            self._share(known[-1])
        here = next((row for row in reversed(known) if self._sees(row)), None)
        if here is not None and here.status == "incomplete":
            self._complete(message, words, here)
        elif here is not None and message.late:
            same = next((row for row in known if row.says(words) and self._sees(row)), here)
            self._tally.rows[message.message_id] = same.seq
        elif here is not None:
            self._tally.rows[message.message_id] = here.seq
            if here.says(words):
                if message.refused:
                    self._answers.append(message)
            elif message.complete:
                self._add(message, words, version=known[-1].version + 1, place=here.place, replaces=here)
        elif known:
            if not known[-1].says(words) or not self._follow(known[-1]):
                place = self._place_of(message)
                self._add(message, words, version=known[-1].version + 1, place=place)
                self._context.written[message.message_id] = self._tally.rows[message.message_id]
        else:
            self._add(message, words, place=self._place_of(message))

    def _said_again(self, message: MessageEntry) -> MessageEntry:
        """From a cache comes the id of what was said first as well; where that is new, this is it."""
        first = str(message.again)
        was_said = any(row.status == "complete" and self._sees(row) for row in self._known.get(first, ()))
        aside = was_said and self._connection.query(_IS_ASIDE, (self._context.session_id, first)).fetchone()
        own = message.message_id if was_said and not aside else first
        return message._replace(message_id=own, again=None)

    def _by_whom(self, message: MessageEntry, known: list[_Row]) -> MessageEntry:
        """Who said a message is decided when it is first seen: its user, or who spoke in the user's name."""
        if message.role != "user":
            return message
        is_told = known[-1].role == "assistant" if known else message.told and not self._is_users(message.text)
        if not is_told:
            return message
        return message._replace(role="assistant", extra={**(message.extra or {}), "type": "human"})

    def _is_users(self, text: str) -> bool:
        """Whether the session's user has said the same, there or to this run; or nothing yet to either."""
        words, session_id = self._context.users_words or (), self._context.session_id
        if text in words:
            return True
        self._insert()
        is_silent = not words
        return bool(self._connection.query(_IS_USERS, (session_id, text, is_silent, session_id)).fetchone()[0])

    def _share(self, row: _Row) -> None:
        """What was said in a subgraph, or aside, is in the state of the outermost graph as well.

        A subgraph that was cut off gives it out in a later run, after what the user has said since.
        """
        self._insert()
        own = self._context.session_id, row.message_id
        is_given = row.role == "user" and row.text in (self._context.users_words or ())
        if is_given and row.message_id in self._context.written:  # a subgraph that is cut off may put its state first
            self._forget(row.message_id)
            self._connection.execute(_OUTERMOST, own)
            return
        self._forget(row.message_id)
        if self._connection.execute(_NO_LONGER_ASIDE, own).rowcount:
            return
        is_new = self._connection.execute(_SHARED, own).rowcount
        if is_new and row.message_id not in self._context.written:
            written = json.dumps(list(self._context.written.values()))
            if self._connection.execute(_MOVE_BEHIND, (*own, written)).rowcount:
                self._context.written[row.message_id] = row.seq

    def _forget(self, message_id: str) -> None:
        """Read a message anew next time: it is changed by a statement."""
        self._known.pop(message_id, None)
        self._connection.state.message_rows.pop(message_id, None)

    def _follow(self, row: _Row) -> bool:
        self._insert()
        self._line = None
        self._tally.rows[row.message_id] = row.seq
        return branches.follow_parent(self._connection, self._context.session_id, self._branch, row.seq, row.message_id)

    def _sees(self, row: _Row) -> bool:
        """Whether a row is of this branch, or of what the branch has of its ancestors."""
        if row.branch == self._branch:
            return True
        if self._line is None:
            self._line = branches.line(self._connection.connection, self._context.session_id, self._branch)
        return any(row.branch == branch and row.seq <= upto for branch, upto in self._line)

    def _claim(self, message: MessageEntry, words: tuple[Any, ...]) -> list[_Row]:
        """What was heard before is now a message of the state, maybe under another id: it stays one row."""
        said = self._context.unclaimed.get(message.claim)
        known = self._known.get(said, []) if said is not None else []
        if not known or (message.message_id != said and message.message_id in self._known):
            return []
        if message.message_id == said and message.checkpoint_ns == known[0].checkpoint_ns:
            if ASIDE not in message.marks:
                del self._context.unclaimed[message.claim]
            return []
        self._insert()
        del self._context.unclaimed[message.claim]
        if (seq := self._context.written.pop(str(said), None)) is not None:
            self._context.written[message.message_id] = seq
        namespace = message.checkpoint_ns if known[0].checkpoint_ns else ""  # what the outermost graph was given is its
        self._connection.execute(
            "UPDATE messages SET message_id = ?, checkpoint_ns = ?, marks = ? WHERE session_id = ? AND message_id = ?",
            (message.message_id, namespace, _marks(message, words), self._context.session_id, said),
        )
        if message.tool_calls:
            tool_call_rows.asked_by_another_id(self._connection, self._context.session_id, str(said), message)
        self._forget(str(said))
        self._known[message.message_id] = [
            row._replace(message_id=message.message_id, checkpoint_ns=message.checkpoint_ns) for row in known
        ]
        return self._known[message.message_id]

    def _has_other_id(self, message: MessageEntry) -> bool:
        """Whether what a graph was given without an id has been seen with the id that the graph gave it meanwhile."""
        if self._context.unclaimed.get(message.claim) != message.message_id or not self._context.written:
            return False
        self._insert()
        self._connection.state.message_rows.clear()
        found = self._connection.execute(
            "UPDATE messages SET checkpoint_ns = ? WHERE session_id = ? AND seq = (SELECT MIN(seq) FROM messages"
            " WHERE session_id = ? AND seq >= ? AND run_id IS ? AND role = ? AND text = ? AND message_id NOT IN"
            " (SELECT value FROM json_each(?))) RETURNING seq",
            (
                message.checkpoint_ns,
                self._context.session_id,
                self._context.session_id,
                min(self._context.written.values()),
            )
            + (self._context.run_id, message.role, message.text, json.dumps(list(self._minted))),
        ).fetchone()
        if found is None:
            return False
        self._tally.rows[message.message_id] = found[0]
        del self._context.unclaimed[message.claim]
        return True

    def _complete(self, message: MessageEntry, words: tuple[Any, ...], here: _Row) -> None:
        self._insert()
        self._connection.execute(
            "UPDATE messages SET role = ?, text = ?, content = ?, tool_calls = ?, name = ?, model = ?,"
            " input_tokens = ?, output_tokens = ?, status = ?, checkpoint_ns = ?, extra = ?, marks = ?"
            " WHERE session_id = ? AND seq = ?",
            (*words, message.name, message.model, message.input_tokens, message.output_tokens, _status(message))
            + (
                message.checkpoint_ns,
                to_json(message.extra),
                _marks(message, words),
                self._context.session_id,
                here.seq,
            ),
        )
        status = _status(message)
        self._tally.rows[message.message_id] = here.seq
        self._known[message.message_id] = [_Row(*here[:5], status, message.checkpoint_ns, *words)]
        if here.version == 1 and message.complete and message.call is not None:
            self._add_told(message.call, message)

    def _add(
        self,
        message: MessageEntry,
        words: tuple[Any, ...],
        *,
        version: int = 1,
        place: float | None = None,
        replaces: _Row | None = None,
    ) -> None:
        seq = self._tally.rows[message.message_id] = self._tally.next_seq()
        row = _Row(
            *(message.message_id, seq, version, seq if place is None else place, self._branch),
            *(_status(message), message.checkpoint_ns, *words),
        )
        self._known.setdefault(message.message_id, []).append(row)
        self._new.append(
            (self._context.session_id, seq, row.place, self._context.run_id, message.message_id, version, self._branch)
            + (*words, message.name, message.tool_call_id, message.model, message.input_tokens, message.output_tokens)
            + (row.status, message.checkpoint_ns, to_json(message.extra), _marks(message, words))
            + (to_text(message.created_at or self._said_at(message)),)
        )
        if replaces is not None and replaces.branch == self._branch:
            self._insert()  # both may be of this batch
            self._connection.execute(
                "UPDATE messages SET replaced_by = ? WHERE session_id = ? AND seq = ?",
                (seq, self._context.session_id, replaces.seq),
            )
        tool_call_rows.store_files(self._connection, self._context.session_id, message.files)
        if version == 1:
            self._context.written[message.message_id] = seq
            self._tally.messages += 1
            if message.call is not None:
                self._add_told(message.call, message)
            if message.role == "tool" and message.tool_call_id:
                self._answers.append(message)
            if message.tool_calls:
                tool_call_rows.asked_by(self._connection, self._context.session_id, message)

    def _add_told(self, call: ModelCallEntry, message: MessageEntry) -> None:
        call = call._replace(started_at=message.created_at, message_id=message.message_id)
        tool_call_rows.add_told_call(self._connection, self._context, call, self._now)

    def _said_at(self, message: MessageEntry) -> datetime:
        """What a checkpoint brings may be put at the end of its run only; what a user said began that."""
        is_late = self._context.puts and self._context.at is None and message.role == "user"
        began_at = self._context.began_at if is_late else None
        return began_at or self._now

    def _place_of(self, message: MessageEntry) -> float | None:
        """The place right before the message that follows it, if that is there already; ``None``: at the end.

        A subgraph's summary stands before messages of earlier runs in the subgraph's state only.
        """
        known = self._known.get(message.followed_by or "", [])
        following = next((row for row in reversed(known) if self._sees(row)), None)
        if following is None:
            return None
        is_earlier = following.message_id not in self._context.written
        if message.checkpoint_ns and message.role == "system" and is_earlier:
            return None
        self._insert()
        before = self._connection.query(
            "SELECT MAX(place) FROM messages WHERE session_id = ? AND place < ?",
            (self._context.session_id, following.place),
        ).fetchone()[0]
        return ((before or 0) + following.place) / 2


def restore_conversation_order(write: SessionWrite, context: RunContext, ids: Iterable[str | None]) -> None:
    """Order the messages that this run wrote as the conversation has them. Messages of other runs stay where they are.

    Messages arrive in another order where a state in which one was removed is put back, for instance.
    """
    seqs = {write.counters.rows.get(own, context.written[own]): own for own in ids if own in context.written}
    if len(seqs) < 2:
        return
    state = write.state
    known = {row.seq: row.place for own in seqs.values() for row in state.message_rows.get(own, ())}
    for start in range(0, len(seqs), _AT_ONCE):
        some = list(seqs)[start : start + _AT_ONCE]
        if all(seq in known for seq in some):
            places = {seq: known[seq] for seq in some}
        else:
            found = write.query(
                f"SELECT seq, place, message_id FROM messages WHERE session_id = ?"
                f" AND seq IN ({', '.join('?' * len(some))})",
                (context.session_id, *some),
            )
            places = {seq: place for seq, place, message_id in found if message_id == seqs[seq]}
        ordered = [seq for seq in some if seq in places]
        for seq, place in zip(ordered, sorted(places.values()), strict=True):
            if place != places[seq]:
                state.message_rows.pop(seqs[seq], None)
                write.execute(
                    "UPDATE messages SET place = ? WHERE session_id = ? AND seq = ?", (place, context.session_id, seq)
                )


def _under_its_own_id(message: MessageEntry, aliases: Mapping[str, str]) -> MessageEntry:
    """Where a state gave another id to a message that is recorded."""
    own, following = message.message_id, message.followed_by
    return message._replace(
        message_id=aliases.get(own, own), followed_by=following and aliases.get(following, following)
    )


def cleaned(message: MessageEntry) -> MessageEntry:
    """The message with all of its text such as a database can hold."""
    texts: dict[str, Any] = {n: clean(value) for n in _TEXTS if isinstance(value := getattr(message, n), str)}
    return message._replace(**texts) if any(getattr(message, name) != text for name, text in texts.items()) else message


_TEXTS = ("message_id", "role", "text", "name", "tool_call_id", "model", "checkpoint_ns")

_COLUMNS = (
    *("session_id", "seq", "place", "run_id", "message_id", "version", "branch", "role", "text", "content"),
    *("tool_calls", "name", "tool_call_id", "model", "input_tokens", "output_tokens", "status", "checkpoint_ns"),
    *("extra", "marks", "created_at"),
)


def comparison_key(message: MessageEntry) -> tuple[Any, ...]:
    """What makes two sightings of a message the same: who said what."""
    calls = to_json(list(message.tool_calls)) if message.tool_calls else None
    return message.role, message.text, to_json(message.content), calls


def in_any_order(words: tuple[Any, ...]) -> tuple[Any, ...]:
    """The words with the arguments of what is asked for in one order, as theirs says nothing."""
    try:
        return (*words[:3], json.dumps(json.loads(words[3]), sort_keys=True), *words[4:]) if words[3] else words
    except ValueError:  # it is damaged, and like nothing else
        return words


def _is_outermost(message: MessageEntry) -> bool:
    """Whether it was seen in the outermost graph."""
    return SHARED in message.marks or (not message.checkpoint_ns and ASIDE not in message.marks)


def _status(message: MessageEntry) -> str:
    return "complete" if message.complete else "incomplete"


def _marks(message: MessageEntry, words: tuple[Any, ...]) -> str | None:
    return marks_of(message.marks, message.name, *words)
