"""State in pieces, as it passes between the checkpointer and an engine: opaque bytes and where they belong.

`StoredCheckpoint.values` and a put's values say of each channel what it holds: a `Blob`, a list in
`Chunk`s, or ``None``. A channel that is missing in both has no value, or one that is *replayed*:
made again from the writes of the checkpoint's ancestors, which is how LangGraph's delta channels work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from session_middleware.storage.record_entries import MessageEntry
from session_middleware.storage.run import RunContext


class Blob(NamedTuple):
    """One serialised value: the serializer's type tag, and its bytes."""

    type: str
    data: bytes


class Chunk(NamedTuple):
    """Some successive elements of a list, in one blob: the first `length` of those it holds."""

    blob: Blob
    length: int = 1


class ListRef(NamedTuple):
    """A list as a checkpoint keeps it: the first `length` elements of a stored list.

    `check` is the CRC-32 over the digests of the chunks it is made of, so that a reference that
    leads to other elements than it was made for is found when it is followed.
    """

    list_id: int
    length: int
    check: int


class ListPut(NamedTuple):
    """The list a channel holds now: the first `keep` elements of `base`, then `tail`."""

    base: ListRef | None
    keep: int
    tail: Sequence[Chunk]
    is_parents: bool = True  # `base` is the parent checkpoint's; else it is checked before it is used


class Parent(NamedTuple):
    """What the writer believes the parent checkpoint to be: its id, and its channels as stored."""

    checkpoint_id: str
    channels: str


class Write(NamedTuple):
    idx: int  # negative: one of LangGraph's special writes, which replace; else the first one stays
    channel: str
    value: Blob | Sequence[Chunk] | None  # chunks: the elements of a list


class StoredList(NamedTuple):
    ref: ListRef
    chunks: Sequence[Chunk]
    skipped: int = 0  # elements at the beginning that the reader has already


class StoredWrite(NamedTuple):
    task_id: str
    channel: str
    value: Blob | Sequence[Chunk] | None


class StoredCheckpoint(NamedTuple):
    """A checkpoint as it came from storage, its pieces joined but not deserialised."""

    session_id: str
    checkpoint_ns: str
    checkpoint_id: str
    parent_id: str | None
    body: Blob
    channels: str  # as stored: what a later put passes as `Parent.channels`
    values: dict[str, Blob | StoredList | None]
    writes: Sequence[StoredWrite]  # in LangGraph's ``writes_sort_key`` order

    @property
    def key(self) -> tuple[str, str, str]:
        return self.session_id, self.checkpoint_ns, self.checkpoint_id


class StoredHistory(NamedTuple):
    """What makes a replayed channel's value: a value to begin with, and the writes since, oldest first."""

    has_seed: bool
    seed: Blob | StoredList | None
    writes: Sequence[StoredWrite]


class CheckpointPut(NamedTuple):
    visit: RunContext
    checkpoint_ns: str
    checkpoint_id: str
    parent_id: str | None
    body: Blob  # the checkpoint without its channel values, and its metadata
    source: str | None
    step: int | None
    parent: Parent | None  # given when `inherited` or a `ListPut.base` leans on it
    inherited: Sequence[str]  # channels whose value is the parent's
    values: dict[str, Blob | ListPut | None]  # channels whose value is new
    messages: Sequence[MessageEntry] = ()  # what the record learns from this checkpoint
    preceding: str | None = None  # the id of the message they come after, in the state
    replayed: Sequence[str] = ()  # channels whose value the writes of its ancestors make
    enclosing: Mapping[str, str] = MappingProxyType({})  # the checkpoints it was made under, by namespace
    run_id: str | None = None  # LangGraph's, of the metadata: what `delete_for_runs` goes by


class WritesPut(NamedTuple):
    visit: RunContext
    checkpoint_ns: str
    checkpoint_id: str
    task_id: str
    task_path: str
    writes: Sequence[Write]


class StaleParent(Exception):
    """A put leaned on a parent that is not what the writer believed; nothing was stored.

    Never seen by users: the saver reads the parent afresh and puts again.
    """
