"""`RunContext`: the session, the caller and the run of an operation. `RunState`: an engine's decisions about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from typing import Any, Literal, NamedTuple

from session_middleware.models import Admission, Identity
from session_middleware.storage.record_entries import Claim, Entry


@dataclass(slots=True, eq=False)
class Lease:
    """Marks a session as having a run in progress. Nested runs share the lease of the run that encloses them.

    A later lease of a session has a greater number. If two runs have the session exclusively, because a lease expired,
    the one with the lower number has lost it.
    """

    number: int | None = None  # set when its row is committed
    is_exclusive: bool = False  # no other run of the session is in progress
    is_shared: bool = False  # several `Sessions` may insert it
    is_over: bool = False  # the run has ended; the row may still exist
    has_row: bool = False  # the run has a row in the record, and the lease is released when that is closed
    silent_beats: int | None = None  # heartbeats since the last write, if no callback reports the run's end


class BusyRule(NamedTuple):
    """What a run does while another one has its session."""

    on_busy: Literal["allow", "wait", "reject"]
    timeout_seconds: float | None  # the longest wait; None: no limit


@dataclass(slots=True, eq=False)
class SessionHandle:
    """Pins a `Session` to one incarnation of its id. A fresh start (``on_resume="fresh"``) replaces it."""

    incarnation: int


class RunState(NamedTuple):
    """The decisions of an engine about a run. An operation makes a new value, which takes effect with its commit.

    The admission is decided at the first read of a run. It holds for the whole run, so a run that takes longer than
    ``idle_timeout`` ends as it began.
    """

    admission: Admission | None = None
    began_at: datetime | None = None  # the time of the admission
    incarnation: int | None = None  # of the session, as it was found
    admitted: bool = False  # the admission is stored
    announced: bool = False  # and its event
    refused: bool = False  # the admission was denied, and the denial is an event
    has_row: bool = False  # the run has a row
    checkpoint_id: str | None = None  # of the outermost graph: the latest that was put
    branch: str | None = None  # of its messages; None: that of its checkpoint, or else of the session
    cached_session: Any = None  # the engine's cached state of the session


@dataclass(slots=True, eq=False)
class RecordState:
    """The facts that an engine has recorded of a run. An operation changes a copy; its commit makes it effective."""

    aliases: dict[str, str] = field(default_factory=dict)  # recorded ids by the ids in the state
    executions: dict[str, frozenset[str]] = field(default_factory=dict)  # execution ids by tool call id
    answers: dict[str, frozenset[str]] = field(default_factory=dict)  # ids of answering messages by tool call id
    written: dict[str, int] = field(default_factory=dict)  # seqs of the messages that this run recorded first
    token_counts: tuple[tuple[str | None, int | None, int | None], ...] = ()  # of the latest model calls, by model


@dataclass(slots=True, eq=False)
class RunNotes:
    """The observations of the recorder and the checkpointer about a run, and the entries to be written."""

    # By increasing numbers. The next `append` or `put_checkpoint` of the run writes them first, in its transaction.
    entries: dict[int, Entry] = field(default_factory=dict)
    unclaimed: dict[Claim, str] = field(default_factory=dict)  # ids of recorded messages that are in no state yet
    message_steps: dict[tuple[str, str], int] = field(default_factory=dict)  # the latest step of a graph with a message
    output_steps: dict[str, tuple[str, int]] = field(default_factory=dict)  # namespace and step of model outputs
    unidentified: dict[int, tuple[Any, datetime]] = field(default_factory=dict)  # messages without ids, by Python's id
    askers: dict[str, tuple[str | None, str]] = field(default_factory=dict)  # node and namespace, by interrupt id
    on_fault: Callable[[Exception], None] | None = None  # called with errors of recording
    _numbers: Iterator[int] = field(default_factory=count)

    def add(self, entries: Iterable[Entry]) -> None:
        self.entries.update(zip(self._numbers, entries))  # noqa: B905


@dataclass(slots=True, eq=False)
class RunContext:
    """The caller of an operation, and the run that it belongs to.

    The runtime changes it as the run proceeds. An engine reads it, and replaces `state` and `record` after a commit.
    """

    session_id: str
    identity: Identity
    run_id: str | None = None  # of a run that begins with the admission
    tags: Sequence[str] = ()  # the caller's labels of the run
    metadata: Mapping[str, Any] = field(default_factory=dict)
    is_run: bool = True  # False: a change outside of runs, such as update_state, which resumes nothing
    must_be_new: bool = False  # it opens a session, and resumes none
    reading: bool = False  # a read outside of runs, for which read access is sufficient
    handle: SessionHandle | None = None  # the only incarnation that is admitted
    at: datetime | None = None  # the time of imported facts; None: now
    state: RunState = field(default_factory=RunState)
    record: RecordState = field(default_factory=RecordState)

    named_id: str = ""  # the id that the caller named, if its session was merged into `session_id`

    # The run
    lease: Lease | None = None  # of a run in progress
    shared_with: frozenset[str] = frozenset()  # runs, this one among them, that another `Sessions` may have admitted
    is_inside: bool = False  # the run is inside another run of its session, whose lease it shares
    busy: BusyRule | None = None  # its own, instead of the settings'
    is_identity_assumed: bool = False  # the identity is the first reader's, who may be another caller
    checkpointed: bool = False  # a checkpointer of ours serves the run, and records the messages of its checkpoints
    has_checkpoint: bool = False  # the run has put a checkpoint
    started_from: str | None = None  # the first checkpoint of the outermost graph that was read
    has_history: bool = False  # the run was given a history; messages that are not added to it get the flag "aside"
    continues_without_input: bool = False  # the run continues an interrupted one without new input
    run_input: Any = None  # the input, until the first read
    has_new_input: bool = False  # the run has an input, which is no command
    subgraph_inputs: dict[str, Any] = field(default_factory=dict)  # inputs of subgraphs by namespace, without task ids
    read_namespaces: set[str] = field(default_factory=set)  # the namespaces whose state was read
    puts_at_end: bool = False  # the run puts no checkpoint before it ends
    has_unidentified: bool = False  # the recorder has recorded messages without ids from the state
    has_one_value: bool = False  # the state of the outermost graph is one value instead of named channels
    whole_input: Any = None  # the input of such a graph, until the first checkpoint
    input_texts: frozenset[str] | None = None  # the texts of the input, if they are known
    notes: RunNotes = field(default_factory=RunNotes)

    def is_of(self, session_id: str) -> bool:
        """Whether a caller that names this id means the session of this context."""
        return self.session_id != "" and session_id in (self.session_id, self.named_id)

    def __post_init__(self) -> None:
        self.named_id = self.session_id
        if self.run_id is not None and self.lease is None:
            self.lease = Lease()
