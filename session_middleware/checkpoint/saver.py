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
from typing import Any, Protocol, TypeAlias, cast

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

from session_middleware.checkpoint.codec import CheckpointDiff, Codec, NewMessage, is_input, merge_input_lists, replayed
from session_middleware.checkpoint.list_cache import ListCache, ListReader
from session_middleware.checkpoint.metadata import is_of, matches, own_metadata, split_filter
from session_middleware.checkpoint.parent_cache import CachedCheckpoint, CachedListRef, CheckpointCache, Key
from session_middleware.checkpoint.repair import Repairs
from session_middleware.errors import UnknownStrategy
from session_middleware.lifecycle import session_id_of
from session_middleware.models import Identity
from session_middleware.runtime.run_context import RunRegistry, config_of
from session_middleware.runtime.run_queue import RunQueue
from session_middleware.storage.checkpoint_types import (
    CheckpointPut,
    Parent,
    StaleParent,
    StoredCheckpoint,
    StoredList,
    StoredWrite,
    WritesPut,
)
from session_middleware.storage.executor import StorageExecutor
from session_middleware.storage.protocol import Storage
from session_middleware.storage.record_entries import MessageEntry
from session_middleware.storage.run import RunContext

_PAGE = 32  # checkpoints that `list` reads at a time
_WIDE_PAGE = 256  # the same for all namespaces: each page scans all of them
Page: TypeAlias = tuple[list[CheckpointTuple], Key | None]  # the key after which the next page begins, if any


class CheckpointListener(Protocol):
    """Receives the messages of a checkpointer's puts and writes, for the record."""

    def brought(
        self,
        context: RunContext,
        key: Key,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new: Sequence[NewMessage],
    ) -> list[MessageEntry]:
        """The record entries for the messages that the parent checkpoint does not have. Never raises."""

    def wrote(self, context: RunContext, key: Key, writes: Sequence[tuple[str, Any]]) -> None:
        """Called before a task's writes are stored. Never raises."""


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
        super().__init__(serde=serde)
        self._storage = storage
        self._executor = executor
        self._contexts = contexts
        self._queue = queue
        self._listener = listener
        self._flush = flush
        self._repairs = repairs
        self._checkpoint_cache = CheckpointCache()
        self._list_cache = ListCache()

    @property
    def _codec(self) -> Codec:
        return Codec(self.serde)  # `with_allowlist` copies the saver and gives it another serializer

    # Reading

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The checkpoint that `config` names, or the latest of its thread; ``None`` if there is none.

        Raises:
            StorageError: The stored checkpoint is damaged. The message names it and its session.
        """
        return self._read(config, self._queue.acquire(self._contexts.context_for_read(config["configurable"])))

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        context = await self._queue.aacquire(self._contexts.context_for_read(config["configurable"]))
        return await self._executor.run(self._read, config, context)

    def _read(self, config: RunnableConfig, context: RunContext) -> CheckpointTuple | None:
        self._flush(context.session_id)
        found = self.load(config, context)
        return self._repairs.before_input(self, config, context, found) if self._repairs else found

    def load(self, config: RunnableConfig, context: RunContext) -> CheckpointTuple | None:
        """`get_tuple` for a run context that was matched already, without repair."""
        namespace = config["configurable"].get("checkpoint_ns", "")
        reader = self._list_cache.reader(context.session_id)
        with self._contexts.discard_if_refused(context):
            stored = self._storage.read_checkpoint(context, namespace, get_checkpoint_id(config), reader.refs())
        if stored is None:
            return None
        if not namespace and context.started_from is None:  # the checkpoint that a run starts from
            context.started_from = context.checkpoint_id = stored.checkpoint_id
        found = self._tuple(stored, context.identity, reader)
        self._cache(stored, found.checkpoint)
        self._list_cache.store(context.session_id, reader)
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
        after: Key | None = None
        while limit is None or limit > 0:
            page, after = self._page(config, filter, before, limit, after)
            yield from page
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
            page, after = await self._executor.run(self._page, config, filter, before, limit, after)
            for found in page:
                yield found
            limit = None if limit is None else limit - len(page)
            if after is None:
                return

    def _page(
        self,
        config: RunnableConfig | None,
        filter: dict[str, Any] | None,
        before: RunnableConfig | None,
        limit: int | None,
        after: Key | None,
    ) -> Page:
        """The next page of matching checkpoints, at most `limit`."""
        configurable = config["configurable"] if config else {}
        context = self._contexts.context_for_write(configurable) if config else None
        if context is not None and self._storage.authorize(context) is None:
            return [], None
        rest, owner = split_filter(filter)
        size = _PAGE if "checkpoint_ns" in configurable else _WIDE_PAGE
        size = size if limit is None or owner else min(limit, size)
        rows = self._storage.list_checkpoints(
            context.session_id if context else None,
            checkpoint_ns=configurable.get("checkpoint_ns"),
            checkpoint_id=get_checkpoint_id(config) if config else None,
            before=get_checkpoint_id(before) if before else None,
            matches=partial(matches, self.serde, rest) if rest else None,
            limit=size,
            after=after,
        )
        identity, reader = context.identity if context else Identity(), ListReader({}, is_snapshot=True)
        owned = [row for row in rows if not owner or is_of(self._storage.find_session(row.session_id), owner)]
        page = [self._tuple(row, identity, reader) for row in owned[:limit]]
        return page, rows[-1].key if len(rows) == size else None

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """The seed and the writes that rebuild each channel's value, in one read for all channels and ancestors."""
        if not channels:
            return {}
        context, codec = self._contexts.context_for_write(config["configurable"]), self._codec
        if self._storage.authorize(context) is None:
            return {channel: {"writes": []} for channel in channels}
        namespace = config["configurable"].get("checkpoint_ns", "")
        found = self._storage.get_history(context.session_id, namespace, get_checkpoint_id(config), channels)
        history: dict[str, DeltaChannelHistory] = {}
        for channel, stored in found.items():
            history[channel] = {"writes": _load_writes(codec, stored.writes)}
            if stored.has_seed:
                history[channel]["seed"] = codec.load(stored.seed)
        return history

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        return await self._executor.run(self.get_delta_channel_history, config=config, channels=channels)

    def _tuple(self, stored: StoredCheckpoint, identity: Identity, reader: ListReader) -> CheckpointTuple:
        codec, key = self._codec, stored.key
        body = codec.load(stored.body)
        values = merge_input_lists(
            {
                name: reader.load(value, codec.load) if isinstance(value, StoredList) else codec.load(value)
                for name, value in stored.values.items()
            }
        )
        return CheckpointTuple(
            config=config_of(identity, key),
            checkpoint=cast("Checkpoint", {**body["checkpoint"], "channel_values": values}),
            metadata=body["metadata"],
            parent_config=config_of(identity, (*key[:2], stored.parent_id)) if stored.parent_id else None,
            pending_writes=_load_writes(codec, stored.writes),
        )

    def _cache(self, stored: StoredCheckpoint, checkpoint: Checkpoint) -> CachedCheckpoint:
        """Cache a checkpoint that was read, because a run's first put builds on the one it read."""
        cached = self._checkpoint_cache.find(stored.key)
        if cached is None or cached.channels != stored.channels:
            cached = self._codec.cached(stored, checkpoint)
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
        context.puts = True
        if not context.announced:
            context.is_run = metadata.get("source") != "update"
        return self.store(config, context, checkpoint, metadata, new_versions)

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        return await self._executor.write(partial(self.put, config, checkpoint, metadata, new_versions))

    def store(
        self,
        config: RunnableConfig,
        context: RunContext,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
        *,
        reread_parent: bool = False,
    ) -> RunnableConfig:
        """`put` for a run context that was matched already."""
        key = (context.session_id, config["configurable"].get("checkpoint_ns", ""), checkpoint["id"])
        parent_id, codec = get_checkpoint_id(config), self._codec
        parent = self._parent((*key[:2], parent_id), reread=reread_parent) if parent_id else None
        others = () if reread_parent else self._checkpoint_cache.lists(key[0])
        diff = CheckpointDiff(codec, parent, others, is_outermost=not key[1])
        versions = checkpoint["channel_versions"]
        for name, value in checkpoint["channel_values"].items():
            if name in new_versions or not diff.inherit(name, versions.get(name)):
                diff.add(name, value)
        own = own_metadata(config, metadata)
        put = CheckpointPut(
            context=context,
            checkpoint_ns=key[1],
            checkpoint_id=key[2],
            parent_id=parent_id,
            body=codec.dump_body(checkpoint, own),
            source=own.get("source"),
            step=own.get("step"),
            parent=Parent(parent_id, parent.channels) if parent and parent_id else None,
            inherited=diff.inherited,
            values=diff.values,
            messages=self._listener.brought(context, key, checkpoint, own, diff.messages),
            preceding=diff.preceding,
            replayed=replayed(checkpoint, own),
            enclosing=own.get("parents") or {},
            run_id=None if (run_id := own.get("run_id")) is None else str(run_id),
        )
        try:
            channels, refs = self._storage.put_checkpoint(put)
        except StaleParent:
            if reread_parent:
                raise
            return self.store(config, context, checkpoint, metadata, new_versions, reread_parent=True)
        lists = {name: CachedListRef(ref, diff.fingerprints[name], is_input(name)) for name, ref in refs.items()}
        if parent:
            lists.update({name: parent.lists[name] for name in diff.inherited if name in parent.lists})
        self._checkpoint_cache.store(
            key, CachedCheckpoint(versions.copy(), channels, frozenset((*diff.values, *diff.inherited)), lists)
        )
        return config_of(context.identity, key)

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store a task's writes. The checkpoint they belong to may be stored later."""
        conf, codec = config["configurable"], self._codec
        context = self._contexts.context_for_write(conf)
        key = (context.session_id, conf.get("checkpoint_ns", ""), conf["checkpoint_id"])
        self._listener.wrote(context, key, writes)
        dumped = [codec.dump_write(index, channel, value) for index, (channel, value) in enumerate(writes)]
        self._storage.put_writes(WritesPut(context, key[1], key[2], task_id, task_path, dumped))

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        await self._executor.write(partial(self.put_writes, config, writes, task_id, task_path), patient=True)

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
        self._list_cache.forget(session_id)

    async def adelete_thread(self, thread_id: str) -> None:
        await self._executor.run(self.delete_thread, thread_id)

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete the checkpoints and writes of these runs (by ``run_id`` in their metadata), in all threads at once.

        A checkpoint is not deleted if a delta channel of a remaining one is rebuilt from its writes.
        """
        self._storage.delete_for_runs([str(each) for each in ([run_ids] if isinstance(run_ids, str) else run_ids)])

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        await self._executor.run(self.delete_for_runs, run_ids)

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Fork a session: the same checkpoints and writes under another id. Each costs one row.

        Raises:
            SessionNotFound: The source does not exist.
            SessionExists: The target has checkpoints already, or another owner.
        """
        self._storage.copy_session(session_id_of(source_thread_id), session_id_of(target_thread_id))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        await self._executor.run(self.copy_thread, source_thread_id, target_thread_id)

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Delete all but the latest checkpoint of each namespace, or the sessions (``"delete"``, ``"delete_all"``).

        Each thread is pruned in one transaction. Ancestors from whose writes delta channels are rebuilt are not
        deleted. With ``"keep_latest"`` the record and the session's memories remain.

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

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        await self._executor.run(self.prune, thread_ids, strategy=strategy)

    def get_next_version(self, current: Any, channel: None) -> Any:
        """A counter with 24 random bits, so that branches differ. A text version, as LangGraph has it, stays a text."""
        if isinstance(current, str):
            return f"{int(current.split('.')[0]) + 1:032}.{random.random():016}"  # noqa: S311
        return ((int(current or 0) >> 24) + 1 << 24) + random.getrandbits(24)

    def _parent(self, key: Key, *, reread: bool) -> CachedCheckpoint | None:
        """The cache entry of a stored checkpoint, which is read if necessary; ``None`` if it does not exist."""
        cached = None if reread else self._checkpoint_cache.find(key)
        if cached is None and (stored := self._storage.get_checkpoint(*key)) is not None:
            cached = self._cache(stored, self._tuple(stored, Identity(), ListReader({})).checkpoint)
        return cached


def _load_writes(codec: Codec, writes: Sequence[StoredWrite]) -> list[tuple[str, str, Any]]:
    return [(write.task_id, write.channel, codec.load(write.value)) for write in writes]
