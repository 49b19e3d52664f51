"""The values and messages of a put that the parent checkpoint does not have.

Lists are compared by fingerprints. A fingerprint is the hash of an element's encoded fields. All elements are encoded
at each put, because a node may change a message in place; all by one call, whose result tells whether the list still
begins like the parent's. Comparing the fields with a copy of them is not faster: ``==`` alone misses ``1`` becoming
``True``, and comparing the types too costs as much as encoding.
"""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from operator import itemgetter
from typing import Any, TypeAlias

from langchain_core.messages import BaseMessage
from langgraph._internal._constants import PREVIOUS
from langgraph.checkpoint.base import ChannelVersions, Checkpoint
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.constants import END, START

from session_middleware.checkpoint.codec import dump, dump_list, input_name, is_input
from session_middleware.checkpoint.langchain_messages import id_of, is_from_assistant, is_from_user, is_message
from session_middleware.checkpoint.packing import MESSAGES, array_header, is_plain, pack, pack_natively
from session_middleware.checkpoint.parent_cache import CachedCheckpoint, CachedListRef, CheckpointCache, Fingerprints
from session_middleware.checkpoint.serde import StrictSerializer
from session_middleware.storage.checkpoint_types import Blob, ListPut, ListRef
from session_middleware.storage.jsonable import is_a

_WHOLE = frozenset({START, END, PREVIOUS, "__root__"})  # channels that hold a graph's whole input or output
_SHORT_INPUT, _SHORT_INPUT_BYTES = 4, 512  # list elements, and bytes, of an input that is stored as one value

# A message, or a dict in OpenAI's format, and the id of the message after it in its list
NewMessage: TypeAlias = tuple[BaseMessage | dict[str, Any], str | None]
NewMessages: TypeAlias = Sequence[NewMessage]


class CheckpointDiff:
    """Sorts the channel values of one put into those inherited from the parent checkpoint and new ones.

    Args:
        serde: Serialises the new values.
        parent: The parent checkpoint, if there is one.
        cache: Has the encoded elements of lists.
        session_id: The session with whose cached lists a new list may share its beginning; ``None``: with no list.
        is_outermost: The checkpoint is the thread's own, and not a subgraph's.
    """

    def __init__(
        self,
        serde: SerializerProtocol,
        parent: CachedCheckpoint | None,
        cache: CheckpointCache,
        session_id: str | None,
        *,
        is_outermost: bool = False,
    ) -> None:
        self._serde = serde
        self._parent = parent
        self._cache = cache
        self._session_id = session_id
        self._is_outermost = is_outermost
        self.inherited: list[str] = []
        self.values: dict[str, Blob | ListPut | None] = {}
        self.fingerprints: dict[str, Fingerprints] = {}  # of each new list
        self.preceding: str | None = None  # the id of the message before the new ones
        self._new: list[tuple[NewMessage, int]] = []  # with their fingerprints
        self._returned: list[tuple[NewMessage, int]] = []  # those in the return value of an entrypoint
        given = parent.lists.get(START) if parent else None
        self._input = given.fingerprints if given else array("q")

    @property
    def messages(self) -> list[NewMessage]:
        """The messages that the parent did not have, each once: an entrypoint often returns those it also saves."""
        if self._returned:
            self._add_messages(self._returned)
            self._returned = []
        return list(map(_message_of, self._new))

    def _add_messages(self, found: Sequence[tuple[NewMessage, int]]) -> None:
        """Add new messages. A message without an id is left out if it equals a message of another channel.

        It is also left out if it equals a message of the input, provided that the input's last message is among the new
        ones. Otherwise the new messages are only the answer, and the input may be a history with an equal answer.
        """
        if not self._new and not self._input:
            self._new += found
            return
        others = Counter(map(_fingerprint_of, self._new))
        if self._input and self._input[-1] in map(_fingerprint_of, found):
            others.update(self._input)
        for new, fingerprint in found:
            if others[fingerprint] and not id_of(new[0]):
                others[fingerprint] -= 1
            else:
                self._new.append((new, fingerprint))

    def add_all(self, checkpoint: Checkpoint, new_versions: ChannelVersions) -> None:
        """Inherit the values of channels whose version the parent has too, and add the others."""
        versions, parent = checkpoint["channel_versions"], self._parent
        for name, value in checkpoint["channel_values"].items():
            if name in new_versions or parent is None or not parent.holds(name, versions.get(name)):
                self._add(name, value)
            else:
                self.inherited.append(name)
                if name == START:
                    self.inherited += filter(is_input, parent.names)

    def _add(self, name: str, value: Any) -> None:
        if value is None:
            self.values[name] = None
        elif type(value) is list:
            self._add_list(name, value)
        elif name == START and type(value) is dict:
            lists = {key: part for key, part in value.items() if type(part) is list and type(key) is str}
            if sum(map(len, lists.values())) <= _SHORT_INPUT:
                self.values[name] = whole = dump(name, value, self._serde)
                lists = lists if len(whole.data) > _SHORT_INPUT_BYTES else {}
            if lists:  # they may be the whole history
                self.values[name] = dump(name, value | dict.fromkeys(lists), self._serde)
                for key, part in lists.items():
                    self._add_list(input_name(key), part)
        else:
            if name in _WHOLE and is_message(value):
                new = [((value, None), fingerprints([value], self._serde)[0])]
                self._returned.extend(new) if name == END else self._add_messages(new)
            self.values[name] = dump(name, value, self._serde)

    def _add_list(self, name: str, value: list[Any]) -> None:
        parent = self._parent.lists.get(name) if self._parent else None
        known = (parent.fingerprints, self._cache.encoded_of(parent)) if parent else ()
        found = self.fingerprints[name] = fingerprints(value, self._serde, *known)
        base, kept = parent, common_prefix_length(found, parent.fingerprints) if parent else 0
        shared = kept
        if not kept:
            base, shared = _longest_prefix(found, self._others)
        tail = dump_list(name, value[shared:], self._serde)
        self.values[name] = ListPut(base.ref if base else None, shared, tail, is_parents=base is parent)
        if not is_input(name):
            self._find_messages(name, value, found, parent, kept)

    @property
    def _others(self) -> Sequence[CachedListRef]:
        """The lists with which a new list may share its beginning."""
        return () if self._session_id is None else self._cache.lists(self._session_id)

    def _find_messages(
        self, name: str, value: list[Any], found: array[int], parent: CachedListRef | None, start: int
    ) -> None:
        """Find the messages of a list that the record does not have. The first `start` elements are the parent's."""
        recorded = parent
        if parent is None and not self._is_outermost:  # a subgraph's first list may repeat a recorded list
            recorded, start = _longest_prefix(found, [each for each in self._others if not each.is_input])
        if self._is_outermost and name in _WHOLE and self._is_of_this_run(name, value, found, parent):
            recorded, start = None, 0
        new = new_elements(value, found, recorded.fingerprints if recorded else array("q"), start)
        messages = _with_following(value, found, start, new)
        if messages:
            self._returned.extend(messages) if name == END else self._add_messages(messages)
        self.preceding = id_of(value[start - 1]) if start and new else self.preceding

    def cached(self, channels: str, refs: Mapping[str, ListRef], versions: ChannelVersions) -> CachedCheckpoint:
        """The checkpoint that was put, from its channels as they are stored and the references of its new lists."""
        lists = {name: CachedListRef(ref, self.fingerprints[name], is_input(name)) for name, ref in refs.items()}
        inherited = self._parent.lists if self._parent else {}
        for name in self.inherited:
            if name in inherited:
                lists[name] = inherited[name]
        return CachedCheckpoint(versions.copy(), channels, frozenset((*self.values, *self.inherited)), lists)

    def _is_of_this_run(self, name: str, value: list[Any], found: array[int], parent: CachedListRef | None) -> bool:
        """Whether a list is only this run's input with its answer, or the last answer again, and not a conversation.

        A conversation also contains the earlier inputs. The input may be one message or its text, not in a list.
        """
        inputs = len(self._input) if name != START and found[: len(self._input)] == self._input else 0
        is_same = parent is not None and found == parent.fingerprints
        is_extended = parent is not None and not is_same and found[: len(parent.fingerprints)] == parent.fingerprints
        if name != START and not (self._input or is_extended) and len(value) > 1 and is_from_user(value[0]):
            inputs = 1
        return (inputs > 0 or is_same) and all(map(is_from_assistant, value[inputs:]))


_message_of, _fingerprint_of = itemgetter(0), itemgetter(1)


def _with_following(value: list[Any], found: array[int], start: int, new: list[Any]) -> list[tuple[NewMessage, int]]:
    """Each new element that is a message, with the id of the message after it and its fingerprint."""
    are_new = set(map(id, new))
    messages: list[tuple[NewMessage, int]] = []
    for index in range(start, len(value)) if new else ():
        if id(value[index]) in are_new and is_message(value[index]):
            following = id_of(value[index + 1]) if index + 1 < len(value) else None
            messages.append(((value[index], following), found[index]))
    return messages


def _longest_prefix(found: array[int], lists: Sequence[CachedListRef]) -> tuple[CachedListRef | None, int]:
    """The list that shares most leading elements, if any, and their number."""
    lengths = [common_prefix_length(found, cached.fingerprints) for cached in lists]
    longest = max(lengths, default=0)
    return (lists[lengths.index(longest)] if longest else None), longest


# Comparing lists


def fingerprints(
    elements: Sequence[Any],
    serde: SerializerProtocol,
    parent: Fingerprints | None = None,
    beginning: bytes | None = None,
) -> Fingerprints:
    """The fingerprints of a list, which often begins like the list that `parent` was computed from.

    `beginning` is the encoded form of that list, if it is cached. Comparing it takes a tenth of the time of hashing.
    Elements are encoded as parts of one flat list: a tuple for each would start the garbage collector at each put.

    A serializer other than LangGraph's may store more of an element, for example whether a sequence is a
    tuple, so its own bytes are hashed.
    """
    inner = serde.serde if isinstance(serde, EncryptedSerializer) else serde
    if not isinstance(inner, JsonPlusSerializer):
        return Fingerprints("q", [_fingerprint(element, serde) for element in elements])
    parts = [
        part
        for element in elements
        for part in (
            (id(type(element)), element.__dict__)
            if type(element) in MESSAGES and not element.__pydantic_extra__
            else _parts(element)
        )
    ]
    try:
        packed = pack_natively(parts)
    except (TypeError, ValueError):
        return Fingerprints("q", list(map(_fingerprint, elements)))
    start = len(array_header(len(parts)))
    is_known = parent is not None and beginning is not None and packed.startswith(beginning, start)
    known = parent if parent is not None and is_known else _NONE
    found, new = Fingerprints("q", known), elements[len(known) :]
    found.extend(map(hash, map(pack_natively, map(_parts, new))))
    found.is_plain = known.is_plain and isinstance(inner, StrictSerializer) and all(map(is_plain, new))
    found.encoded = packed[start:]
    found.size = len(found.encoded)
    return found


_NONE = Fingerprints("q")
_NONE.is_plain = True


def _parts(element: Any) -> tuple[Any, ...]:
    """What is encoded of an element: of a message an equivalent that is faster to encode than its stored form."""
    kind = type(element)
    if kind in MESSAGES and not element.__pydantic_extra__:
        return id(kind), element.__dict__
    if is_a(element, BaseMessage):
        return -id(kind), element.__dict__, element.__pydantic_extra__
    if kind is bytearray or kind is bytes:  # stored with different type tags, but packed alike
        return kind.__name__, element
    return (element,)


def _fingerprint(element: Any, serde: SerializerProtocol | None = None) -> int:
    """The fingerprint of one element, by its serialised form if a serializer is given."""
    try:
        if serde is not None:
            kind, data = serde.dumps_typed(element)
            return hash(kind.encode() + b"\0" + data)
        with suppress(TypeError, ValueError):
            return hash(pack(_parts(element)))
        return hash(pack(element))  # a message with a field that only ``model_dump()`` can encode
    except Exception:  # noqa: BLE001  # storing the element raises the error; here it counts as new
        return random.getrandbits(63)


def common_prefix_length(new: array[int], old: array[int]) -> int:
    """The number of leading elements that the two lists share."""
    length = min(len(new), len(old))
    if new[:length] == old[:length]:
        return length
    return next(index for index in range(length) if new[index] != old[index])


def new_elements(elements: Sequence[Any], new: array[int], old: array[int], start: int) -> list[Any]:
    """The elements from `start` on that are not in the old list, in order.

    An element of the old list that moved is not new. A message without an id is identified by its position
    among the others, so that the same text sent twice is two messages.
    """
    old, new, elements = old[start:], new[start:], elements[start:]
    if not old:
        return list(elements)
    known = set(old)
    without_id = {index for index, element in enumerate(elements) if is_message(element) and not id_of(element)}
    repeated = without_id.difference(_aligned(old, new)) if without_id else without_id
    return [element for index, element in enumerate(elements) if new[index] not in known or index in repeated]


def _aligned(old: array[int], new: array[int]) -> Iterable[int]:
    """The indexes in `new` of the elements of `old`: all of them, its last ones, or a common subsequence."""
    if len(new) > len(old) and new[-len(old) :] == old:
        return range(len(new) - len(old), len(new))
    known = set(old)
    start = next((index for index, fingerprint in enumerate(new) if fingerprint in known), len(new))
    for trimmed, fingerprint in enumerate(old if start < len(new) else ()):
        end = start + len(old) - trimmed
        if fingerprint == new[start] and old[trimmed:] == new[start:end]:
            return range(start, end)
    common: list[int] = []
    position = 0
    for index, fingerprint in enumerate(new):
        with suppress(ValueError):
            position = old.index(fingerprint, position) + 1
            common.append(index)
    return common
