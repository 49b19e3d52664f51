"""What a conversation says that is not recorded: a loop's history aligned with what its branch holds.

Messages of hand-written loops have no ids, and the whole history is passed again and again. So the two
lists are compared by role and words, in order: what they share, and then, where the history differs,
whether something was left out, put in or edited, or another way taken. Pure functions.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from difflib import SequenceMatcher
from itertools import takewhile
from operator import eq
from typing import Any, NamedTuple

from session_middleware.storage.record_entries import Alignment, ComparableMessage

_SYSTEM, _USER = "system", "user"
_LONGEST_MARK = 80
_DIGITS = re.compile(r"\d+")
_MARK = re.compile(r"\s*(\[[^\[\]]*\]|\([^()]*\)|<[^<>]*>|[^\w\s]+|)\s*\Z")


def diff_history(recorded: Sequence[ComparableMessage], given: Sequence[ComparableMessage]) -> Alignment:
    """Which of the messages `given` are recorded ones, and where they leave what is recorded.

    A history that begins with the end of what is recorded, masked or not, and goes on with one turn adds that
    turn; so does one turn that has nothing in common with what is recorded. Any other is compared message by
    message: what was trimmed at its front, or left out anywhere, changes nothing behind it; a message in the
    place of one of the same speaker is an edit of it, if nothing recorded behind it is given up; else it is
    another branch. System messages may be made anew for each call, so they are compared with each other, and
    all others without them.
    """
    return _align_both(recorded, given, _align_history)


def _align_both(
    recorded: Sequence[ComparableMessage],
    given: Sequence[ComparableMessage],
    align_spoken: Callable[[Sequence[ComparableMessage], Sequence[ComparableMessage]], Alignment],
) -> Alignment:
    old, new = (
        [place for place, said in enumerate(conversation) if said.words[0] != _SYSTEM]
        for conversation in (recorded, given)
    )
    spoken = align_spoken([recorded[place] for place in old], [given[place] for place in new])
    ids: list[str | None] = [None] * len(given)
    for place, known in zip(new, spoken.ids, strict=True):
        ids[place] = known
    branch_after = None if spoken.branch_after is None else old[spoken.branch_after]
    _align_instructions(recorded[:branch_after], given, ids)
    return Alignment(ids, branch_after)


def _align_history(old: Sequence[ComparableMessage], new: Sequence[ComparableMessage]) -> Alignment:
    """As `align`, of conversations without system messages."""
    if overlap := _overlap(old, new):
        known = (said.message_id for said in old[len(old) - overlap :])
        return Alignment([*known, *[None] * (len(new) - overlap)])
    if _is_next_turn(old, new):
        return Alignment([None] * len(new))
    return _align_spoken(old, new)


def _overlap(old: Sequence[ComparableMessage], new: Sequence[ComparableMessage]) -> int:
    """How many messages at the end of the old conversation the new one begins with, followed by one turn at most."""
    asked = [place for place, said in enumerate(new) if said.words[0] == _USER]
    often = Counter(said.words for said in old)
    stems = _stems(new)
    for length in range(min(len(old), len(new)), max([*asked[-2:-1], 0]), -1):
        goes_on = length == len(old) < len(new)
        pairs = list(zip(old[len(old) - length :], new, stems, strict=False))
        if _is_same_stretch(pairs, often, goes_on=goes_on, is_whole=length == len(new)):
            return length
    return 0


def _stems(new: Sequence[ComparableMessage]) -> list[str]:
    """What a text may be cut down to: all before a mark such as "…" or "[masked]"; nothing, if the text is repeated."""
    often = Counter(said.words[1] for said in new)
    stems = []
    for said in new:
        text = said.words[1]
        mark = _MARK.search(text[-_LONGEST_MARK:])
        is_mask = often[text] > 1
        stems.append("" if is_mask else text[: len(text) - len(mark[0])] if mark else text)
    return stems


def _is_same_stretch(
    pairs: Sequence[tuple[ComparableMessage, ComparableMessage, str]],
    often: Counter[Any],
    *,
    goes_on: bool,
    is_whole: bool,
) -> bool:
    """Whether each message is the recorded one, masked, cut short, or alike.

    Texts that are merely alike need a proof: one message that is masked, or the same and said only once; or the
    new conversation `goes_on` after all that is recorded. If it does after the same message, any text before
    that may be an edit. The last of the `is_whole` new conversation is no edit if only its numbers differ.
    """
    other: list[tuple[ComparableMessage, ComparableMessage]] = []
    is_proven = goes_on or len(pairs) == 1
    for was, now, stem in pairs:
        if now.is_same_as(was):
            is_proven = is_proven or often[was.words] == 1
        elif now.message_id is not None or not _may_be(was, now):
            return False
        elif was.words[1].startswith(stem) and _asks_alike(was, now):
            is_proven = True
        else:
            other.append((was, now))
    if not other:
        return True
    last, now, _ = pairs[-1]
    if not is_proven or (is_whole and other[-1] == (last, now) and now.words[0] != _USER and _is_numbered(last, now)):
        return False
    is_anchored = goes_on and now.is_same_as(last) and often[last.words] == 1
    return is_anchored or all(_is_alike(was, now) for was, now in other)


def _asks_alike(was: ComparableMessage, now: ComparableMessage) -> bool:
    """Whether two messages ask for the same tools by the same ids; the arguments may be masked."""
    asked, asks = was.words[3:4], now.words[3:4]
    return asked == asks or (any(asked) and any(asks) and _calls(asked[0]) == _calls(asks[0]))


def _calls(asked: str) -> list[tuple[Any, Any]]:
    try:
        return [(call.get("id"), call.get("name")) for call in json.loads(asked)]
    except (AttributeError, TypeError, ValueError):  # it is damaged, or masked as a whole
        return []


def _is_numbered(was: ComparableMessage, now: ComparableMessage) -> bool:
    """Whether two texts differ in nothing but numbers, as those of items in a series do."""
    return _DIGITS.sub("", was.words[1]) == _DIGITS.sub("", now.words[1])


def _is_next_turn(old: Sequence[ComparableMessage], new: Sequence[ComparableMessage]) -> bool:
    """Whether it is one turn, or a part of one, and nothing in it shows that it is recorded."""
    ids = {said.message_id for said in old}
    if not old or not new or any(said.message_id in ids for said in new if said.message_id is not None):
        return False
    if sum(said.words[0] == _USER for said in new) > 1:
        return False
    speaker = old[-1].words[0]
    if new[0].words[0] != speaker and (len(new) == 1 or speaker == _USER):
        return True
    if len(old) == 1 < len(new):
        return False
    was, now = (Counter(said.words for said in conversation) for conversation in (old, new))
    if sum(said.words[0] == _USER for said in old) == 1 and new[0].is_same_as(old[0]):  # it may be asked again
        del now[new[0].words]
    return not any(was[words] == count == 1 for words, count in now.items())


def _align_spoken(old: Sequence[ComparableMessage], new: Sequence[ComparableMessage]) -> Alignment:
    """Compare two conversations without system messages, message by message."""
    *gaps, tail = _gaps(old, new)
    pairs = {in_new: in_old for gap in (*gaps, tail) for in_new, in_old in gap.before.items()}
    edits = {in_new: in_old for gap in gaps for in_new, in_old in gap.edits(old, new).items()}
    rest, more = old[tail.start : tail.end], new[tail.first : tail.last]
    if rest and more and _are_edits(rest, more):
        edits.update(zip(range(tail.first, tail.last), range(tail.start, tail.end), strict=False))
        rest = ()
    leaves = None
    if rest:  # what both have behind a stretch that has nothing in common is chance
        last = tail.start if more else None
        leaves = next((gap.start for gap in gaps if gap.is_other(old, new)), last)
    known = {in_new: at for in_new, at in (pairs | edits).items() if leaves is None or at < leaves}
    return Alignment([old[known[place]].message_id if place in known else None for place in range(len(new))], leaves)


class _Gap(NamedTuple):
    """Where two conversations differ: the bounds in the old and in the new one, and the pairs right before it."""

    start: int
    end: int
    first: int
    last: int
    before: dict[int, int]  # places in the old one, by those in the new one

    def edits(self, old: Sequence[ComparableMessage], new: Sequence[ComparableMessage]) -> dict[int, int]:
        """Messages that took the place of others, as both conversations go on in the same way."""
        places, given = range(self.start, self.end), range(self.first, self.last)
        if len(places) == len(given) and all(
            _may_be(old[at], new[place]) for at, place in zip(places, given, strict=True)
        ):
            return dict(zip(given, places, strict=True))
        found: dict[int, int] = {}
        upto = self.start
        for place in given:
            fits = (
                at for at in range(upto, self.end) if _may_be(old[at], new[place]) and _is_alike(old[at], new[place])
            )
            if (at := next(fits, None)) is not None:
                found[place], upto = at, at + 1
        return found

    def is_other(self, old: Sequence[ComparableMessage], new: Sequence[ComparableMessage]) -> bool:
        """Whether the new one says something of its own here."""
        edits = self.edits(old, new)
        is_own = any(
            place not in edits or not _is_alike(old[edits[place]], new[place]) for place in range(self.first, self.last)
        )
        return is_own and self.start < self.end


def _gaps(old: Sequence[ComparableMessage], new: Sequence[ComparableMessage]) -> Iterator[_Gap]:
    """Where the two differ, in order; the last gap is behind all that they have in common, and may be empty."""
    shared = _shared(old, new)
    start, first, before = shared, shared, {place: place for place in range(shared)}
    for at, place, length in _blocks(old, new, shared):
        yield _Gap(start, at, first, place, before)
        before = dict(zip(range(place, place + length), range(at, at + length), strict=True))
        start, first = at + length, place + length
    yield _Gap(start, len(old), first, len(new), before)


def _blocks(
    old: Sequence[ComparableMessage], new: Sequence[ComparableMessage], start: int
) -> Iterator[tuple[int, int, int]]:
    """What the two have in common from `start` on, in order: first what each says once, then what is between that."""
    ids = {said.message_id for said in old[start:]} & {said.message_id for said in new[start:]}
    was: list[Any] = [said.message_id if said.message_id in ids else said.words for said in old]
    now: list[Any] = [said.words if said.message_id is None else said.message_id for said in new]
    counts = Counter(was), Counter(now)
    once_old, once_new = (
        [place for place in range(start, len(keys)) if all(count[keys[place]] == 1 for count in counts)]
        for keys in (was, now)
    )
    anchors = [(len(old), len(new))]
    found = _matching([was[at] for at in once_old], [now[place] for place in once_new])
    anchors[:0] = [(once_old[n + m], once_new[k + m]) for n, k, length in found for m in range(length)]
    at, place = start, start
    for end, last in anchors:
        for n, k, length in _matching(was[at:end], now[place:last]):
            yield at + n, place + k, length
        if end < len(old):
            yield end, last, 1
        at, place = end + 1, last + 1


def _matching(was: Sequence[Any], now: Sequence[Any]) -> Iterator[tuple[int, int, int]]:
    found = SequenceMatcher(None, was, now, autojunk=False).get_matching_blocks()
    return ((at, place, length) for at, place, length in found if length)


def _align_instructions(
    recorded: Sequence[ComparableMessage], given: Sequence[ComparableMessage], ids: list[str | None]
) -> None:
    """Fill in which recorded system messages those given are: the same, alike, or else in the same place."""
    old = [place for place, said in enumerate(recorded) if said.words[0] == _SYSTEM]
    new = [place for place, said in enumerate(given) if said.words[0] == _SYSTEM]
    if not old or not new:
        return
    was_before = _following([None if said.words[0] == _SYSTEM else said.message_id for said in recorded])
    is_before = _following(ids)
    ways: Sequence[Callable[[int, int], bool]] = (
        lambda at, place: given[place].is_same_as(recorded[at]),
        lambda at, place: given[place].message_id is None and _is_alike(recorded[at], given[place]),
        lambda at, place: given[place].message_id is None and was_before[at] == is_before[place],
    )
    for is_it in ways:
        for place in [place for place in new if ids[place] is None]:
            if (at := next((at for at in old if is_it(at, place)), None)) is not None:
                ids[place] = recorded[at].message_id
                old.remove(at)


def _following(ids: Sequence[str | None]) -> list[str | None]:
    """Of each message, the id of the next one that has one."""
    found: list[str | None] = []
    following = None
    for message_id in reversed(ids):
        found.append(following)
        following = message_id or following
    return found[::-1]


def add_asked(
    recorded: Sequence[ComparableMessage], given: Sequence[ComparableMessage], *, run_id: str | None
) -> Alignment:
    """As `align` for what a model is asked, where a list that goes on differently is merely another question.

    A prompt may be made anew for each call, so nothing is left behind: what is not known is added. A
    question that was answered in an earlier run is asked again.
    """
    return _asked_anew(recorded, _add_all(recorded, given), given, run_id)


def _add_all(recorded: Sequence[ComparableMessage], given: Sequence[ComparableMessage]) -> Alignment:
    """As `align`, but nothing is left behind, and the last message is no edit."""
    found = _align_both(recorded, given, _align_spoken)
    old = {said.message_id: said for said in recorded}
    ids = [
        known
        if known is not None and (old[known].words == said.words or (not is_last and _is_alike(old[known], said)))
        else None
        for known, said, is_last in zip(found.ids, given, [*[False] * (len(given) - 1), True], strict=False)
    ]
    return Alignment(ids)


def add_given(
    recorded: Sequence[ComparableMessage], given: Sequence[ComparableMessage], *, run_id: str | None
) -> Alignment:
    """As `add_asked` for what a graph is called with, where nothing else keeps its state.

    Whoever calls it may leave out what is shown to nobody, such as what its tools said, or put other
    instructions in front. So the two may differ anywhere, and what they share is in the same order.
    """
    ids_of_both = {said.message_id for said in recorded} & {said.message_id for said in given}
    old, new = (
        [said.message_id if said.message_id in ids_of_both else _spoken(said.words) for said in conversation]
        for conversation in (recorded, given)
    )
    ids: list[str | None] = [None] * len(given)
    for start, place, length in SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks():
        ids[place : place + length] = [said.message_id for said in recorded[start : start + length]]
    return _asked_anew(recorded, Alignment(ids, renamed=True), given, run_id)


def _spoken(words: tuple[Any, ...]) -> tuple[Any, ...]:
    """An assistant's text is all that is passed on of how it was said."""
    return words[:2] if words[0] == "assistant" and words[1] else words


def _asked_anew(
    recorded: Sequence[ComparableMessage], found: Alignment, given: Sequence[ComparableMessage], run_id: str | None
) -> Alignment:
    """The last question is new, where an earlier run (of ``None``, any) has answered it and what follows it is new."""
    asked = max((place for place, said in enumerate(given) if said.words[0] == _USER), default=None)
    if asked is None or any(known is not None for known in found.ids[asked + 1 :]):
        return found
    was = next((said for said in recorded if said.message_id == found.ids[asked]), None)
    if was is not None and was is not recorded[-1] and (run_id is None or was.run_id != run_id):
        return found._replace(ids=[*found.ids[:asked], *[None] * (len(given) - asked)])
    return found


def add_behind(
    recorded: Sequence[ComparableMessage], given: Sequence[ComparableMessage], *, run_id: str | None
) -> Alignment:
    """For messages that are added to a history: those of them that the run's recorder has just seen are known.

    They are, if the end of what is recorded is the beginning of what is given, and is of the present run.
    """
    for overlap in range(min(len(recorded), len(given)), 0, -1):
        end = recorded[len(recorded) - overlap :]
        proven = any(
            old.message_id == new.message_id or (run_id is not None and old.run_id == run_id)
            for old, new in zip(end, given, strict=False)
        )
        if proven and _same_all(end, given[:overlap]):
            return Alignment([*(said.message_id for said in end), *[None] * (len(given) - overlap)])
    return Alignment([None] * len(given))


def add_state(
    recorded: Sequence[ComparableMessage],
    given: Sequence[ComparableMessage],
    *,
    run_id: str | None,
    goes_on: bool,
    is_first: bool = False,
) -> Alignment:
    """For the state of a run, whose messages have no ids: what the run was given may be all of it, or what is new.

    It goes on from what is recorded of the present run; where nothing is, it is as what a model is asked. A
    run that `goes_on` where another stopped is given nothing anew. One turn in the first state of a run that
    was given no messages is new, whatever it says.
    """
    found = add_behind(recorded, given, run_id=run_id)
    asked = [place for place, said in enumerate(given) if said.words[0] == _USER]
    is_turn = asked == [0] and is_first and not goes_on
    is_answer = len(given) == 1 and not asked
    if is_answer or is_turn or any(known is not None for known in found.ids):
        return found
    return _add_all(recorded, given) if goes_on else add_asked(recorded, given, run_id=run_id)


def go_back(recorded: Sequence[ComparableMessage], given: Sequence[ComparableMessage]) -> Alignment:
    """For a state that its run went back to: what is recorded after the last message it knows is left behind."""
    places = {said.message_id: place for place, said in enumerate(recorded)}
    ids = [said.message_id if said.message_id in places else None for said in given]
    last = max((places[known] for known in ids if known is not None), default=-1)
    return Alignment(ids, branch_after=last + 1 if last + 1 < len(recorded) else None)


def leave(recorded: Sequence[ComparableMessage], given: Sequence[ComparableMessage]) -> Alignment:
    """For a conversation that begins anew: all that is recorded is left behind."""
    return Alignment([None] * len(given), branch_after=0 if recorded else None)


def _same_all(old: Sequence[ComparableMessage], new: Sequence[ComparableMessage]) -> bool:
    return len(old) == len(new) and all(map(ComparableMessage.is_same_as, new, old))


def _shared(recorded: Sequence[ComparableMessage], given: Sequence[ComparableMessage]) -> int:
    """How many messages the two have in common at their beginning."""
    length = min(len(recorded), len(given))
    return next((n for n in range(length) if not given[n].is_same_as(recorded[n])), length)


def _are_edits(rest: Sequence[ComparableMessage], more: Sequence[ComparableMessage]) -> bool:
    """The last recorded message differs, by the same speaker; or all that are left are told in other words."""
    if len(rest) == 1:
        return _may_be(rest[0], more[0])
    pairs = list(zip(rest, more, strict=False))
    return len(pairs) == len(rest) and all(_may_be(old, new) and _is_alike(old, new) for old, new in pairs)


def _may_be(old: ComparableMessage, new: ComparableMessage) -> bool:
    """Whether a message without a known id can be an edit of a recorded one: of the same speaker, or the same call."""
    return old.words[0] == new.words[0] and old.words[4:] == new.words[4:]


def _is_alike(old: ComparableMessage, new: ComparableMessage) -> bool:
    """Whether at least half of a text is of another one: it was masked, say, or has another date."""
    was, now = str(old.words[1]), str(new.words[1])
    if old.words[0] == "tool" and any(old.words[4:]):
        return True
    if not now or old.words[3:4] != new.words[3:4]:  # what is asked for says who is who
        return False
    front = sum(takewhile(bool, map(eq, was, now)))
    back = sum(takewhile(bool, map(eq, reversed(was[front:]), reversed(now[front:]))))
    if 2 * (front + back) >= len(now):
        return True
    words = now.split()
    return 2 * (Counter(was.split()) & Counter(words)).total() > len(words)
