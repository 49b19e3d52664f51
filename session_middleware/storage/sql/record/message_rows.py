"""Writing messages: each version of a message is one row, at its position in the conversation, on its branch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from operator import attrgetter, eq, methodcaller
from typing import Any, NamedTuple

from session_middleware.models import to_text
from session_middleware.storage.jsonable import LONGEST_ID, REPLACED, stored_id
from session_middleware.storage.record_entries import ASIDE, SHARED, MessageEntry, ModelCallEntry
from session_middleware.storage.sql.connection import among
from session_middleware.storage.sql.record import branches, deletions, tool_call_rows
from session_middleware.storage.sql.record.branches import Line
from session_middleware.storage.sql.row_mapping import clean, flags_of, to_json
from session_middleware.storage.sql.run_write import RunWrite
from session_middleware.storage.sql.session_state import SessionState, SessionWrite
from session_middleware.storage.titles import title_of

Key = tuple[Any, ...]  # role, text, content and tool calls: the content of a message, as observations are compared

_MOST_CACHED = 32  # messages of a session, of at most `_LONGEST_CACHED` characters
_LONGEST_CACHED = 4_096
_MOST_IDS = 4_096  # of a session, known without reading


class StoredVersion(NamedTuple):
    """The columns of a stored message that another observation of it is compared with."""

    message_id: str
    seq: int
    version: int
    position: float
    branch: str
    status: str
    checkpoint_ns: str
    flags: str | None
    role: str
    text: str
    content: str | None
    tool_calls: str | None

    @property
    def key(self) -> Key:
        return self[8:]

    @property
    def is_aside(self) -> bool:
        return ASIDE in (self.flags or "")

    def has_same_content(self, key: Key) -> bool:
        return self[8:] == key or normalized(self[8:]) == normalized(key)


_COLUMNS = (
    *("session_id", "run_id", *StoredVersion._fields, "name", "tool_call_id"),
    *("model", "input_tokens", "output_tokens", "extra", "created_at"),
)
FIELDS = ", ".join(StoredVersion._fields)
_IDS, _TEXTS = ("message_id", "tool_call_id", "followed_by"), ("role", "text", "name", "model", "checkpoint_ns")
_ids_of, _texts_of, _id_of, _id_of_call = (
    attrgetter(*_IDS),
    attrgetter(*_TEXTS),
    attrgetter("message_id"),
    methodcaller("get", "id"),
)


class Appender:
    """Appends one batch of observed messages that are `cleaned`.

    They are new messages, or new versions of those with other content.
    """

    def __init__(self, write: SessionWrite, run: RunWrite, now: datetime) -> None:
        self._write = write
        self._run = run
        self._context = run.context
        self._record = run.record
        self._session_id = run.session_id
        self._counters = write.counters
        self._now = now
        self._branch = branches.branch_of(write, run)
        self._line: Line | None = None
        self._stored = write.state.message_rows  # all versions of a message, by id
        self._answers: list[MessageEntry] = []
        self._batch: Sequence[MessageEntry] = ()
        self._added: set[str] = set()  # ids of messages that were added to the cache

    def append(self, messages: Sequence[MessageEntry]) -> None:
        if aliases := self._record.aliases:
            messages = [_with_recorded_id(message, aliases) for message in messages]
        if self._write.state.has_deletions:
            deleted = {each.message_id for each in deletions.deleted(self._write.connection, self._session_id)}
            messages = [message for message in messages if message.message_id not in deleted]
        self._batch = messages
        self._read(set(map(_id_of, messages)))
        for message in messages:
            if self._answers and message.role != "tool":
                self._add_answers()
            self._append_one(message)
        if self._answers:
            self._add_answers()
        _trim(self._write.state, self._added)

    def _add_answers(self) -> None:
        """Add tool calls for answers: after the messages that request them, and before the messages that follow."""
        for message in self._answers:
            tool_call_rows.add_answered(self._write, self._run, message)
            if message.artifact is not None:
                tool_call_rows.set_artifact(self._write, self._run, message)
        self._answers.clear()

    def _versions(self, message_id: str) -> list[StoredVersion]:
        if message_id not in self._stored:
            self._read({message_id})
        return self._stored[message_id]

    def _read(self, message_ids: set[str]) -> None:
        """Read the stored versions of messages, unless they are cached."""
        state = self._write.state
        missing = message_ids - self._stored.keys()
        if not missing:
            return
        if state.message_ids is None and state.last_seq <= _MOST_IDS:
            found = self._write.query(
                "SELECT DISTINCT message_id FROM messages WHERE session_id = ?", (self._session_id,)
            )
            state.message_ids = {message_id for (message_id,) in found}
        self._added |= missing
        for message_id in missing:
            self._stored[message_id] = []
        if state.message_ids is not None:
            missing &= state.message_ids
        if missing:
            those, values = among("message_id", missing)
            sql = f"SELECT {FIELDS} FROM messages WHERE session_id = ? AND {those} ORDER BY version"
            for row in self._write.query(sql, (self._session_id, *values)):
                self._stored[row[0]].append(StoredVersion(*row))

    def _append_one(self, message: MessageEntry) -> None:
        if message.again is not None:
            message = self._original_or_copy(message, message.again)
        message_id, versions = message.message_id, self._versions(message.message_id)
        if message.role == "user":
            message = self._with_author(message, versions)
        key = comparison_key(message)
        if self._run.has_unclaimed:
            if message.minted and not versions and self._has_other_id(message):
                return
            versions = self._claim(message, key) or versions
        if versions and (versions[-1].checkpoint_ns or versions[-1].is_aside) and _is_outermost(message):
            self._share(versions[-1])
        visible = None if not versions else next(filter(self._sees, reversed(versions)), None)
        if visible is None:
            if not (versions and versions[-1].has_same_content(key) and self._follow(versions[-1], message)):
                number = versions[-1].version + 1 if versions else 1
                following = message.followed_by
                position = None if following is None else self._position_before(message, following)
                self._add(message, key, position=position, version=number)
        elif visible.status == "incomplete":
            self._complete(message, key, visible)
        else:
            self._counters.rows[message_id] = visible.seq
            if message.late:
                same = (version.seq for version in versions if version.has_same_content(key) and self._sees(version))
                self._counters.rows[message_id] = next(same, visible.seq)
            elif not visible.has_same_content(key):
                if message.complete:
                    self._add(
                        message, key, position=visible.position, version=versions[-1].version + 1, replaces=visible
                    )
            elif message.refused:
                self._answers.append(message)
            elif message.moved:
                self._move(message)

    def _original_or_copy(self, message: MessageEntry, original: str) -> MessageEntry:
        """Give output from a model cache the id of the original, unless the conversation contains that already."""
        is_stored = any(row.status == "complete" and self._sees(row) for row in self._versions(original))
        is_copy = is_stored and not self._versions(original)[-1].is_aside
        return message._replace(message_id=message.message_id if is_copy else original, again=None)

    def _with_author(self, message: MessageEntry, versions: Sequence[StoredVersion]) -> MessageEntry:
        """Decide at the first observation of a message in the user's role whether the user or an agent wrote it."""
        by_agent = versions[-1].role == "assistant" if versions else message.told and not self._is_by_user(message.text)
        if not by_agent:
            return message
        return message._replace(role="assistant", extra={**(message.extra or {}), "type": "human"})

    def _is_by_user(self, text: str) -> bool:
        """Whether the run was called with the text, or the user has said it before, or neither has said anything."""
        texts = self._context.input_texts or ()
        values = (self._session_id, text, not texts, self._session_id)
        return text in texts or bool(self._write.query(_IS_BY_USER, values).fetchone()[0])

    def _share(self, version: StoredVersion) -> None:
        """Mark a message of a subgraph, or aside, that the outermost graph's state contains as well.

        An interrupted subgraph returns it in a later run, after the user's messages since then.
        """
        message_id, written = version.message_id, self._record.written
        own = self._session_id, message_id
        is_input = version.role == "user" and version.text in (self._context.input_texts or ())
        self._stored.pop(message_id, None)
        if is_input and message_id in written:  # an interrupted subgraph may put its state first
            self._write.execute("UPDATE messages SET checkpoint_ns = '' WHERE session_id = ? AND message_id = ?", own)
        elif not clear_aside(self._write, self._session_id, [message_id]):
            is_new = self._write.execute(_SHARE, own).rowcount
            may_move = is_new and message_id not in written
            if may_move and self._write.execute(_MOVE_BEHIND, (*own, json.dumps(list(written.values())))).rowcount:
                written[message_id] = version.seq

    def _move(self, message: MessageEntry) -> None:
        following = message.followed_by
        position = None if following is None else self._position_before(message, following)
        self._stored.pop(message.message_id, None)
        self._write.execute(_MOVE, (self._session_id, message.message_id, position))

    def _follow(self, version: StoredVersion, message: MessageEntry) -> bool:
        self._line = None
        self._counters.rows[version.message_id] = version.seq
        own, later = (version.seq, version.message_id), self._later_than(message)
        return branches.follow_parent(self._write, self._session_id, self._branch, *own, later)

    def _later_than(self, message: MessageEntry) -> list[int]:
        """The seqs of messages of the run that were recorded before a checkpoint of an earlier step brings this one."""
        if message.step is None:
            return []
        steps, of, step = self._context.notes.message_steps, message.checkpoint_ns, message.step
        return [seq for own, seq in self._record.written.items() if steps.get((of, own), step) > step]

    def _sees(self, version: StoredVersion) -> bool:
        """Whether a row belongs to this branch, or to the part of an ancestor that this branch shares."""
        if version.branch == self._branch:
            return True
        if self._line is None:
            self._line = branches.line(self._write.connection, self._session_id, self._branch)
        return any(version.branch == branch and version.seq <= upto for branch, upto in self._line)

    def _claim(self, message: MessageEntry, key: Key) -> list[StoredVersion]:
        """Give a recorded message the id that it has in the state; returns its versions if it is recorded."""
        claimed = self._run.find_unclaimed(message.claim)
        message_id, versions = message.message_id, [] if claimed is None else self._versions(claimed)
        if claimed is None or not versions or (message_id != claimed and self._versions(message_id)):
            return []
        if message_id == claimed and message.checkpoint_ns == versions[0].checkpoint_ns:
            if ASIDE not in message.flags:
                self._run.claim(message.claim, claimed)
            return []
        self._run.claim(message.claim, claimed)
        if (seq := self._record.written.pop(claimed, None)) is not None:
            self._record.written[message_id] = seq
        namespace = message.checkpoint_ns if versions[0].checkpoint_ns else ""  # input of the outermost graph stays its
        flags = flags_of(message.flags, message.name, *key)
        self._write.execute(
            "UPDATE messages SET message_id = ?, checkpoint_ns = ?, flags = ? WHERE session_id = ? AND message_id = ?",
            (message_id, namespace, flags, self._session_id, claimed),
        )
        if message.tool_calls:
            tool_call_rows.rename_request(self._write, self._session_id, claimed, message)
        del self._stored[claimed]
        of = message.checkpoint_ns
        renamed = [row._replace(message_id=message_id, checkpoint_ns=of, flags=flags) for row in versions]
        self._keep(message_id, renamed)
        return renamed

    def _has_other_id(self, message: MessageEntry) -> bool:
        """Whether an input without an id was recorded with the id that the graph has given it since."""
        written = self._record.written
        if self._run.find_unclaimed(message.claim) != message.message_id or not written:
            return False
        self._stored.clear()
        found = self._write.execute(
            "UPDATE messages SET checkpoint_ns = ?1 WHERE session_id = ?2 AND seq = (SELECT MIN(seq) FROM messages"
            " WHERE session_id = ?2 AND seq >= ?3 AND run_id IS ?4 AND role = ?5 AND text = ?6 AND message_id NOT IN"
            " (SELECT value FROM json_each(?7))) RETURNING seq",
            (message.checkpoint_ns, self._session_id, min(written.values()), self._context.run_id, message.role)
            + (message.text, json.dumps([each.message_id for each in self._batch if each.minted])),
        ).fetchone()
        if found is None:
            return False
        self._counters.rows[message.message_id] = found[0]
        self._run.claim(message.claim, message.message_id)
        return True

    def _complete(self, message: MessageEntry, key: Key, stored: StoredVersion) -> None:
        status, flags = "complete" if message.complete else "incomplete", flags_of(message.flags, message.name, *key)
        self._write.execute(
            "UPDATE messages SET role = ?, text = ?, content = ?, tool_calls = ?, name = ?, model = ?,"
            " input_tokens = ?, output_tokens = ?, status = ?, checkpoint_ns = ?, extra = ?, flags = ?"
            " WHERE session_id = ? AND seq = ?",
            (*key, message.name, message.model, message.input_tokens, message.output_tokens, status)
            + (message.checkpoint_ns, to_json(message.extra), flags, self._session_id, stored.seq),
        )
        self._counters.rows[message.message_id] = stored.seq
        self._keep(message.message_id, [StoredVersion(*stored[:5], status, message.checkpoint_ns, flags, *key)])
        if stored.version == 1 and message.complete and message.call is not None:
            self._add_model_call(message, message.call)

    def _add(
        self,
        message: MessageEntry,
        key: Key,
        *,
        position: float | None,
        version: int,
        replaces: StoredVersion | None = None,
    ) -> None:
        message_id, seq = message.message_id, self._counters.next_seq()
        self._counters.rows[message_id] = seq
        status, flags = "complete" if message.complete else "incomplete", flags_of(message.flags, message.name, *key)
        position = seq if position is None else position
        row = (message_id, seq, version, position, self._branch, status, message.checkpoint_ns, flags, *key)
        self._keep(message_id, [*self._stored.get(message_id, ()), StoredVersion(*row)])
        usage = (message.model, message.input_tokens, message.output_tokens)
        created_at = to_text(message.created_at or self._said_at(message))
        extra = None if message.extra is None else to_json(message.extra)
        others = (message.name, message.tool_call_id, *usage, extra, created_at)
        self._write.insert("messages", _COLUMNS, [(self._session_id, self._context.run_id, *row, *others)])
        if replaces is None:
            self._record.written[message_id] = seq
        elif replaces.branch == self._branch:
            self._write.execute(
                "UPDATE messages SET replaced_by = ? WHERE session_id = ? AND seq = ?",
                (seq, self._session_id, replaces.seq),
            )
        if message.files:
            tool_call_rows.store_files(self._write, self._session_id, message.files)
        if version == 1:
            self._counters.messages += 1
            if message.role == "user" and self._write.state.needs_title and self._counters.title is None:
                self._make_title(message)
            if message.call is not None:
                self._add_model_call(message, message.call)
            if message.role == "tool" and message.tool_call_id:
                self._answers.append(message)
            if message.tool_calls:
                tool_call_rows.set_request(self._write, self._session_id, message)

    def _make_title(self, message: MessageEntry) -> None:
        if not message.checkpoint_ns and not {ASIDE, "memory"}.intersection(message.flags):
            self._counters.title = title_of(message.text)

    def _keep(self, message_id: str, versions: list[StoredVersion]) -> None:
        self._stored[message_id] = versions
        self._added.add(message_id)
        if self._write.state.message_ids is not None:
            self._write.state.message_ids.add(message_id)

    def _add_model_call(self, message: MessageEntry, reported: ModelCallEntry) -> None:
        call = reported._replace(started_at=message.created_at, message_id=message.message_id)
        tool_call_rows.add_implied_model_call(self._write, self._run, call, self._now)

    def _said_at(self, message: MessageEntry) -> datetime:
        """The time of a message; of user input that a checkpoint brings at the end of the run, the run's start."""
        is_late = self._context.has_checkpoint and self._context.at is None and message.role == "user"
        return (is_late and self._run.state.began_at) or self._now

    def _position_before(self, message: MessageEntry, followed_by: str) -> float | None:
        """Return the position before the message's successor; ``None``, which is at the end, if that is not recorded.

        A subgraph's summary precedes messages of earlier runs only in the subgraph's state.
        """
        following = next((row for row in reversed(self._versions(followed_by)) if self._sees(row)), None)
        if following is None:
            return None
        if message.checkpoint_ns and message.role == "system" and following.message_id not in self._record.written:
            return None
        before = self._write.query(
            "SELECT COALESCE(MAX(position), 0) FROM messages WHERE session_id = ? AND position < ?",
            (self._session_id, following.position),
        ).fetchone()[0]
        return float(before + following.position) / 2


_IS_BY_USER = """
    SELECT EXISTS (SELECT 1 FROM messages WHERE session_id = ? AND text = ? AND role = 'user' AND checkpoint_ns = '')
    OR (? AND NOT EXISTS (SELECT 1 FROM messages WHERE session_id = ? AND role = 'user'))
"""
_SHARE = f"""
    UPDATE messages SET flags = json_insert(COALESCE(flags, '[]'), '$[#]', '{SHARED}')
    WHERE session_id = ? AND message_id = ? AND COALESCE(flags, '') NOT LIKE '%"{SHARED}"%'
"""
_MOVE_BEHIND = """
    UPDATE messages SET position = input.last + 0.5 FROM (
        SELECT MAX(position) AS last FROM messages
        WHERE session_id = ?1 AND seq IN (SELECT CAST(value AS INTEGER) FROM json_each(?3))
        AND role = 'user' AND checkpoint_ns = ''
    ) AS input WHERE session_id = ?1 AND message_id = ?2 AND position < input.last
"""
_MOVE = """
    UPDATE messages SET position = COALESCE(?3, (SELECT MAX(position) + 0.125 FROM messages WHERE session_id = ?1))
    WHERE session_id = ?1 AND message_id = ?2
"""


def clear_aside(write: SessionWrite, session_id: str, message_ids: Sequence[str]) -> int:
    """Make messages that were aside part of the conversation; returns how many were."""
    for message_id in message_ids:
        write.state.message_rows.pop(message_id, None)
    those, values = among("message_id", message_ids)
    return write.execute(f"{_CLEAR_ASIDE} AND {those}", (session_id, *values)).rowcount


_CLEAR_ASIDE = f"""
    UPDATE messages SET checkpoint_ns = '', flags = (SELECT NULLIF(json_group_array(value), '[]') FROM json_each(flags)
    WHERE value != '{ASIDE}') WHERE session_id = ? AND flags LIKE '%"{ASIDE}"%'
"""


def _trim(state: SessionState, added: Iterable[str]) -> None:
    """Bound the cache of messages."""
    stored = state.message_rows
    for own in added:
        if (rows := stored.get(own)) and sum(map(len, filter(None, rows[-1][8:]))) > _LONGEST_CACHED:
            del stored[own]
    while len(stored) > _MOST_CACHED:
        stored.popitem(last=False)
    if state.message_ids is not None and len(state.message_ids) > _MOST_IDS:
        state.message_ids = None


def restore_conversation_order(write: SessionWrite, run: RunWrite, ids: Iterable[str | None]) -> None:
    """Order the messages that this run wrote as the conversation has them. Messages of other runs stay where they are.

    Messages arrive in another order where a state in which one was removed is put back, for instance.
    """
    written = run.record.written
    seqs = {write.counters.rows.get(own, written[own]): own for own in ids if own in written}
    if len(seqs) < 2:
        return
    stored = write.state.message_rows
    positions = {row.seq: row.position for own in seqs.values() for row in stored.get(own, ()) if row.seq in seqs}
    if len(positions) < len(seqs):
        found = write.query(
            "SELECT seq, position, message_id FROM messages WHERE session_id = ?"
            " AND seq IN (SELECT CAST(value AS INTEGER) FROM json_each(?))",
            (run.session_id, json.dumps(list(seqs))),
        )
        positions = {seq: position for seq, position, message_id in found if message_id == seqs[seq]}
    ordered = [seq for seq in seqs if seq in positions]
    current = [*map(positions.__getitem__, ordered)]
    if current == (in_order := sorted(current)):
        return
    del ordered[: list(map(eq, current, in_order)).index(False)]
    first = min(written.values())  # a position before it is among the messages of earlier runs
    places = sorted(seq if positions[seq] < first else positions[seq] for seq in ordered)
    for seq, position in zip(ordered, places, strict=True):
        if position != positions[seq]:
            stored.pop(seqs[seq], None)
            sql = "UPDATE messages SET position = ? WHERE session_id = ? AND seq = ?"
            write.execute(sql, (position, run.session_id, seq))


def _with_recorded_id(message: MessageEntry, aliases: Mapping[str, str]) -> MessageEntry:
    """Replace ids that a state gave to recorded messages."""
    own, following = message.message_id, message.followed_by
    return message._replace(
        message_id=aliases.get(own, own), followed_by=following and aliases.get(following, following)
    )


def cleaned(message: MessageEntry) -> MessageEntry:
    """The message with its ids and texts as a database can store them."""
    ids = [*map(str, (*_ids_of(message), *map(_id_of_call, message.tool_calls)))]
    try:
        "".join((*ids, *map(str, _texts_of(message)))).encode()
        if max(map(len, ids)) <= LONGEST_ID:
            return message
    except UnicodeEncodeError:
        pass
    own: dict[str, Any] = {name: given and stored_id(given) for name, given in zip(_IDS, _ids_of(message), strict=True)}
    own |= {name: given and clean(given) for name, given in zip(_TEXTS, _texts_of(message), strict=True)}
    calls = [{**call, "id": (given := call.get("id")) and stored_id(str(given))} for call in message.tool_calls]
    return message._replace(tool_calls=calls, **own)


def comparison_key(message: MessageEntry) -> Key:
    content = None if message.content is None else to_json(message.content)
    calls = to_json(list(message.tool_calls)) if message.tool_calls else None
    return message.role, message.text, content, calls


def normalized(key: Key) -> Key:
    """The key without differences that have no meaning: the order of arguments, and the mark of an invalid character.

    A checkpointer restores it as a question mark.
    """
    key = (*(text and text.replace(REPLACED, "?") for text in key[:4]), *key[4:])
    try:
        return (*key[:3], json.dumps(json.loads(key[3]), sort_keys=True), *key[4:]) if key[3] else key
    except ValueError:  # a damaged row equals no message
        return key


def _is_outermost(message: MessageEntry) -> bool:
    """Whether the message belongs to the state of the outermost graph."""
    return SHARED in message.flags or (not message.checkpoint_ns and ASIDE not in message.flags)
