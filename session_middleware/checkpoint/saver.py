"""The checkpointer: one object for sync and async, linear in what was said.

A put stores the elements that are new since the parent checkpoint and refers to the rest. What this
process knows of stored lists (`_Known`) only saves work: each put makes sure, in its transaction,
that the parent is what was known of it, and else reads it again. So several processes may work on
one thread.
"""

from __future__ import annotations

import random
import threading
from array import array
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    get_checkpoint_id,
    get_checkpoint_metadata,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

from session_middleware.checkpoint import pieces
from session_middleware.checkpoint.pieces import KnownList
from session_middleware.errors import UnserializableValue
from session_middleware.lifecycle import session_id_of
from session_middleware.storage.offload import Offload
from session_middleware.storage.port import (
    Blob,
    CheckpointPut,
    Chunk,
    ListPut,
    MessageSeen,
    Parent,
    StaleParent,
    Storage,
    StoredCheckpoint,
    StoredList,
    Visit,
    Write,
    WritesPut,
)
from session_middleware.visits import Visits

_REMEMBERED = 256  # checkpoints whose lists this process keeps in mind
_PAGE = 32  # checkpoints read at a time by `list`
_IDENTITY = ("user_id", "group_id")

Key = tuple[str, str, str]
DescribeMessages = Callable[[Sequence[BaseMessage], str], list[MessageSeen]]


@dataclass(slots=True)
class _Known:
    """A stored checkpoint, as far as a put on top of it needs it."""

    versions: ChannelVersions
    channels: str
    names: frozenset[str]
    lists: dict[str, KnownList] = field(default_factory=dict)


class SessionSaver(BaseCheckpointSaver[int]):
    """LangGraph's checkpointer contract on `Storage`. Its configs carry the caller's identity on."""

    def __init__(
        self,
        storage: Storage,
        offload: Offload,
        visits: Visits,
        *,
        serde: SerializerProtocol,
        describe_messages: DescribeMessages,
    ) -> None:
        super().__init__(serde=serde)
        self._storage = storage
        self._offload = offload
        self._visits = visits
        self._describe_messages = describe_messages
        self._known: OrderedDict[Key, _Known] = OrderedDict()
        self._lock = threading.Lock()

    # Reading

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The checkpoint `config` names, or the latest of its thread; ``None`` when there is none.

        Raises:
            SessionAccessDenied: the session is another user's.
            SessionExpired: it has expired and ``on_resume`` is ``"reject"``.
            StorageError: what is stored is damaged.
        """
        return self._read(config, self._visits.arrive(config["configurable"]))

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return await self._offload.run(self._read, config, self._visits.arrive(config["configurable"]))

    def _read(self, config: RunnableConfig, visit: Visit) -> CheckpointTuple | None:
        if self._storage.look(visit) is None:
            return None
        namespace = config["configurable"].get("checkpoint_ns", "")
        stored = self._storage.get_checkpoint(visit.session_id, namespace, get_checkpoint_id(config))
        return None if stored is None else self._tuple(stored, config)

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """Checkpoints, newest first in each namespace. No lock is held between them."""
        after: Key | None = None
        while limit is None or limit > 0:
            page, after = self._page(config, filter, before, after)
            yield from page[:limit]
            limit = None if limit is None else limit - len(page)
            if after is None:
                return

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        after: Key | None = None
        while limit is None or limit > 0:
            page, after = await self._offload.run(self._page, config, filter, before, after)
            for found in page[:limit]:
                yield found
            limit = None if limit is None else limit - len(page)
            if after is None:
                return

    def _page(
        self,
        config: RunnableConfig | None,
        filter: dict[str, Any] | None,
        before: RunnableConfig | None,
        after: Key | None,
    ) -> tuple[list[CheckpointTuple], Key | None]:
        """The matches among the next checkpoints, and where to go on; ``None`` at the end."""
        wanted = config["configurable"] if config else {}
        if config and self._storage.look(self._visits.present(wanted)) is None:
            return [], None
        rows = self._storage.list_checkpoints(
            session_id_of(wanted.get("thread_id")) if config else None,
            checkpoint_ns=wanted.get("checkpoint_ns"),
            checkpoint_id=get_checkpoint_id(config) if config else None,
            before=get_checkpoint_id(before) if before else None,
            limit=_PAGE,
            after=after,
        )
        found = []
        for *key, body in rows:
            metadata = self.serde.loads_typed(body)["metadata"]
            if all(metadata.get(name) == value for name, value in (filter or {}).items()):
                stored = self._storage.get_checkpoint(*key)
                if stored is not None:
                    found.append(self._tuple(stored, config or {}))
        return found, rows[-1][:3] if len(rows) == _PAGE else None

    def _tuple(self, stored: StoredCheckpoint, asked: RunnableConfig) -> CheckpointTuple:
        body = self.serde.loads_typed(stored.body)
        lists: dict[str, KnownList] = {}
        values: dict[str, Any] = {}
        for name, value in stored.values.items():
            values[name] = self._join(value)
            if isinstance(value, StoredList):
                lists[name] = KnownList(value.ref, pieces.fingerprints(values[name]))
        checkpoint = {**body["checkpoint"], "channel_values": values}
        key = (stored.session_id, stored.checkpoint_ns, stored.checkpoint_id)
        names = frozenset(stored.values)
        self._remember(key, _Known(checkpoint["channel_versions"].copy(), stored.channels, names, lists))
        return CheckpointTuple(
            config=self._config(asked, key),
            checkpoint=cast("Checkpoint", checkpoint),
            metadata=body["metadata"],
            parent_config=self._config(asked, (*key[:2], stored.parent_id)) if stored.parent_id else None,
            pending_writes=[(w.task_id, w.channel, self._join(w.value)) for w in stored.writes],
        )

    def _join(self, value: Blob | StoredList | Sequence[Chunk] | None) -> Any:
        if isinstance(value, Blob):
            return self.serde.loads_typed(value)
        if isinstance(value, StoredList):
            return pieces.join(value.chunks, self.serde)
        return None if value is None else pieces.join(value, self.serde)

    # Writing

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint; when this returns it is committed, with the messages it brought.

        Raises:
            SessionAccessDenied, SessionExpired: as `get_tuple`.
            UnserializableValue: naming the channel, and where in its value the culprit is.
        """
        visit = self._visits.present(config["configurable"])
        if not visit.admitted:
            visit.is_run = metadata.get("source") != "update"
        key = (visit.session_id, config["configurable"].get("checkpoint_ns", ""), checkpoint["id"])
        parent_id = get_checkpoint_id(config)
        parent = self._parent((*key[:2], parent_id)) if parent_id else None
        try:
            self._put(visit, key, parent_id, parent, config, checkpoint, metadata, new_versions)
        except StaleParent:
            parent = self._parent((*key[:2], parent_id), anew=True) if parent_id else None
            self._put(visit, key, parent_id, parent, config, checkpoint, metadata, new_versions)
        return self._config(config, key)

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        return await self._offload.run(self.put, config, checkpoint, metadata, new_versions)

    def _put(
        self,
        visit: Visit,
        key: Key,
        parent_id: str | None,
        parent: _Known | None,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> None:
        versions = checkpoint["channel_versions"]
        split = _Split(self, parent)
        for name, value in checkpoint["channel_values"].items():
            if name not in new_versions and split.can_inherit(name, versions.get(name)):
                split.inherited.append(name)
            else:
                split.add(name, value)
        body = {
            "checkpoint": {name: value for name, value in checkpoint.items() if name != "channel_values"},
            "metadata": get_checkpoint_metadata(config, metadata),
        }
        channels, refs = self._storage.put_checkpoint(
            CheckpointPut(
                visit=visit,
                checkpoint_ns=key[1],
                checkpoint_id=key[2],
                parent_id=parent_id,
                body=Blob(*self._dumps("metadata", body)),
                source=metadata.get("source"),
                step=metadata.get("step"),
                parent=Parent(parent_id, parent.channels) if parent and parent_id else None,
                inherited=split.inherited,
                values=split.values,
                messages=self._describe_messages(split.messages, key[1]),
            )
        )
        lists = {name: KnownList(ref, split.marks[name]) for name, ref in refs.items()}
        if parent:
            lists.update({name: parent.lists[name] for name in split.inherited if name in parent.lists})
        self._remember(key, _Known(versions.copy(), channels, frozenset(checkpoint["channel_values"]), lists))

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store what a task wrote; its checkpoint may come later."""
        conf = config["configurable"]
        self._storage.put_writes(
            WritesPut(
                self._visits.present(conf),
                conf.get("checkpoint_ns", ""),
                conf["checkpoint_id"],
                task_id,
                task_path,
                [self._write(WRITES_IDX_MAP.get(channel, idx), channel, v) for idx, (channel, v) in enumerate(writes)],
            )
        )

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        await self._offload.run(self.put_writes, config, writes, task_id, task_path)

    def _write(self, idx: int, channel: str, value: Any) -> Write:
        if value is None:
            return Write(idx, channel, None)
        if type(value) is list:
            return Write(idx, channel, self.chunks(channel, value))
        return Write(idx, channel, Blob(*self._dumps(channel, value)))

    def delete_thread(self, thread_id: str) -> None:
        """Delete the session: its checkpoints and writes, its record, and what it remembers."""
        session_id = session_id_of(thread_id)
        self._storage.delete_session(session_id)
        with self._lock:
            for key in [key for key in self._known if key[0] == session_id]:
                del self._known[key]

    async def adelete_thread(self, thread_id: str) -> None:
        await self._offload.run(self.delete_thread, thread_id)

    def get_next_version(self, current: Any, channel: None) -> Any:
        """A count in the upper bits and chance in the lower 24, so that branches do not share versions.

        Goes on in the form it finds: threads from LangGraph's own savers have texts.
        """
        if isinstance(current, str):
            return f"{int(current.split('.')[0]) + 1:032}.{random.random():016}"  # noqa: S311
        return ((int(current or 0) >> 24) + 1 << 24) + random.getrandbits(24)  # noqa: S311

    # Pieces

    def chunks(self, channel: str, elements: Sequence[Any]) -> list[Chunk]:
        try:
            return pieces.chunks(elements, self.serde)
        except Exception as error:
            raise self._culprit(channel, list(elements), error) from error

    def _dumps(self, channel: str, value: Any) -> tuple[str, bytes]:
        try:
            return self.serde.dumps_typed(value)
        except Exception as error:
            raise self._culprit(channel, value, error) from error

    def _culprit(self, channel: str, value: Any, error: Exception) -> Exception:
        path, part = pieces.find_culprit(value, f"state.{channel}", self.serde)
        if isinstance(error, UnserializableValue):
            return UnserializableValue(f"{path}: {error.problem}", advice=error.advice)
        return UnserializableValue(
            f"{path} is a {type(part).__qualname__}, which {type(self.serde).__name__} cannot store ({error})",
            advice="keep it out of the graph's state, or pass a serializer that can with Sessions(..., serde=…)",
        )

    def _parent(self, key: Key, *, anew: bool = False) -> _Known | None:
        """What is known of a stored checkpoint, reading it if need be; ``None`` when it is not there."""
        with self._lock:
            known = self._known.get(key)
        if known is None or anew:
            stored = self._storage.get_checkpoint(*key)
            if stored is None:
                return None
            self._tuple(stored, {})
            with self._lock:
                known = self._known.get(key)
        return known

    def _remember(self, key: Key, known: _Known) -> None:
        with self._lock:
            self._known[key] = known
            self._known.move_to_end(key)
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)

    @staticmethod
    def _config(asked: RunnableConfig, key: tuple[str, str, str | None]) -> RunnableConfig:
        """A config that names a checkpoint and carries on who asked for it."""
        conf = asked.get("configurable", {})
        identity = {name: conf[name] for name in _IDENTITY if name in conf}
        return {"configurable": {"thread_id": key[0], "checkpoint_ns": key[1], "checkpoint_id": key[2], **identity}}


class _Split:
    """The channel values of one put, sorted into what is the parent's and what is new."""

    def __init__(self, saver: SessionSaver, parent: _Known | None) -> None:
        self._saver = saver
        self._parent = parent
        self.inherited: list[str] = []
        self.values: dict[str, Blob | ListPut | None] = {}
        self.marks: dict[str, array[int]] = {}
        self.messages: list[BaseMessage] = []

    def can_inherit(self, name: str, version: Any) -> bool:
        parent = self._parent
        return parent is not None and name in parent.names and version == parent.versions.get(name)

    def add(self, name: str, value: Any) -> None:
        if value is None:
            self.values[name] = None
        elif type(value) is list:
            self._add_list(name, value)
        else:
            self.values[name] = Blob(*self._saver._dumps(name, value))

    def _add_list(self, name: str, value: list[Any]) -> None:
        known = self._parent.lists.get(name) if self._parent else None
        marks = pieces.fingerprints(value)
        old = known.fingerprints if known else array("q")
        keep = pieces.kept(marks, old)
        self.marks[name] = marks
        self.values[name] = ListPut(known and known.ref, keep, self._saver.chunks(name, value[keep:]))
        new = pieces.added(value, marks, old, keep)
        self.messages += [element for element in new if isinstance(element, BaseMessage)]
