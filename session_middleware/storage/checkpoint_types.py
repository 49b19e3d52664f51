"""Values passed between the checkpointer and an engine: serialised channel values and references to lists.

The value of a channel, in a put and in a stored checkpoint, is a `Blob`, a list in `Chunk`s, or ``None``.
A channel without an entry has no value, or a *replayed* one: the writes of the checkpoint's ancestors
rebuild it. LangGraph's delta channels work so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from session_middleware.storage.record_entries import HistoryEntry, MessageEntry, QuestionEntry
from session_middleware.storage.run import RunContext


class Blob(NamedTuple):
    """One serialised value: the serializer's type tag, and its bytes."""

    type: str
    data: bytes


class Chunk(NamedTuple):
    """Consecutive elements of a list in one blob: the first `length` elements of those in the blob."""

    blob: Blob
    length: int = 1


class ListRef(NamedTuple):
    """A checkpoint's reference to a list: the first `length` elements of a stored list.

    `check` is the CRC-32 of the digests of the list's chunks. It reveals a reference to other elements.
    """

    list_id: int
    length: int
    check: int


class ListPut(NamedTuple):
    """The new value of a list channel: the first `keep` elements of `base`, then `tail`."""

    base: ListRef | None
    keep: int
    tail: Sequence[Chunk]
    is_parents: bool = True  # `base` belongs to the parent checkpoint; any other base is verified before use


class Write(NamedTuple):
    idx: int  # negative for LangGraph's special writes, which replace an earlier one; other writes do not
    channel: str
    value: Blob | Sequence[Chunk] | None  # chunks: the elements of a list


class StoredList(NamedTuple):
    ref: ListRef
    chunks: Sequence[Chunk] | None  # ``None``: left out, because the reader has the list


class StoredWrite(NamedTuple):
    task_id: str
    channel: str
    value: Blob | Sequence[Chunk] | None


class StoredCheckpoint(NamedTuple):
    """A checkpoint read from storage, with its values still serialised."""

    session_id: str
    checkpoint_ns: str
    checkpoint_id: str
    parent_id: str | None
    body: Blob
    channels: str  # as stored: a later put passes them as `parent_channels`
    values: dict[str, Blob | StoredList | None]
    writes: Sequence[StoredWrite]  # in LangGraph's ``writes_sort_key`` order

    @property
    def key(self) -> tuple[str, str, str]:
        return self.session_id, self.checkpoint_ns, self.checkpoint_id


class CheckpointFilter(NamedTuple):
    """Which checkpoints a list contains."""

    session_id: str | None = None
    checkpoint_ns: str | None = None
    checkpoint_id: str | None = None
    before: str | None = None  # only those older than this one
    after: tuple[str, str, str] | None = None  # the key of the last one on the previous page
    owner: Mapping[str, Any] = MappingProxyType({})  # the `user_id` and `group_id` of its session, if they are given


class StoredHistory(NamedTuple):
    """The parts of a replayed channel's value: the seed, and the later writes, oldest first."""

    has_seed: bool
    seed: Blob | StoredList | None
    writes: Sequence[StoredWrite]


class CheckpointPut(NamedTuple):
    context: RunContext
    checkpoint_ns: str
    checkpoint_id: str
    parent_id: str | None
    body: Blob  # the checkpoint without its channel values, and its metadata
    source: str | None
    step: int | None
    parent_channels: str | None  # the parent's channels as stored, if `inherited` or a `ListPut.base` refers to it
    inherited: Sequence[str]  # channels whose value is the parent's
    values: dict[str, Blob | ListPut | None]  # channels whose value is new
    messages: Sequence[MessageEntry] = ()  # the new messages, for the record
    histories: Sequence[HistoryEntry] = ()  # conversations in the state, written to the record before the messages
    preceding: str | None = None  # the id of the message before them in the state
    replayed: Sequence[str] = ()  # channels whose value is rebuilt from the writes of the ancestors
    enclosing: Mapping[str, str] = MappingProxyType({})  # the current checkpoints of the outer graphs, by namespace
    run_id: str | None = None  # from LangGraph's metadata, for `delete_for_runs`


class WritesPut(NamedTuple):
    context: RunContext
    checkpoint_ns: str
    checkpoint_id: str
    task_id: str
    task_path: str
    writes: Sequence[Write]
    questions: Sequence[QuestionEntry] = ()  # that the task asks at an interrupt, for the record


class StaleParent(Exception):
    """The parent of a put has changed since the writer cached it. Nothing was stored.

    The saver reads the parent and puts again, so users never see this error.
    """
