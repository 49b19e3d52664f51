"""Copying the threads of LangGraph's own savers, with a comparison after each copied checkpoint.

The source is only read. Nothing in it is executed, and nothing is imported because of it: a class whose module
is not imported must be allowed, because the copy would hold a dict in its place. A thread is read completely
before its first write, so a thread that cannot be copied is left out as a whole and reported. A checkpoint that
exists with the same content is skipped, so an interrupted import continues when it is run again. Nothing is
overwritten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

from langgraph.checkpoint.base import CheckpointTuple

from session_middleware import SessionError, Sessions, StorageError
from session_middleware.checkpoint.classes import TypeName
from session_middleware.checkpoint.codec import own_metadata
from session_middleware.checkpoint.packing import pack
from session_middleware.importers.langgraph_source import (
    CannotCopy,
    ImportSource,
    Key,
    Saver,
    config_of,
    name_of,
    reading_strictly,
)

Progress = Callable[[int, int], object]  # checkpoints handled, and their total
WritesByTask = dict[str, list[tuple[str, Any]]]


@dataclass(frozen=True, slots=True)
class NotCopied:
    """A thread that was left out or copied in part."""

    thread_id: str
    reason: str


@dataclass(slots=True)
class Imported:
    """The result of an import."""

    threads: int = 0  # in the source
    checkpoints: int = 0  # copied, and equal when read back
    writes: int = 0  # of the copied checkpoints
    skipped: int = 0  # checkpoints that existed with the same content
    unowned: int = 0  # threads that name no user, where a `user_key` was given
    not_copied: list[NotCopied] = field(default_factory=list)


def import_checkpoints(
    source_saver: Saver, sessions: Sessions, *, user_key: str | None = None, progress: Progress | None = None
) -> Imported:
    """Copy every checkpoint and write of a saver, oldest first, and compare each with its source.

    The messages are recorded too. Sessions and messages have the times of their checkpoints, so a thread that
    was idle for longer than `idle_timeout` is expired. No program should write to the source meanwhile.

    Args:
        source_saver: LangGraph's `SqliteSaver` or `PostgresSaver` (see `open_source`), or another saver. Only
            of the first two is the order of parallel tasks' writes copied.
        user_key: The key of the runs' ``configurable`` that names the user, who becomes the owner. LangGraph
            stores it in the checkpoints' metadata.

    Raises:
        StorageError: one of the two databases cannot be used. Run the import again to continue.
    """
    serde = getattr(sessions.checkpointer.serde, "serde", sessions.checkpointer.serde)  # the one inside encryption
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
        self._result = Imported()
        self._total = 0

    def run(self) -> Imported:
        threads, handled = self._source.threads(), 0
        self._result.threads, self._total = len(threads), sum(map(len, threads))
        for keys in threads:
            try:
                self._copy_thread(keys, handled)
            except StorageError:
                raise
            except (CannotCopy, SessionError) as error:
                self._result.not_copied.append(NotCopied(keys[0][0], " ".join(str(error).split())))
            handled += len(keys)
            self._progress(handled, self._total)
        return self._result

    def _copy_thread(self, keys: list[Key], handled: int) -> None:
        owner = self._owner(keys)
        with nullcontext() if owner is None else self._sessions.acting_as(owner):
            missing = self._missing(keys, owner)
            self._result.skipped += len(keys) - len(missing)
            self._result.unowned += self._user_key is not None and owner is None
            if not missing:
                return
            thread = config_of(keys[0][0], "")
            self._saver.date(thread, _moment_of(self._source.read(missing[0])), anew=True)
            try:
                for number, key in enumerate(missing, handled + len(keys) - len(missing) + 1):
                    self._copy(key)
                    self._progress(number, self._total)
            finally:
                self._saver.date(thread, None)

    def _owner(self, keys: list[Key]) -> str | None:
        """The one user that a thread names. Reads the whole thread, so unreadable checkpoints are found first."""
        users: dict[str, None] = {}
        for key in keys:
            metadata = cast("Mapping[str, Any]", self._source.read(key).metadata)
            if self._user_key is not None and metadata.get(self._user_key) is not None:
                users[str(metadata[self._user_key])] = None
        if len(users) > 1:
            raise CannotCopy(
                f"it names {len(users)} users under {self._user_key!r} ({', '.join(users)}), and a session has one "
                "owner; import it without a user key"
            )
        return next(iter(users), None)

    def _missing(self, keys: list[Key], owner: str | None) -> list[Key]:
        """The checkpoints of a thread that must be copied. Raises `CannotCopy` where the session conflicts."""
        session = self._sessions.find(keys[0][0])
        if session is None:
            return keys
        if session.user_id is not None and session.user_id != owner:
            raise CannotCopy(f"a session of user {session.user_id!r} has this id; name the user with a user key")
        copies = {key: self._find_copy(key) for key in keys}
        missing = [key for key, copy in copies.items() if copy is None or self._has_grown(key, copy)]
        if missing and session.stats().checkpoint_count > sum(copy is not None for copy in copies.values()):
            raise CannotCopy(
                "a session with this id has checkpoints that the source does not have, and it was not changed; "
                "delete it, or import into another database"
            )
        return missing

    def _copy(self, key: Key) -> None:
        original, config = self._source.read(key), config_of(*key)
        writes, paths = _by_task(original), self._source.task_paths(key)
        self._saver.date(config, _moment_of(original))
        for task_id, written in writes.items():  # first, so that a checkpoint that exists is complete
            self._saver.put_writes(config, written, task_id, paths.get(task_id, ""))
        if self._find_copy(key) is None:
            versions = original.checkpoint["channel_versions"]  # all of them: the saver finds unchanged values itself
            self._saver.put(config_of(*key[:2], _parent_id(original)), original.checkpoint, original.metadata, versions)
        copy = self._find_copy(key)
        difference = "content" if copy is None else _difference(self._source.read(key), copy)
        if difference:
            raise CannotCopy(f"{name_of(key)} was copied, and read back with another {difference}; report this")
        self._result.checkpoints += 1
        self._result.writes += sum(map(len, writes.values()))

    def _find_copy(self, key: Key) -> CheckpointTuple | None:
        """Calls `list`, because `get_tuple` would begin a run of the session and record an event."""
        return next(self._saver.list(config_of(*key)), None)

    def _has_grown(self, key: Key, copy: CheckpointTuple) -> bool:
        """Whether the source's checkpoint has gained writes since it was copied; raises on any other difference.

        The copy may have more writes: then the thread continued in this database.
        """
        original = self._source.read(key)
        difference = _difference(original, copy)
        if not difference:
            return False
        theirs, ours = _by_task(original), _by_task(copy)
        if difference == _WRITES and (_contains(ours, theirs) or _contains(theirs, ours)):
            return not _contains(ours, theirs)
        raise CannotCopy(
            f"{name_of(key)} exists with another {difference}, and was not overwritten; "
            "delete the session, or import into another database"
        )


_WRITES = "list of writes"


def _difference(theirs: CheckpointTuple, ours: CheckpointTuple) -> str:
    """The part in which two checkpoints differ, or nothing."""
    if not _equal(theirs.checkpoint, ours.checkpoint):
        return "state"
    if not _equal(own_metadata({}, theirs.metadata), ours.metadata):
        return "metadata"
    if _parent_id(theirs) != _parent_id(ours):
        return "parent"
    return "" if _equal(_by_task(theirs), _by_task(ours)) else _WRITES


def _equal(one: Any, other: Any) -> bool:
    """Whether two values are equal. Values without a usable ``==`` are compared by their serialised bytes."""
    with suppress(TypeError, ValueError):  # arrays compare element by element
        if one == other:
            return True
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(value, other[name]) for name, value in one.items())
    with suppress(TypeError, ValueError):
        return pack(one) == pack(other)
    return False


def _contains(whole: WritesByTask, part: WritesByTask) -> bool:
    return all(
        any(_equal(write, other) for other in whole.get(task_id, ())) for task_id in part for write in part[task_id]
    )


def _by_task(found: CheckpointTuple) -> WritesByTask:
    writes: WritesByTask = {}
    for task_id, channel, value in found.pending_writes or ():
        writes.setdefault(task_id, []).append((channel, value))
    return writes


def _moment_of(found: CheckpointTuple) -> datetime | None:
    """The time of a checkpoint, if it has a valid one."""
    try:
        moment = datetime.fromisoformat(found.checkpoint["ts"])
    except (TypeError, ValueError):
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _parent_id(found: CheckpointTuple) -> str | None:
    return found.parent_config["configurable"].get("checkpoint_id") if found.parent_config else None
