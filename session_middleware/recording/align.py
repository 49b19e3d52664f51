"""What a conversation says that is not recorded: a loop's history aligned with what its branch holds.

Messages of hand-written loops have no ids, and the whole history is passed again and again. So the two
lists are compared by role and words, in order: what they share at the beginning, and then, if the
history goes on differently, whether its beginning was trimmed, its last message edited, or another
way taken. Pure functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any

from session_middleware.storage.seen import Alignment, Said


def align(recorded: Sequence[Said], given: Sequence[Said]) -> Alignment:
    """Which of the messages `given` are recorded ones, and where they leave what is recorded.

    The same history again is all known; more after it is new; what was trimmed at its front, or put
    before what is known, changes nothing behind; one message that differs is an edit of the recorded
    one in its place, if nothing recorded behind it is given up; else it is another branch.
    """
    shared = _shared(recorded, given)
    known = [said.message_id for said in recorded]
    rest, more = recorded[shared:], given[shared:]
    if not rest or not more:
        return Alignment([*known[:shared], *[None] * len(more)])
    if (found := _trimmed(rest, more)) is not None:
        in_front, left_out = found
        end = known[shared + left_out :]
        behind = len(more) - in_front - len(end)
        return Alignment([*known[:shared], *[None] * in_front, *end, *[None] * behind])
    if _is_edit(rest, more):
        behind = len(more) - len(rest)
        return Alignment([*known[:shared], *known[shared:], *[None] * behind])
    return Alignment([*known[:shared], *[None] * len(more)], branch_after=shared)


def add_asked(recorded: Sequence[Said], given: Sequence[Said], *, run_id: str | None) -> Alignment:
    """As `align` for what a model is asked, where a list that goes on differently is merely another question.

    A prompt may be made anew for each call, so nothing is left behind: what is not known is added. A
    question that was answered in an earlier run is asked again.
    """
    found = align(recorded, given)
    words = {said.message_id: said.words for said in recorded}
    edits = any(known is not None and words[known] != said.words for known, said in zip(found.ids, given, strict=True))
    if found.branch_after is not None or edits:
        shared = _shared(recorded, given)
        return Alignment([*(said.message_id for said in recorded[:shared]), *[None] * (len(given) - shared)])
    return _asked_anew(recorded, found, run_id)


def add_given(recorded: Sequence[Said], given: Sequence[Said], *, run_id: str | None) -> Alignment:
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
    return _asked_anew(recorded, Alignment(ids, renamed=True), run_id)


def _spoken(words: tuple[Any, ...]) -> tuple[Any, ...]:
    """An assistant's text is all that is passed on of how it was said."""
    return words[:2] if words[0] == "assistant" and words[1] else words


def _asked_anew(recorded: Sequence[Said], found: Alignment, run_id: str | None) -> Alignment:
    """The last message is new, where it is a question that an earlier run (of ``None``, any) has answered."""
    last = next((said for said in recorded if found.ids and said.message_id == found.ids[-1]), None)
    is_earlier = last is not None and last is not recorded[-1] and (run_id is None or last.run_id != run_id)
    if last is not None and is_earlier and last.words[0] == "user":
        return found._replace(ids=[*found.ids[:-1], None])
    return found


def add_behind(recorded: Sequence[Said], given: Sequence[Said], *, run_id: str | None) -> Alignment:
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


def go_back(recorded: Sequence[Said], given: Sequence[Said]) -> Alignment:
    """For a state that its run went back to: what is recorded after the last message it knows is left behind."""
    places = {said.message_id: place for place, said in enumerate(recorded)}
    ids = [said.message_id if said.message_id in places else None for said in given]
    last = max((places[known] for known in ids if known is not None), default=-1)
    return Alignment(ids, branch_after=last + 1 if last + 1 < len(recorded) else None)


def leave(recorded: Sequence[Said], given: Sequence[Said]) -> Alignment:
    """For a conversation that begins anew: all that is recorded is left behind."""
    return Alignment([None] * len(given), branch_after=0 if recorded else None)


def _same_all(old: Sequence[Said], new: Sequence[Said]) -> bool:
    return len(old) == len(new) and all(map(Said.is_same_as, new, old))


def _shared(recorded: Sequence[Said], given: Sequence[Said]) -> int:
    """How many messages the two have in common at their beginning."""
    length = min(len(recorded), len(given))
    return next((n for n in range(length) if not given[n].is_same_as(recorded[n])), length)


def _trimmed(rest: Sequence[Said], more: Sequence[Said]) -> tuple[int, int] | None:
    """How many new messages stand in front of the recorded end in `more`, and how many recorded were left out.

    What stands in front is a summary of what was left out, or a new first message: one at most.
    """
    for in_front in (0, 1):
        for left_out in range(1 - in_front, len(rest)):
            overlap = len(rest) - left_out
            if not _same_all(rest[left_out:], more[in_front : in_front + overlap]):
                continue
            if in_front and left_out == 1 and rest[0].words[0] == more[0].words[0]:
                return None  # one for one: an edit
            return in_front, left_out
    return None


def _is_edit(rest: Sequence[Said], more: Sequence[Said]) -> bool:
    """One recorded message differs, by the same speaker, and all behind it is as it was."""
    return rest[0].words[0] == more[0].words[0] and _same_all(rest[1:], more[1 : len(rest)])
