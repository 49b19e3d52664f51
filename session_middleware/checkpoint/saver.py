"""The checkpointer: one object for sync and async calls.

A put stores the list elements that are new since the parent checkpoint, and references to the others.
The parent comes from a cache, and each put compares it with the stored one in its own transaction. If
it has changed, the put reads it and tries again. So several processes can write to one thread.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias, cast

from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
    get_checkpoint_id,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

from session_middleware.checkpoint import codec
from session_middleware.checkpoint.checkpoint_diff import CheckpointDiff, NewMessages, fingerprints
from session_middleware.checkpoint.parent_cache import CachedCheckpoint, CachedListRef, CheckpointCache, Key, PackedList
from session_middleware.checkpoint.repair import Repairs
from session_middleware.errors import SessionError, UnknownStrategy
from session_middleware.lifecycle import session_id_of
from session_middleware.models import Identity
from session_middleware.runtime.run_context import RunRegistry, config_of
from session_middleware.runtime.run_queue import RunQueue
from session_middleware.storage.checkpoint_types import (
    CheckpointFilter,
    CheckpointPut,
    ListRef,
    StaleParent,
    StoredCheckpoint,
    StoredList,
    StoredWrite,
    WritesPut,
)
from session_middleware.storage.executor import StorageExecutor, async_twin
from session_middleware.storage.jsonable import clean
from session_middleware.storage.protocol import Storage
from session_middleware.storage.record_entries import HistoryEntry, MessageEntry, QuestionEntry
from session_middleware.storage.run import RunContext

_PAGE = 32  # checkpoints that `list` reads at a time
_WIDE_PAGE = 256  # the same for all namespaces: each page scans all of them
Page: TypeAlias = list[CheckpointTuple]
Writes: TypeAlias = list[tuple[str, str, Any]]  # task id, channel and value


class CheckpointListener(Protocol):
    """Receives the messages of a checkpointer's puts and writes, for the record."""

    def brought(
        self, context: RunContext, key: Key, checkpoint: Checkpoint, metadata: CheckpointMetadata, new: NewMessages
    ) -> tuple[list[MessageEntry], list[HistoryEntry]]:
        """The record entries for the messages that the parent checkpoint does not have. Never raises.

        The second list has the conversations to be aligned with the record. They are written before the messages.
        """

    def wrote(
        self, context: RunContext, key: Key, writes: Sequence[tuple[str, Any]], *, path: str, outermost_id: str | None
    ) -> Sequence[QuestionEntry] | None:
        """Called before a task's writes are stored; returns the questions among them. Never raises.

        Args:
            path: The task's, as LangGraph passes it to `put_writes`.
            outermost_id: The checkpoint of the outermost graph at that moment.
        """


class SessionSaver(BaseCheckpointSaver[int]):
    """LangGraph's checkpointer contract on `Storage`. The configs it returns carry the caller's identity.

    Every method raises `SessionAccessDenied` if the session belongs to another user, and `SessionExpired` if it
    has expired and ``on_resume`` is ``"reject"``, before it reads anything.

    For a config without a thread id LangGraph raises before it calls the saver: ``ValueError`` ("Checkpointer requires
    one or more of the following 'configurable' keys") for a run, ``KeyError`` for `get_state` and `update_state`.

    Args:
        flush: Writes the entries of a session that the recorder has buffered.
    """

    def __init__(
        self,
        storage: Storage,
        executor: StorageExecutor,
        contexts: RunRegistry,
        queue: RunQueue,
        *,
        serde: SerializerProtocol,
        listener: CheckpointListener,
        flush: Callable[[str], None] = lambda _: None,
        repairs: Repairs | None = None,
    ) -> None:
        self._storage = storage  # the first attribute, so a pickle is refused with the storage's reason
        super().__init__(serde=serde)
        self._offload = executor
        self._contexts = contexts
        self._queue = queue
        self._listener = listener
        self._flush = flush
        self._repairs = repairs
        self._checkpoint_cache = CheckpointCache()

    # Reading

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The checkpoint that `config` names, or the latest of its thread; ``None`` if there is none.

        Raises:
            StorageError: The stored checkpoint is damaged. The message names it and its session.
        """
        return self._read(config, self._queue.acquire(self._contexts.context_for_read(config["configurable"])))

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        context = await self._queue.aacquire(self._contexts.context_for_read(config["configurable"]))
        return await self._offload.run(self._read, config, context)

    def _read(self, config: RunnableConfig, context: RunContext) -> CheckpointTuple | None:
        self._flush(context.session_id)
        found = self.load(config, context)
        return self._repairs.before_input(self, config, context, found) if self._repairs else found

    def load(self, config: RunnableConfig, context: RunContext) -> CheckpointTuple | None:
        """`get_tuple` for a run context that was matched already, without repair."""
        namespace = config["configurable"].get("checkpoint_ns", "")
        checkpoint_id = get_checkpoint_id(config) or None  # an empty one is none, as in LangGraph's savers
        packed = self._checkpoint_cache.packed(context.session_id)
        try:
            stored = self._storage.read_checkpoint(context, namespace, checkpoint_id, packed.keys())
        except SessionError:
            self._contexts.discard(context)
            raise
        if stored is None:
            return None
        if not namespace and context.started_from is None:  # the checkpoint that a run starts from
            context.started_from = stored.checkpoint_id
        found = self._tuple(stored, context.identity, packed)
        self._cache(stored, found.checkpoint)
        return found

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """Checkpoints, newest first over all threads and namespaces. No transaction stays open between them."""
        for page in self._pages(config, filter, before, limit):
            yield from page

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        pages = self._pages(config, filter, before, limit)
        while (page := await self._offload.run(next, pages, None)) is not None:
            for found in page:
                yield found

    def _pages(
        self,
        config: RunnableConfig | None,
        filter: dict[str, Any] | None,
        before: RunnableConfig | None,
        limit: int | None,
    ) -> Iterator[Page]:
        """The matching checkpoints, some at a time, at most `limit`."""
        configurable = config["configurable"] if config else {}
        context = self._contexts.context_for_write(configurable) if config else None
        rest = {**(filter or {})}
        owner: dict[str, Any] = {name: rest.pop(name) for name in ("user_id", "group_id") if name in rest}
        if any(value is not None and (not isinstance(value, str) or clean(value) != value) for value in owner.values()):
            return  # no session has such an owner
        where = CheckpointFilter(
            context.session_id if context else None,
            configurable.get("checkpoint_ns"),
            (get_checkpoint_id(config) or None) if config else None,
            (get_checkpoint_id(before) or None) if before else None,
            owner=owner,
        )
        matches = partial(codec.matches, filter=rest, serde=self.serde) if rest else None
        identity = context.identity if context else Identity()
        most = _PAGE if "checkpoint_ns" in configurable else _WIDE_PAGE
        while limit is None or limit > 0:
            if context is not None and self._storage.authorize(context) is None:
                return
            size = most if limit is None else min(limit, most)
            rows = self._storage.list_checkpoints(where, limit=size, matches=matches)
            listed: dict[int, PackedList] = {}
            yield [self._tuple(row, identity, listed=listed) for row in rows]
            if len(rows) < size:
                return
            where = where._replace(after=rows[-1].key)
            limit = None if limit is None else limit - size

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """The seed and the writes that rebuild each channel's value, in one read for all channels and ancestors."""
        if not channels:
            return {}
        context = self._contexts.context_for_write(config["configurable"])
        if self._storage.authorize(context) is None:
            return {channel: {"writes": []} for channel in channels}
        namespace = config["configurable"].get("checkpoint_ns", "")
        checkpoint_id = get_checkpoint_id(config) or None
        found = self._storage.get_history(context.session_id, namespace, checkpoint_id, channels)
        history: dict[str, DeltaChannelHistory] = {}
        for channel, stored in found.items():
            history[channel] = {"writes": self._load_writes(stored.writes)}
            if stored.has_seed:
                history[channel]["seed"] = codec.load(stored.seed, self.serde)
        return history

    aget_delta_channel_history = async_twin(get_delta_channel_history)

    def _tuple(
        self,
        stored: StoredCheckpoint,
        identity: Identity,
        packed: Mapping[ListRef, PackedList] = MappingProxyType({}),
        listed: dict[int, PackedList] | None = None,
    ) -> CheckpointTuple:
        """A checkpoint that was read.

        Args:
            packed: The lists that the storage did not read.
            listed: By list id, the lists of other checkpoints of the same state of the database.
        """
        key, body = stored.key, codec.load(stored.body, self.serde)
        values: dict[str, Any] = {}
        for name, value in stored.values.items():
            if not isinstance(value, StoredList):
                values[name] = codec.load(value, self.serde)
            elif value.chunks is None:
                values[name] = packed[value.ref].build(value.ref.length)
            elif (
                listed is not None
                and (longer := listed.get(value.ref.list_id))
                and longer.ref.length >= value.ref.length
            ):
                values[name] = longer.build(value.ref.length)
            else:
                values[name] = elements = codec.load(value.chunks, self.serde)
                if listed is not None and (found := fingerprints(elements, self.serde)).is_plain:
                    listed[value.ref.list_id] = PackedList(value.ref, found.encoded or b"", is_plain=True)
        return CheckpointTuple(
            config=config_of(identity, key),
            checkpoint=cast("Checkpoint", {**body["checkpoint"], "channel_values": codec.merge_input_lists(values)}),
            metadata=body["metadata"],
            parent_config=config_of(identity, (*key[:2], stored.parent_id)) if stored.parent_id else None,
            pending_writes=self._load_writes(stored.writes),
        )

    def _load_writes(self, writes: Sequence[StoredWrite]) -> Writes:
        return [(write.task_id, write.channel, codec.load(write.value, self.serde)) for write in writes]

    def _cache(self, stored: StoredCheckpoint, checkpoint: Checkpoint) -> CachedCheckpoint:
        """Cache a checkpoint that was read, because a run's first put builds on the one it read."""
        cached = self._checkpoint_cache.find(stored.key)
        if cached is None or cached.channels != stored.channels:
            values, versions = checkpoint["channel_values"], checkpoint["channel_versions"]
            lists = {
                name: CachedListRef(
                    value.ref, fingerprints(codec.list_of(values, name), self.serde), codec.is_input(name)
                )
                for name, value in stored.values.items()
                if isinstance(value, StoredList)
            }
            cached = CachedCheckpoint(versions.copy(), stored.channels, frozenset(stored.values), lists)
        self._checkpoint_cache.store(stored.key, cached)
        return cached

    def serves_with(self, other: object) -> bool:
        """Whether both savers use one storage. They may differ in the types that they allow to be loaded."""
        return isinstance(other, SessionSaver) and other._storage is self._storage

    # Writing

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint and record its new messages. Both are committed when this returns.

        Raises:
            UnserializableValue: Names the channel, and the part of its value that cannot be stored.
        """
        context = self._contexts.context_for_write(config["configurable"])
        context.has_checkpoint = True
        if not context.state.announced:
            context.is_run = metadata.get("source") != "update"
        return self.store(config, context, checkpoint, metadata, new_versions)

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        return await self._offload.write(partial(self.put, config, checkpoint, metadata, new_versions))

    def store(
        self,
        config: RunnableConfig,
        context: RunContext,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
        *,
        also_new: Sequence[BaseMessage] = (),
        reread_parent: bool = False,
    ) -> RunnableConfig:
        """`put` for a run context that was matched already.

        Args:
            also_new: messages of the graph's input that the record does not have.
        """
        conf = config["configurable"]
        key = context.session_id, conf.get("checkpoint_ns", ""), checkpoint["id"]
        parent_id = get_checkpoint_id(config)
        parent = self._parent((*key[:2], parent_id), reread=reread_parent) if parent_id else None
        session_id = None if reread_parent else key[0]
        diff = CheckpointDiff(self.serde, parent, self._checkpoint_cache, session_id, is_outermost=not key[1])
        diff.add_all(checkpoint, new_versions)
        own = codec.own_metadata(config, metadata)
        versions, values = checkpoint["channel_versions"], checkpoint["channel_values"]
        rest: dict[str, Any] = {**checkpoint}
        del rest["channel_values"]
        # the metadata's counters tell replayed channels from empty ones
        counted = own.get("counters_since_delta_snapshot")
        replayed = [name for name in counted if name in versions and name not in values] if counted else ()
        new = [*diff.messages, *((message, None) for message in also_new)] if also_new else diff.messages
        messages, histories = self._listener.brought(context, key, checkpoint, own, new)
        put = CheckpointPut(
            context=context,
            checkpoint_ns=key[1],
            checkpoint_id=key[2],
            parent_id=parent_id,
            body=codec.dump(codec.BODY, {"checkpoint": rest, "metadata": own}, self.serde),
            source=own.get("source"),
            step=own.get("step"),
            parent_channels=parent.channels if parent else None,
            inherited=diff.inherited,
            values=diff.values,
            messages=messages,
            histories=histories,
            preceding=diff.preceding,
            replayed=replayed,
            enclosing=own.get("parents") or {},
            run_id=None if (run_id := own.get("run_id")) is None else str(run_id),
        )
        try:
            channels, refs = self._storage.put_checkpoint(put)
        except StaleParent:
            if reread_parent:
                raise
            again = partial(self.store, config, context, checkpoint, metadata, new_versions)
            return again(also_new=also_new, reread_parent=True)
        self._checkpoint_cache.store(key, diff.cached(channels, refs, versions))
        return config_of(context.identity, key)

    def _parent(self, key: Key, *, reread: bool) -> CachedCheckpoint | None:
        """The checkpoint that a put builds on, cached or read; ``None`` if it is not stored."""
        cached = None if reread else self._checkpoint_cache.find(key)
        if cached is not None or (stored := self._storage.get_checkpoint(*key)) is None:
            return cached
        return self._cache(stored, self._tuple(stored, Identity()).checkpoint)

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store a task's writes. The checkpoint they belong to may be stored later."""
        conf = config["configurable"]
        context = self._contexts.context_for_write(conf)
        key = (context.session_id, conf.get("checkpoint_ns", ""), conf["checkpoint_id"])
        outermost_id = key[2] if not key[1] else conf.get("checkpoint_map", {}).get("")
        questions = self._listener.wrote(context, key, writes, path=task_path, outermost_id=outermost_id)
        dumped = [codec.dump_write(index, *write, self.serde) for index, write in enumerate(writes)]
        self._storage.put_writes(WritesPut(context, key[1], key[2], task_id, task_path, dumped, questions or ()))

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        await self._offload.write(partial(self.put_writes, config, writes, task_id, task_path), patient=True)

    def date(self, config: RunnableConfig, moment: datetime | None, *, anew: bool = False) -> None:
        """Set the time that later writes to this thread outside of runs are recorded with. For importers.

        Args:
            config: Names the thread.
            moment: The time, or ``None`` for the current time of each write.
            anew: Begin a new run context, so that the later writes open or resume the session once.
        """
        configurable = config["configurable"]
        find = self._contexts.context_for_read if anew else self._contexts.context_for_write
        find({**configurable}).at = moment

    def delete_thread(self, thread_id: str) -> None:
        """Delete the session: its checkpoints and writes, its record and its memories."""
        session_id = session_id_of(thread_id)
        self._storage.delete_session(session_id)
        self._contexts.forget(session_id)
        self._checkpoint_cache.forget(session_id)

    adelete_thread = async_twin(delete_thread)

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete the checkpoints and writes of these runs (by ``run_id`` in their metadata), in all threads at once.

        A checkpoint is not deleted if a delta channel of a remaining one is rebuilt from its writes.
        """
        self._storage.delete_for_runs([str(each) for each in ([run_ids] if isinstance(run_ids, str) else run_ids)])

    adelete_for_runs = async_twin(delete_for_runs)

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Fork a session: the same checkpoints and writes under another id. Each costs one row.

        Raises:
            SessionNotFound: The source does not exist.
            SessionExists: The target has checkpoints already, or another owner.
        """
        self._storage.fork_session(session_id_of(source_thread_id), session_id_of(target_thread_id))

    acopy_thread = async_twin(copy_thread)

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Delete all but the latest checkpoint of each namespace, or the sessions (``"delete"``, ``"delete_all"``).

        A thread is pruned in one transaction, which some threads share. Ancestors from whose writes delta channels are
        rebuilt are not deleted. With ``"keep_latest"`` the record and the session's memories remain.

        Raises:
            UnknownStrategy: Before anything is deleted.
        """
        session_ids = [session_id_of(each) for each in ([thread_ids] if isinstance(thread_ids, str) else thread_ids)]
        if strategy == "keep_latest":
            self._storage.prune_checkpoints(session_ids)
        elif strategy in ("delete", "delete_all"):  # the names in LangGraph and in its server
            for session_id in session_ids:
                self.delete_thread(session_id)
        else:
            raise UnknownStrategy(strategy)

    aprune = async_twin(prune)

    def get_next_version(self, current: Any, channel: None) -> Any:
        """A counter with 24 random bits, so that branches differ. A text version, as LangGraph has it, stays a text."""
        if isinstance(current, str):
            return f"{int(current.split('.')[0]) + 1:032}.{random.random():016}"  # noqa: S311
        return ((int(current or 0) >> 24) + 1 << 24) + random.getrandbits(24)
