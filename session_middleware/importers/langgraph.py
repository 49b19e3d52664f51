"""Moving in: copying the threads of LangGraph's own savers, each checkpoint checked after it is written.

The source is only read: nothing in it is executed, and nothing is imported because of it. A class
whose module is not imported has to be allowed, or the copy would have a dict in its place. A thread
is read whole before anything of it is written, so one that cannot be copied is left out whole, and
said. What is there already and equal is skipped, so an import that was cut off goes on when it is
run again; nothing that is there is overwritten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

from langgraph.checkpoint.base import CheckpointTuple

from session_middleware.checkpoint.classes import TypeName
from session_middleware.checkpoint.metadata import own_metadata
from session_middleware.checkpoint.packing import pack
from session_middleware.errors import SessionError, StorageError
from session_middleware.importers.langgraph_source import (
    CannotCopy,
    ImportSource,
    Key,
    Saver,
    config_of,
    name_of,
    reading_strictly,
)
from session_middleware.sessions import Sessions

Progress = Callable[[int, int], None]  # checkpoints done with, of how many
WritesByTask = dict[str, list[tuple[str, Any]]]


@dataclass(frozen=True, slots=True)
class NotCopied:
    """A thread that was left out, or of which the copy could not be finished."""

    thread_id: str
    reason: str


@dataclass(slots=True)
class Imported:
    """What an import did."""

    threads: int = 0  # in the source
    checkpoints: int = 0  # copied, and found equal when they were read back
    writes: int = 0  # copied with them
    skipped: int = 0  # checkpoints that were there already, and equal
    unowned: int = 0  # threads that name no user although a `user_key` was given
    not_copied: list[NotCopied] = field(default_factory=list)


def import_checkpoints(
    source_saver: Saver, sessions: Sessions, *, user_key: str | None = None, progress: Progress | None = None
) -> Imported:
    """Copy every checkpoint and write of a saver, the oldest first, and compare each with its source.

    Messages get into the record on the way. Sessions and messages have the times of their checkpoints, so a
    thread that has idled for longer than `idle_timeout` is expired. Nobody should write to the source meanwhile.

    Args:
        source_saver: LangGraph's `SqliteSaver` or `PostgresSaver` (see `open_source`), or another
            saver; of others the order of parallel tasks' writes is not kept.
        user_key: the key of the runs' ``configurable`` that named the user, who becomes the owner;
            LangGraph keeps it in the checkpoints' metadata.

    Raises:
        StorageError: one of the two databases cannot be used; running it again goes on.
    """
    serde = getattr(sessions.checkpointer.serde, "serde", sessions.checkpointer.serde)  # within one that encrypts
    allowed: Iterable[TypeName] = getattr(serde, "allowed", ())
    only_allowed = bool(getattr(serde, "only_allowed", False))
    source = ImportSource(reading_strictly(source_saver, allowed, only_allowed=only_allowed))
    return _Import(source, sessions, user_key, progress or (lambda *_: None)).run()


class _Import:
    def __init__(self, source: ImportSource, sessions: Sessions, user_key: str | None, progress: Progress) -> None:
        self._source = source
        self._sessions = sessions
        self._saver = sessions.checkpointer
        self._user_key = user_key
        self._progress = progress
        self._imported = Imported()
        self._passed = self._total = 0

    def run(self) -> Imported:
        threads = self._source.threads()
        self._imported.threads, self._total = len(threads), sum(map(len, threads))
        passed = 0
        for keys in threads:
            try:
                self._copy_thread(keys)
            except StorageError:
                raise
            except (CannotCopy, SessionError) as error:
                self._imported.not_copied.append(NotCopied(keys[0][0], " ".join(str(error).split())))
            passed += len(keys)
            self._advance(passed - self._passed)
        return self._imported

    def _advance(self, count: int) -> None:
        if count:
            self._passed += count
            self._progress(self._passed, self._total)

    def _copy_thread(self, keys: list[Key]) -> None:
        owner = self._owner(keys)
        with nullcontext() if owner is None else self._sessions.acting_as(owner):
            missing = self._missing(keys, owner)
            self._imported.skipped += len(keys) - len(missing)
            self._imported.unowned += self._user_key is not None and owner is None
            self._advance(len(keys) - len(missing))
            if not missing:
                return
            self._saver.date(config_of(keys[0][0], ""), _moment_of(self._source.read(missing[0])), anew=True)
            try:
                for key in missing:
                    self._copy(key)
                    self._advance(1)
            finally:
                self._saver.date(config_of(keys[0][0], ""), None)

    def _owner(self, keys: list[Key]) -> str | None:
        """The one user a thread names. All of it is read for that, so that what cannot be is found first."""
        found: dict[str, None] = {}
        for key in keys:
            metadata = cast("Mapping[str, Any]", self._source.read(key).metadata)
            if self._user_key is not None and metadata.get(self._user_key) is not None:
                found[str(metadata[self._user_key])] = None
        if len(found) > 1:
            raise CannotCopy(
                f"it names {len(found)} users under {self._user_key!r} ({', '.join(found)}), and a session has one "
                "owner; import it without a user key"
            )
        return next(iter(found), None)

    def _missing(self, keys: list[Key], owner: str | None) -> list[Key]:
        """Which of a thread's checkpoints have to be copied, if it may be copied at all."""
        session = self._sessions.find(keys[0][0])
        if session is None:
            return keys
        if session.user_id is not None and session.user_id != owner:
            raise CannotCopy(
                f"there is a session of user {session.user_id!r} with this id; name the user with a user key"
            )
        missing, present = [], 0
        for key in keys:
            ours = self._ours(key)
            present += ours is not None
            if ours is None or _has_grown(self._source.read(key), ours, key):
                missing.append(key)
        if missing and session.stats().checkpoint_count > present:
            raise CannotCopy(
                "there is a session with this id that has gone its own way, and was not touched; "
                "delete it, or import into another database"
            )
        return missing

    def _copy(self, key: Key) -> None:
        theirs, here = self._source.read(key), config_of(*key)
        writes, paths = _by_task(theirs), self._source.task_paths(key)
        self._saver.date(here, _moment_of(theirs))
        for task_id, written in writes.items():  # before the checkpoint: where that is, all of it is
            self._saver.put_writes(here, written, task_id, paths.get(task_id, ""))
        if self._ours(key) is None:
            versions = theirs.checkpoint["channel_versions"]  # all: what the parent has is found by comparing
            self._saver.put(config_of(*key[:2], _parent_id(theirs)), theirs.checkpoint, theirs.metadata, versions)
        ours = self._ours(key)
        difference = "everything" if ours is None else _difference(self._source.read(key), ours)
        if difference:
            raise CannotCopy(f"{name_of(key)} was copied, and read back with another {difference}; report this")
        self._imported.checkpoints += 1
        self._imported.writes += sum(map(len, writes.values()))

    def _ours(self, key: Key) -> CheckpointTuple | None:
        """By `list`, because each `get_tuple` would be a visit of its own, and leave an event."""
        return next(self._saver.list(config_of(*key)), None)


# Comparing

_WRITES = "list of writes"


def _has_grown(theirs: CheckpointTuple, ours: CheckpointTuple, key: Key) -> bool:
    """Whether the source's checkpoint has gained writes since it was copied; any other difference is raised.

    That ours has more is no difference: the thread went on here.
    """
    difference = _difference(theirs, ours)
    if not difference:
        return False
    if difference == _WRITES:
        if _within(_by_task(theirs), _by_task(ours)):
            return False
        if _within(_by_task(ours), _by_task(theirs)):
            return True
    raise CannotCopy(
        f"{name_of(key)} is there already with another {difference}, and was not overwritten; "
        "delete the session, or import into another database"
    )


def _difference(theirs: CheckpointTuple, ours: CheckpointTuple) -> str:
    """What differs between two checkpoints, or nothing."""
    if not _equal(theirs.checkpoint, ours.checkpoint):
        return "state"
    if not _equal(own_metadata({}, theirs.metadata), ours.metadata):
        return "metadata"
    if _parent_id(theirs) != _parent_id(ours):
        return "parent"
    return "" if _equal(_by_task(theirs), _by_task(ours)) else _WRITES


def _equal(one: Any, other: Any) -> bool:
    """Whether two values are the same; those that cannot say so themselves, by what would be stored of them."""
    try:
        if one == other:
            return True
    except (TypeError, ValueError):  # arrays compare element by element
        pass
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(value, other[name]) for name, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    try:
        return pack(one) == pack(other)
    except (TypeError, ValueError):
        return False


def _within(part: WritesByTask, whole: WritesByTask) -> bool:
    return all(
        any(_equal(write, other) for other in whole.get(task_id, ())) for task_id in part for write in part[task_id]
    )


def _by_task(found: CheckpointTuple) -> WritesByTask:
    writes: WritesByTask = {}
    for task_id, channel, value in found.pending_writes or ():
        writes.setdefault(task_id, []).append((channel, value))
    return writes


def _moment_of(found: CheckpointTuple) -> datetime | None:
    """When a checkpoint was made, as far as it says so."""
    try:
        moment = datetime.fromisoformat(found.checkpoint["ts"])
    except (TypeError, ValueError):
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _parent_id(found: CheckpointTuple) -> str | None:
    return found.parent_config["configurable"].get("checkpoint_id") if found.parent_config else None
