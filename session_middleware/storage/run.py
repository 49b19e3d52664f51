"""Who is at the door of a session, and the run they are there for, as it passes to an engine and is filled in there."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from session_middleware.models import Admission, Identity
from session_middleware.storage.record_entries import Claim, Entry


@dataclass(slots=True, eq=False)
class Lease:
    """That a run goes on in a session, as long as it does. Runs inside a run have its lease in common.

    Its number is greater than those of the session's other leases, so of two runs that both take the session for
    theirs, the one with the lower number has lost it.
    """

    number: int | None = None  # once it is in the database
    is_exclusive: bool = False  # no other run goes on in the session meanwhile
    is_over: bool = False  # the run has ended; the row in the database may still be there
    has_row: bool = False  # the run has one in the record, and the lease goes when that is ended
    silent_beats: int | None = None  # beats since the last write, where nothing tells the run's end; else None


@dataclass(slots=True, eq=False)
class SessionHandle:
    """Whoever has a session in hand has one of those that have had its id, and no other.

    Where ``on_resume="fresh"`` has what is in hand start over, that is the one from then on.
    """

    incarnation: int


def _few() -> deque[Any]:
    return deque(maxlen=256)


@dataclass(slots=True)
class RunContext:
    """Somebody at the door of a session: who, when, and what was decided at the first look.

    `admission` is decided once, when a run first reads its session, and stays for the whole run, so
    a run that takes longer than ``idle_timeout`` ends as it began. The engine fills it in when it
    is ``None``, and sets `admitted` once the context is in the database.

    `entries` are what the record has yet to learn of the context: the next `append` or `put_checkpoint`
    of it writes them first, in its own transaction.
    """

    session_id: str
    identity: Identity
    run_id: str | None = None  # a run that begins when this context is admitted
    is_run: bool = True  # False: a change from outside, such as update_state; it resumes nothing
    must_be_new: bool = False  # it opens a session, and resumes none
    admission: Admission | None = None
    began_at: datetime | None = None  # when that was
    admitted: bool = False  # it is in the database
    announced: bool = False  # and so is the event that says so
    guessed: bool = False  # its identity is the first look's, which may be somebody else's
    checkpointed: bool = False  # a checkpointer of ours serves this run, and records what its checkpoints bring
    begun: bool = False  # its run has a row
    refused: bool = False  # it was turned away, and an event says so
    puts: bool = False  # it puts checkpoints as it goes
    checkpoint_id: str | None = None  # of the outermost graph: the latest that was read or put in it
    started_from: str | None = None  # the first one that was read in it
    has_history: bool = False  # it was given a history: what it says and does not add to that is said aside
    goes_on: bool = False  # where the last run stopped, with nothing new
    branch: str | None = None  # what it says goes there; None: where its checkpoint, or else the session, is
    entries: deque[Entry] = field(default_factory=deque)
    unclaimed: dict[Claim, str] = field(default_factory=dict)  # what was said that no state holds yet, by its id
    aliases: dict[str, str] = field(default_factory=dict)  # ids its state gave to recorded messages, and theirs
    seen_at: dict[tuple[str, str], int] = field(default_factory=dict)  # the latest step of a graph that has a message
    executions: dict[str, set[str]] = field(default_factory=dict)  # those it brought of a tool call id
    answers: dict[str, set[str]] = field(default_factory=dict)  # the messages it brought that answer a tool call id
    said_at: dict[int, tuple[Any, datetime]] = field(default_factory=dict)  # messages without ids, by Python's id
    heard_at: dict[str, tuple[str, int]] = field(default_factory=dict)  # what models said: in which graph's step
    written: dict[str, int] = field(default_factory=dict)  # messages that it brought into the record first: their seqs
    asked: deque[tuple[str | None, int | None, int | None]] = field(default_factory=_few)  # its latest model calls
    tell: Callable[[Exception], None] | None = None  # is told of what could not be recorded
    given: Any = None  # what a run was called with, until it has read its state
    users_words: frozenset[str] | None = None  # the texts its run was called with, where they are known
    inside: dict[str, Any] = field(
        default_factory=dict
    )  # as `given`, of the graphs inside: by namespace, without tasks
    is_exposed: bool = False  # the session may be ended by another process before this run's first write
    looked: set[str] = field(default_factory=set)  # the namespaces whose state it has read
    reading: bool = False  # a look that is no run: it may be at what one may read and not change
    incarnation: int | None = None  # the session's, as it was found: a deleted one that is opened again is another
    hand: SessionHandle | None = None  # in which the session is: no other that has its id is let in instead
    lease: Lease | None = None  # of a run in progress
    known: Any = None  # what the engine knew of the session when it admitted the run last
    at: datetime | None = None  # when it was, of what happened elsewhere and is copied here; None: now
    is_inside: bool = False  # of another run of its session, whose turn and lease it has, and does not end

    def __post_init__(self) -> None:
        if self.run_id is not None and self.lease is None:
            self.lease = Lease()
