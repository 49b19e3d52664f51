"""Alignment of a given conversation with the recorded messages of its branch.

Messages of hand-written loops have no ids, and a loop passes the whole history again and again. So the two
conversations are compared by role and content, in order. The result names the recorded message that each
given one is, and where the conversation branches off. Pure functions.

Each `align_…` function serves one source of conversations; `diff_history` serves the histories of loops.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from difflib import SequenceMatcher
from itertools import takewhile
from operator import eq
from typing import Any, TypeAlias

from session_middleware.storage.record_entries import Alignment, ComparableMessage

Conversation: TypeAlias = Sequence[ComparableMessage]

_SYSTEM, _USER = "system", "user"
_LONGEST_MARK = 80  # characters of a mark at the end of a shortened text
_DIGITS = re.compile(r"\d+")
_MARK = re.compile(r"\s*(\[[^\[\]]*\]|\([^()]*\)|<[^<>]*>|[^\w\s]+|)\s*\Z")


def _role(message: ComparableMessage) -> str:
    return str(message.words[0])


def _text(message: ComparableMessage) -> str:
    return str(message.words[1])


def _requests(message: ComparableMessage) -> tuple[Any, ...]:
    return message.words[3:4]  # its tool calls, as JSON


# Histories of loops


def diff_history(recorded: Conversation, given: Conversation) -> Alignment:
    """Align a history that a loop gives.

    - A history that begins with the end of the recorded one, masked or not, and continues with one turn adds
      that turn. A single turn that has nothing in common with the recorded history is added, too.
    - Any other history is compared message by message. Messages left out at the front or anywhere else change
      nothing after them.
    - A message in the place of one with the same role is an edit of it, if no later recorded message is dropped.
      Otherwise the history is another branch.
    - System messages are compared with each other only, because a loop may rebuild them for each call.
    """
    return _align_parts(recorded, given, _align_history)


def _align_parts(
    recorded: Conversation, given: Conversation, align_spoken: Callable[[Conversation, Conversation], Alignment]
) -> Alignment:
    """Align the system messages, and all others with `align_spoken`."""
    old, new = (
        [place for place, message in enumerate(conversation) if _role(message) != _SYSTEM]
        for conversation in (recorded, given)
    )
    spoken = align_spoken([recorded[place] for place in old], [given[place] for place in new])
    ids: list[str | None] = [None] * len(given)
    for place, known in zip(new, spoken.ids, strict=True):
        ids[place] = known
    branch_after = None if spoken.branch_after is None else old[spoken.branch_after]
    _align_instructions(recorded[:branch_after], given, ids)
    return Alignment(ids, branch_after)


def _align_history(old: Conversation, new: Conversation) -> Alignment:
    if overlap := _overlap(old, new):
        known = (message.message_id for message in old[len(old) - overlap :])
        return Alignment([*known, *[None] * (len(new) - overlap)])
    if _is_next_turn(old, new):
        return Alignment([None] * len(new))
    return _align_spoken(old, new)


def _overlap(old: Conversation, new: Conversation) -> int:
    """Return how many messages at the end of the old conversation begin the new one, with at most one turn after."""
    inputs = [place for place, message in enumerate(new) if _role(message) == _USER]
    counts = Counter(message.words for message in old)
    stems = _stems(new)
    for length in range(min(len(old), len(new)), max([*inputs[-2:-1], 0]), -1):
        pairs = list(zip(old[len(old) - length :], new, stems, strict=False))
        if _is_same_stretch(pairs, counts, length == len(old) < len(new), length == len(new)):
            return length
    return 0


def _stems(new: Conversation) -> list[str]:
    """Return each text without a mark such as "…" or "[masked]" at its end. The stem of a repeated text is empty."""
    counts = Counter(map(_text, new))
    marks = ((text, _MARK.search(text[-_LONGEST_MARK:])) for text in map(_text, new))
    return ["" if counts[text] > 1 else text[: len(text) - len(mark[0])] if mark else text for text, mark in marks]


def _is_same_stretch(
    pairs: Sequence[tuple[ComparableMessage, ComparableMessage, str]],
    counts: Counter[Any],
    continues: bool,
    is_whole: bool,
) -> bool:
    """Return whether each new message is the recorded one: equal, masked, shortened or similar.

    Texts that are only similar need a proof: a masked message, an equal message that was recorded once, or a
    new conversation that `continues` after all recorded messages. If it continues after an equal message, any
    text before that may be an edit. The last message of the `is_whole` new conversation is no edit if only its
    numbers differ.
    """
    other: list[tuple[ComparableMessage, ComparableMessage]] = []
    is_proven = continues or len(pairs) == 1
    for was, now, stem in pairs:
        if now.is_same_as(was):
            is_proven = is_proven or counts[was.words] == 1
        elif now.message_id is not None or not _may_be_edit(was, now):
            return False
        elif _text(was).startswith(stem) and _requests_same_tools(was, now):
            is_proven = True
        else:
            other.append((was, now))
    last, now, _ = pairs[-1]
    is_numbered = _DIGITS.sub("", _text(last)) == _DIGITS.sub("", _text(now))  # like items of a series
    is_next = is_whole and other[-1:] == [(last, now)] and _role(now) != _USER and is_numbered
    if other and (is_next or not is_proven):
        return False
    is_anchored = continues and now.is_same_as(last) and counts[last.words] == 1
    return is_anchored or all(_is_similar(was, now) for was, now in other)


def _requests_same_tools(was: ComparableMessage, now: ComparableMessage) -> bool:
    """Return whether two messages request the same tools under the same ids; the arguments may be masked."""
    old, new = _requests(was), _requests(now)
    return old == new or (any(old) and any(new) and _call_names(old[0]) == _call_names(new[0]))


def _call_names(requests: str) -> list[tuple[Any, Any]]:
    try:
        return [(call.get("id"), call.get("name")) for call in json.loads(requests)]
    except (AttributeError, TypeError, ValueError):  # damaged, or masked completely
        return []


def _is_next_turn(old: Conversation, new: Conversation) -> bool:
    """Return whether the new conversation is a turn, or a part of one, without a sign that it is recorded."""
    ids = {message.message_id for message in old}
    if not old or not new or any(message.message_id in ids for message in new if message.message_id is not None):
        return False
    if sum(_role(message) == _USER for message in new) > 1:
        return False
    last_role = _role(old[-1])
    if _role(new[0]) != last_role and (len(new) == 1 or last_role == _USER):
        return True
    if len(old) == 1 < len(new):
        return False
    was, now = (Counter(message.words for message in conversation) for conversation in (old, new))
    if sum(_role(message) == _USER for message in old) == 1 and new[0].is_same_as(old[0]):  # a repeated input
        del now[new[0].words]
    return not any(was[words] == count == 1 for words, count in now.items())


# Comparison message by message


def _align_spoken(old: Conversation, new: Conversation) -> Alignment:
    known: dict[int, int] = {}  # places in the old conversation, by those in the new one
    branch = None
    *gaps, (rest, more) = _gaps(old, new)
    for was, now in gaps:
        edits = _edits(old, new, was, now)
        is_own = any(place not in edits or not _is_similar(old[edits[place]], new[place]) for place in now)
        if branch is None and was and is_own:  # new messages replace old ones without being edits of them
            branch = was.start
        known |= edits
    if rest and more and _are_edits([old[at] for at in rest], [new[place] for place in more]):
        known |= dict(zip(more, rest, strict=False))
        branch = None
    elif not rest:
        branch = None
    elif branch is None and more:  # equal messages after a stretch that has nothing in common are equal by chance
        branch = rest.start
    start, first = 0, 0
    for was, now in (*gaps, (rest, more)):  # the equal messages before each gap
        known |= dict(zip(range(first, now.start), range(start, was.start), strict=True))
        start, first = was.stop, now.stop
    places = (known.get(place) for place in range(len(new)))
    return Alignment(
        [None if at is None or (branch is not None and at >= branch) else old[at].message_id for at in places], branch
    )


def _gaps(old: Conversation, new: Conversation) -> Iterator[tuple[range, range]]:
    """Yield the places at which the conversations differ. The last gap follows all equal messages; it may be empty.

    Messages that occur once are matched first. Otherwise a repeated message, such as the result of a polling tool,
    would align unrelated stretches.
    """
    common = min(len(old), len(new))
    shared = next((n for n in range(common) if not new[n].is_same_as(old[n])), common)
    ids = {message.message_id for message in old[shared:]} & {message.message_id for message in new[shared:]}
    was: list[Any] = [message.message_id if message.message_id in ids else message.words for message in old]
    now: list[Any] = [message.words if message.message_id is None else message.message_id for message in new]
    repeated = {key for keys in (was, now) for key, count in Counter(keys).items() if count > 1}
    start, first = shared, shared
    matcher = SequenceMatcher(repeated.__contains__, was[shared:], now[shared:], autojunk=False)
    for at, place, length in matcher.get_matching_blocks():
        if length:
            yield range(start, shared + at), range(first, shared + place)
            start, first = shared + at + length, shared + place + length
    yield range(start, len(old)), range(first, len(new))


def _edits(old: Conversation, new: Conversation, was: range, now: range) -> dict[int, int]:
    """Return the messages that replace others in a gap: their places in the old conversation, by those in the new."""
    if len(was) == len(now) and all(_may_be_edit(old[at], new[place]) for at, place in zip(was, now, strict=True)):
        return dict(zip(now, was, strict=True))
    found: dict[int, int] = {}
    start = was.start
    for place in now:
        at = next((at for at in range(start, was.stop) if _is_similar_edit(old[at], new[place])), None)
        if at is not None:
            found[place], start = at, at + 1
    return found


def _align_instructions(recorded: Conversation, given: Conversation, ids: list[str | None]) -> None:
    """Fill in the ids of system messages: of an equal recorded one, a similar one, or one in the same place."""
    old = [place for place, message in enumerate(recorded) if _role(message) == _SYSTEM]
    new = [place for place, message in enumerate(given) if _role(message) == _SYSTEM]
    if not old or not new:
        return
    spoken = [None if _role(message) == _SYSTEM else message.message_id for message in recorded]
    criteria: Sequence[Callable[[int, int], bool]] = (
        lambda at, place: given[place].is_same_as(recorded[at]),
        lambda at, place: given[place].message_id is None and _is_similar(recorded[at], given[place]),
        lambda at, place: given[place].message_id is None and _first(spoken[at:]) == successors[place],
    )
    successors = {place: _first(ids[place:]) for place in new}
    for matches in criteria:
        for place in [place for place in new if ids[place] is None]:
            if (at := next((at for at in old if matches(at, place)), None)) is not None:
                ids[place] = recorded[at].message_id
                old.remove(at)


def _first(ids: Sequence[str | None]) -> str | None:
    return next(filter(None, ids), None)


def _are_edits(rest: Conversation, more: Conversation) -> bool:
    """Return whether new messages at the end are edits of the recorded ones: of a single one, or all similar."""
    if len(rest) == 1:
        return _may_be_edit(rest[0], more[0])
    return len(rest) <= len(more) and all(map(_is_similar_edit, rest, more))


def _is_similar_edit(old: ComparableMessage, new: ComparableMessage) -> bool:
    return _may_be_edit(old, new) and _is_similar(old, new)


def _may_be_edit(old: ComparableMessage, new: ComparableMessage) -> bool:
    """Return whether two messages have the same role and answer the same tool call."""
    return _role(old) == _role(new) and old.words[4:] == new.words[4:]


def _is_similar(old: ComparableMessage, new: ComparableMessage) -> bool:
    """Return whether at least half of the new text is in the old one, as after masking or with another date."""
    was, now = _text(old), _text(new)
    if _role(old) == "tool" and any(old.words[4:]):
        return True
    if not now or _requests(old) != _requests(new):  # messages with different requests are different messages
        return False
    front = sum(takewhile(bool, map(eq, was, now)))
    back = sum(takewhile(bool, map(eq, reversed(was[front:]), reversed(now[front:]))))
    if 2 * (front + back) >= len(now):
        return True
    words = now.split()
    return 2 * (Counter(was.split()) & Counter(words)).total() > len(words)


# Prompts, inputs and states


def align_prompt(recorded: Conversation, given: Conversation, *, run_id: str | None) -> Alignment:
    """Align the prompt of a model. An application may build it anew for each call, so it begins no branch.

    Unknown messages are added. An input that an earlier run has answered is a new one.
    """
    return _repeat_input(recorded, _align_all(recorded, given), given, run_id)


def _align_all(recorded: Conversation, given: Conversation) -> Alignment:
    """Align without a branch; the last message is no edit."""
    found = _align_parts(recorded, given, _align_spoken)
    old = {message.message_id: message for message in recorded}
    ids = []
    for place, (known, message) in enumerate(zip(found.ids, given, strict=True)):
        is_last = place == len(given) - 1
        is_known = known is not None and (
            old[known].words == message.words or (not is_last and _is_similar(old[known], message))
        )
        ids.append(known if is_known else None)
    return Alignment(ids)


def align_input(recorded: Conversation, given: Conversation, *, run_id: str | None) -> Alignment:
    """Align the input of a graph without a checkpointer, as `align_prompt`.

    The caller may leave out messages that are not displayed, such as tool results, or add instructions at the
    front. So the two conversations may differ anywhere; their common messages are in the same order.
    """
    common_ids = {message.message_id for message in recorded} & {message.message_id for message in given}
    old, new = (
        [message.message_id if message.message_id in common_ids else _content(message) for message in conversation]
        for conversation in (recorded, given)
    )
    ids: list[str | None] = [None] * len(given)
    for start, place, length in SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks():
        ids[place : place + length] = [message.message_id for message in recorded[start : start + length]]
    return _repeat_input(recorded, Alignment(ids, renamed=True), given, run_id)


def _content(message: ComparableMessage) -> tuple[Any, ...]:
    """Return the content to compare. Callers pass on only the text of an assistant's message."""
    return message.words[:2] if _role(message) == "assistant" and message.words[1] else message.words


def _repeat_input(recorded: Conversation, found: Alignment, given: Conversation, run_id: str | None) -> Alignment:
    """Treat the last input as new if an earlier run (``None``: any) has answered it and new messages follow."""
    asked = max((place for place, message in enumerate(given) if _role(message) == _USER), default=None)
    if asked is None or any(known is not None for known in found.ids[asked + 1 :]):
        return found
    was = next((message for message in recorded if message.message_id == found.ids[asked]), None)
    if was is not None and was is not recorded[-1] and (run_id is None or was.run_id != run_id):
        return found._replace(ids=[*found.ids[:asked], *[None] * (len(given) - asked)])
    return found


def align_appended(recorded: Conversation, given: Conversation, *, run_id: str | None) -> Alignment:
    """Align messages that are appended to a history. Those that the recorder has just recorded are known.

    This is so if the end of the recorded messages begins the given ones, and belongs to the present run.
    """
    for overlap in range(min(len(recorded), len(given)), 0, -1):
        pairs = list(zip(recorded[len(recorded) - overlap :], given, strict=False))
        is_proven = any(
            old.message_id == new.message_id or (run_id is not None and old.run_id == run_id) for old, new in pairs
        )
        if is_proven and all(new.is_same_as(old) for old, new in pairs):
            return Alignment([*(old.message_id for old, _ in pairs), *[None] * (len(given) - overlap)])
    return Alignment([None] * len(given))


def align_own(recorded: Conversation, given: Conversation, *, run_id: str | None) -> Alignment:
    """Align the messages that a run has added to its state with those that it has recorded."""
    ids = {message.message_id for message in given}
    own = [message for message in recorded if message.run_id == run_id]
    old = [message.message_id if message.message_id in ids else message.words for message in own]
    new = [message.words if message.message_id is None else message.message_id for message in given]
    found: list[str | None] = [None] * len(given)
    for start, place, length in SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks():
        found[place : place + length] = [message.message_id for message in own[start : start + length]]
    return Alignment(found)


def align_state(
    recorded: Conversation, given: Conversation, *, run_id: str | None, goes_on: bool, is_first: bool = False
) -> Alignment:
    """Align the state of a run whose messages have no ids. The run's input may be all of it, or the new messages.

    The state continues the recorded messages of the present run. If there are none, it is aligned as a prompt.
    A run that `goes_on` from an interrupt has no new input. A single turn in the first state of a run that got
    no messages is new, whatever its content.
    """
    found = align_appended(recorded, given, run_id=run_id)
    inputs = [place for place, message in enumerate(given) if _role(message) == _USER]
    is_turn = inputs == [0] and is_first and not goes_on
    is_answer = len(given) == 1 and not inputs
    if is_answer or is_turn or any(known is not None for known in found.ids):
        return found
    return _align_all(recorded, given) if goes_on else align_prompt(recorded, given, run_id=run_id)


def rewind(recorded: Conversation, given: Conversation) -> Alignment:
    """Align an earlier state that a run went back to: recorded messages after its last known one are dropped."""
    places = {message.message_id: place for place, message in enumerate(recorded)}
    ids = [message.message_id if message.message_id in places else None for message in given]
    last = max((places[known] for known in ids if known is not None), default=-1)
    return Alignment(ids, branch_after=last + 1 if last + 1 < len(recorded) else None)
