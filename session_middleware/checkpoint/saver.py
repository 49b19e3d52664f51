"""The checkpointer: one object for sync and async, linear in what was said.

A put stores the elements that are new since the parent checkpoint and refers to the rest. What this
process knows of stored lists only saves work: each put makes sure, in its transaction, that the
parent is what was known of it, and else reads it again. So several processes may work on one thread.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, TypeAlias, cast

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

from session_middleware.checkpoint.codec import CheckpointDiff, Codec, gc_paused, is_input, merge_input_lists, replayed
from session_middleware.checkpoint.list_cache import ListCache, ListReader
from session_middleware.checkpoint.listener import CheckpointListener
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
    WritesPut,
)
from session_middleware.storage.executor import StorageExecutor
from session_middleware.storage.protocol import Storage
from session_middleware.storage.run import RunContext

_PAGE = 32  # checkpoints read at a time by `list`
_WIDE_PAGE = 256  # of many namespaces, which have to be looked through for each page
Page: TypeAlias = tuple[list[CheckpointTuple], Key | None]  # and where to go on; None at the end


class SessionSaver(BaseCheckpointSaver[int]):
    """LangGraph's checkpointer contract on `Storage`. Its configs carry the caller's identity on.

    Every method raises `SessionAccessDenied` when the config's session is another user's, and
    `SessionExpired` when it has expired and ``on_resume`` is ``"reject"``; nothing is read then.

    For a config without a thread id LangGraph raises before it calls the saver: ``ValueError`` ("Checkpointer requires
    one or more of the following 'configurable' keys") for a run, ``KeyError`` for `get_state` and `update_state`.
    """

    def __init__(
        self,
        storage: Storage,
        offload: StorageExecutor,
        visits: RunRegistry,
        turns: RunQueue,
        *,
        serde: SerializerProtocol,
        witness: CheckpointListener,
        settle: Callable[[str], None] = lambda _: None,  # what the recorder handed over comes before what follows it
        repairs: Repairs | None = None,
    ) -> None:
        super().__init__(serde=serde)
        self._storage = storage
        self._offload = offload
        self._visits = visits
        self._turns = turns
        self._witness = witness
        self._settle = settle
        self._repairs = repairs
        self._known = CheckpointCache()
        self._kept = ListCache()

    @property
    def _codec(self) -> Codec:
        return Codec(self.serde)  # `with_allowlist` copies the saver and gives it another serializer

    # Reading

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The checkpoint `config` names, or the latest of its thread; ``None`` when there is none.

        Raises:
            StorageError: what is stored is damaged; it says which checkpoint of which session.
        """
        return self._read(config, self._turns.take(self._visits.arrive(config["configurable"])))

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        visit = await self._turns.atake(self._visits.arrive(config["configurable"]))
        return await self._offload.run(self._read, config, visit)

    def _read(self, config: RunnableConfig, visit: RunContext) -> CheckpointTuple | None:
        self._settle(visit.session_id)
        found = self.load(config, visit)
        return self._repairs.before_input(self, config, visit, found) if self._repairs else found

    def load(self, config: RunnableConfig, visit: RunContext) -> CheckpointTuple | None:
        """What `get_tuple` returns, for a visit that has been found."""
        namespace = config["configurable"].get("checkpoint_ns", "")
        shelf = self._kept.shelf(visit.session_id)
        with gc_paused():
            with self._visits.claiming(visit):
                stored = self._storage.read_checkpoint(visit, namespace, get_checkpoint_id(config), shelf.refs())
            if stored is None:
                return None
            if not namespace and visit.started_from is None:  # a run reads the thread's head as well
                visit.started_from = visit.checkpoint_id = stored.checkpoint_id
            found = self._tuple(stored, visit.identity, shelf)
            self._remember(stored, found.checkpoint)
        self._kept.keep(visit.session_id, shelf)
        return found

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """Checkpoints, newest first over all threads and namespaces. Nothing is held open between them."""
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
            page, after = await self._offload.run(self._page, config, filter, before, limit, after)
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
        """The next of those that match, and no more of them than are wanted."""
        wanted = config["configurable"] if config else {}
        visit = self._visits.present(wanted) if config else None
        if visit is not None and self._storage.authorize(visit) is None:
            return [], None
        rest, owner = split_filter(filter)
        size = _PAGE if "checkpoint_ns" in wanted else _WIDE_PAGE
        size = size if limit is None or owner else min(limit, size)
        rows = self._storage.list_checkpoints(
            visit.session_id if visit else None,
            checkpoint_ns=wanted.get("checkpoint_ns"),
            checkpoint_id=get_checkpoint_id(config) if config else None,
            before=get_checkpoint_id(before) if before else None,
            matches=partial(matches, self.serde, rest) if rest else None,
            limit=size,
            after=after,
        )
        identity, shelf = visit.identity if visit else Identity(), ListReader({}, is_snapshot=True)
        theirs = [row for row in rows if not owner or is_of(self._storage.find_session(row.session_id), owner)]
        with gc_paused():
            page = [self._tuple(row, identity, shelf) for row in theirs[:limit]]
        return page, rows[-1].key if len(rows) == size else None

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """What makes each channel's value again, in one read for all of them and all ancestors."""
        if not channels:
            return {}
        visit, codec = self._visits.present(config["configurable"]), self._codec
        if self._storage.authorize(visit) is None:
            return {channel: {"writes": []} for channel in channels}
        namespace = config["configurable"].get("checkpoint_ns", "")
        found = self._storage.get_history(visit.session_id, namespace, get_checkpoint_id(config), channels)
        history: dict[str, DeltaChannelHistory] = {}
        for channel, stored in found.items():
            history[channel] = {"writes": [(w.task_id, w.channel, codec.load(w.value)) for w in stored.writes]}
            if stored.has_seed:
                history[channel]["seed"] = codec.load(stored.seed)
        return history

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        return await self._offload.run(self.get_delta_channel_history, config=config, channels=channels)

    def _tuple(self, stored: StoredCheckpoint, identity: Identity, shelf: ListReader) -> CheckpointTuple:
        codec, key = self._codec, stored.key
        body = codec.load(stored.body)
        values = merge_input_lists(
            {
                name: shelf.load(value, codec.load) if isinstance(value, StoredList) else codec.load(value)
                for name, value in stored.values.items()
            }
        )
        return CheckpointTuple(
            config=config_of(identity, key),
            checkpoint=cast("Checkpoint", {**body["checkpoint"], "channel_values": values}),
            metadata=body["metadata"],
            parent_config=config_of(identity, (*key[:2], stored.parent_id)) if stored.parent_id else None,
            pending_writes=[(w.task_id, w.channel, codec.load(w.value)) for w in stored.writes],
        )

    def _remember(self, stored: StoredCheckpoint, checkpoint: Checkpoint) -> CachedCheckpoint:
        """Keep in mind what a put on top of this checkpoint will ask: a run goes on from what it reads."""
        known = self._known.find(stored.key)
        if known is None or known.channels != stored.channels:
            known = self._codec.known(stored, checkpoint)
        self._known.keep(stored.key, known)
        return known

    def serves_with(self, other: object) -> bool:
        """Whether the two are the same saver, but for what they allow to be read back."""
        return isinstance(other, SessionSaver) and other._storage is self._storage

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
            UnserializableValue: naming the channel, and where in its value the culprit is.
        """
        visit = self._visits.present(config["configurable"])
        visit.puts = True
        if not visit.announced:
            visit.is_run = metadata.get("source") != "update"
        key = (visit.session_id, config["configurable"].get("checkpoint_ns", ""), checkpoint["id"])
        try:
            self._put(visit, key, config, checkpoint, metadata, new_versions)
        except StaleParent:
            self._put(visit, key, config, checkpoint, metadata, new_versions, anew=True)
        return config_of(visit.identity, key)

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        return await self._offload.write(partial(self.put, config, checkpoint, metadata, new_versions))

    def _put(
        self,
        visit: RunContext,
        key: Key,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
        *,
        anew: bool = False,
    ) -> None:
        parent_id, codec = get_checkpoint_id(config), self._codec
        parent = self._parent((*key[:2], parent_id), anew=anew) if parent_id else None
        split = CheckpointDiff(codec, parent, () if anew else self._known.lists(key[0]), is_outermost=not key[1])
        versions = checkpoint["channel_versions"]
        for name, value in checkpoint["channel_values"].items():
            if name in new_versions or not split.inherit(name, versions.get(name)):
                split.add(name, value)
        metadata = own_metadata(config, metadata)
        channels, refs = self._storage.put_checkpoint(
            CheckpointPut(
                visit=visit,
                checkpoint_ns=key[1],
                checkpoint_id=key[2],
                parent_id=parent_id,
                body=codec.dump_body(checkpoint, metadata),
                source=metadata.get("source"),
                step=metadata.get("step"),
                parent=Parent(parent_id, parent.channels) if parent and parent_id else None,
                inherited=split.inherited,
                values=split.values,
                messages=self._witness.brought(visit, key, checkpoint, metadata, split.messages),
                preceding=split.preceding,
                replayed=replayed(checkpoint, metadata),
                enclosing=metadata.get("parents") or {},
                run_id=None if (run_id := metadata.get("run_id")) is None else str(run_id),
            )
        )
        lists = {name: CachedListRef(ref, split.marks[name], is_input(name)) for name, ref in refs.items()}
        if parent:
            lists.update({name: parent.lists[name] for name in split.inherited if name in parent.lists})
        self._known.keep(
            key, CachedCheckpoint(versions.copy(), channels, frozenset((*split.values, *split.inherited)), lists)
        )

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store what a task wrote; its checkpoint may come later."""
        conf, codec = config["configurable"], self._codec
        visit = self._visits.present(conf)
        key = (visit.session_id, conf.get("checkpoint_ns", ""), conf["checkpoint_id"])
        self._witness.wrote(visit, key, writes)
        dumped = [codec.dump_write(place, channel, value) for place, (channel, value) in enumerate(writes)]
        self._storage.put_writes(WritesPut(visit, key[1], key[2], task_id, task_path, dumped))

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        await self._offload.write(partial(self.put_writes, config, writes, task_id, task_path), patient=True)

    def date(self, config: RunnableConfig, moment: datetime | None, *, anew: bool = False) -> None:
        """Record what is written for this thread outside of runs as of `moment`; ``None``: as of now. For importers.

        `anew`: what is written from here on is one visit of the session, which opens or resumes it once.
        """
        configurable = config["configurable"]
        visit = self._visits.arrive({**configurable}) if anew else self._visits.present(configurable)
        visit.at = moment

    def delete_thread(self, thread_id: str) -> None:
        """Delete the session: its checkpoints and writes, its record, and what it remembers."""
        session_id = session_id_of(thread_id)
        self._storage.delete_session(session_id)
        self._visits.forget(session_id)
        self._known.forget(session_id)
        self._kept.forget(session_id)

    async def adelete_thread(self, thread_id: str) -> None:
        await self._offload.run(self.delete_thread, thread_id)

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete the checkpoints and writes of these runs (their metadata's ``run_id``), in every thread at once.

        A checkpoint stays when a delta channel of one that stays is made from its writes.
        """
        self._storage.delete_for_runs([str(run_id) for run_id in run_ids])

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        await self._offload.run(self.delete_for_runs, run_ids)

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Fork a session: the same checkpoints and writes under another id, at the cost of a row each.

        Raises:
            SessionNotFound: there is no such source.
            SessionExists: the target has checkpoints already, or another owner.
        """
        self._storage.copy_session(session_id_of(source_thread_id), session_id_of(target_thread_id))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        await self._offload.run(self.copy_thread, source_thread_id, target_thread_id)

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Keep only the latest checkpoint of each namespace, or (``"delete"``, ``"delete_all"``) delete the sessions.

        Each thread is done whole. Where delta channels are made from writes, the ancestors that have
        them stay too. The record and what the session remembers stay with ``"keep_latest"``.

        Raises:
            UnknownStrategy: nothing was done.
        """
        if strategy == "keep_latest":
            self._storage.prune_checkpoints([session_id_of(thread_id) for thread_id in thread_ids])
        elif strategy in ("delete", "delete_all"):  # in LangGraph's words, and in its server's
            for thread_id in thread_ids:
                self.delete_thread(thread_id)
        else:
            raise UnknownStrategy(strategy)

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        await self._offload.run(self.prune, thread_ids, strategy=strategy)

    def get_next_version(self, current: Any, channel: None) -> Any:
        """A count, and 24 bits of chance so that branches do not share it; LangGraph's texts go on as texts."""
        if isinstance(current, str):
            return f"{int(current.split('.')[0]) + 1:032}.{random.random():016}"  # noqa: S311
        return ((int(current or 0) >> 24) + 1 << 24) + random.getrandbits(24)

    def _parent(self, key: Key, *, anew: bool) -> CachedCheckpoint | None:
        """What is known of a stored checkpoint, reading it if need be; ``None`` when it is not there."""
        known = None if anew else self._known.find(key)
        if known is None and (stored := self._storage.get_checkpoint(*key)) is not None:
            known = self._remember(stored, self._tuple(stored, Identity(), ListReader({})).checkpoint)
        return known
