"""The checkpointer: one object for sync and async, linear in what was said.

A put stores the elements that are new since the parent checkpoint and refers to the rest. What this
process knows of stored lists only saves work: each put makes sure, in its transaction, that the
parent is what was known of it, and else reads it again. So several processes may work on one thread.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, TypeAlias, cast

from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
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
from session_middleware.checkpoint.codec import Codec, Split
from session_middleware.checkpoint.known import Key, Known, KnownCheckpoints, KnownList
from session_middleware.lifecycle import session_id_of
from session_middleware.model import Identity
from session_middleware.storage.offload import Offload
from session_middleware.storage.port import (
    CheckpointPut,
    MessageSeen,
    Parent,
    StaleParent,
    Storage,
    StoredCheckpoint,
    StoredList,
    Visit,
    WritesPut,
)
from session_middleware.visits import Visits

_PAGE = 32  # checkpoints read at a time by `list`
DescribeMessages = Callable[[Sequence[BaseMessage], str], list[MessageSeen]]
Page: TypeAlias = tuple[list[CheckpointTuple], Key | None]  # and where to go on; None at the end


class SessionSaver(BaseCheckpointSaver[int]):
    """LangGraph's checkpointer contract on `Storage`. Its configs carry the caller's identity on.

    Every method raises `SessionAccessDenied` when the config's session is another user's, and
    `SessionExpired` when it has expired and ``on_resume`` is ``"reject"``; nothing is read then.
    """

    def __init__(
        self,
        storage: Storage,
        offload: Offload,
        visits: Visits,
        *,
        serde: SerializerProtocol,
        describe_messages: DescribeMessages,
        before_put: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(serde=serde)
        self._storage = storage
        self._offload = offload
        self._visits = visits
        self._describe_messages = describe_messages
        self._before_put = before_put  # what the recorder has handed over comes before the checkpoint it led to
        self._known = KnownCheckpoints()

    @property
    def _codec(self) -> Codec:
        return Codec(self.serde)  # `with_allowlist` copies the saver and gives it another serializer

    # Reading

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The checkpoint `config` names, or the latest of its thread; ``None`` when there is none.

        Raises:
            StorageError: what is stored is damaged; it says which checkpoint of which session.
        """
        return self._read(config, self._visits.arrive(config["configurable"]))

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return await self._offload.run(self._read, config, self._visits.arrive(config["configurable"]))

    def _read(self, config: RunnableConfig, visit: Visit) -> CheckpointTuple | None:
        if self._storage.look(visit) is None:
            return None
        namespace = config["configurable"].get("checkpoint_ns", "")
        stored = self._storage.get_checkpoint(visit.session_id, namespace, get_checkpoint_id(config))
        return None if stored is None else self._tuple(stored, visit.identity)

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """Checkpoints, newest first in each namespace. Nothing is held open between them."""
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
    ) -> Page:
        """Those of the next checkpoints that match."""
        wanted = config["configurable"] if config else {}
        visit = self._visits.present(wanted) if config else None
        if visit is not None and self._storage.look(visit) is None:
            return [], None
        rows = self._storage.list_checkpoints(
            visit.session_id if visit else None,
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
                    found.append(self._tuple(stored, visit.identity if visit else Identity()))
        return found, rows[-1][:3] if len(rows) == _PAGE else None

    def _tuple(self, stored: StoredCheckpoint, identity: Identity) -> CheckpointTuple:
        codec = self._codec
        body = codec.load(stored.body)
        values = {name: codec.load(value) for name, value in stored.values.items()}
        checkpoint = {**body["checkpoint"], "channel_values": values}
        key = (stored.session_id, stored.checkpoint_ns, stored.checkpoint_id)
        known = self._known.find(key)
        if known is None or known.channels != stored.channels:
            lists = {
                name: KnownList(value.ref, pieces.fingerprints(values[name]))
                for name, value in stored.values.items()
                if isinstance(value, StoredList)
            }
            known = Known(checkpoint["channel_versions"].copy(), stored.channels, frozenset(values), lists)
        self._known.keep(key, known)
        return CheckpointTuple(
            config=self._config(identity, key),
            checkpoint=cast("Checkpoint", checkpoint),
            metadata=body["metadata"],
            parent_config=self._config(identity, (*key[:2], stored.parent_id)) if stored.parent_id else None,
            pending_writes=[(w.task_id, w.channel, codec.load(w.value)) for w in stored.writes],
        )

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
        self._before_put()
        visit = self._visits.present(config["configurable"])
        if not visit.announced:
            visit.is_run = metadata.get("source") != "update"
        key = (visit.session_id, config["configurable"].get("checkpoint_ns", ""), checkpoint["id"])
        try:
            self._put(visit, key, config, checkpoint, metadata, new_versions)
        except StaleParent:
            self._put(visit, key, config, checkpoint, metadata, new_versions, anew=True)
        return self._config(visit.identity, key)

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
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
        *,
        anew: bool = False,
    ) -> None:
        parent_id, codec = get_checkpoint_id(config), self._codec
        parent = self._parent((*key[:2], parent_id), anew=anew) if parent_id else None
        split, versions = Split(codec, parent), checkpoint["channel_versions"]
        for name, value in checkpoint["channel_values"].items():
            if name in new_versions or not split.inherit(name, versions.get(name)):
                split.add(name, value)
        rest = {name: value for name, value in checkpoint.items() if name != "channel_values"}
        body = {"checkpoint": rest, "metadata": get_checkpoint_metadata(config, metadata)}
        channels, refs = self._storage.put_checkpoint(
            CheckpointPut(
                visit=visit,
                checkpoint_ns=key[1],
                checkpoint_id=key[2],
                parent_id=parent_id,
                body=codec.dump("(checkpoint)", body),
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
        self._known.keep(key, Known(versions.copy(), channels, frozenset(checkpoint["channel_values"]), lists))

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store what a task wrote; its checkpoint may come later."""
        conf, codec = config["configurable"], self._codec
        self._storage.put_writes(
            WritesPut(
                visit=self._visits.present(conf),
                checkpoint_ns=conf.get("checkpoint_ns", ""),
                checkpoint_id=conf["checkpoint_id"],
                task_id=task_id,
                task_path=task_path,
                writes=[codec.dump_write(place, channel, value) for place, (channel, value) in enumerate(writes)],
            )
        )

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        await self._offload.run(self.put_writes, config, writes, task_id, task_path)

    def delete_thread(self, thread_id: str) -> None:
        """Delete the session: its checkpoints and writes, its record, and what it remembers."""
        session_id = session_id_of(thread_id)
        self._storage.delete_session(session_id)
        self._known.forget(session_id)

    async def adelete_thread(self, thread_id: str) -> None:
        await self._offload.run(self.delete_thread, thread_id)

    def get_next_version(self, current: Any, channel: None) -> Any:
        """A count in the upper bits and chance in the lower 24, so that branches do not share versions.

        Goes on in the form it finds: threads from LangGraph's own savers have texts.
        """
        if isinstance(current, str):
            return f"{int(current.split('.')[0]) + 1:032}.{random.random():016}"  # noqa: S311
        return ((int(current or 0) >> 24) + 1 << 24) + random.getrandbits(24)

    def _parent(self, key: Key, *, anew: bool) -> Known | None:
        """What is known of a stored checkpoint, reading it if need be; ``None`` when it is not there."""
        known = None if anew else self._known.find(key)
        if known is None and (stored := self._storage.get_checkpoint(*key)) is not None:
            self._tuple(stored, Identity())
            known = self._known.find(key)
        return known

    @staticmethod
    def _config(identity: Identity, key: tuple[str, str, str | None]) -> RunnableConfig:
        """A config that names a checkpoint and carries on who asked for it."""
        who = identity.model_dump(exclude_none=True)
        return {"configurable": {"thread_id": key[0], "checkpoint_ns": key[1], "checkpoint_id": key[2], **who}}
