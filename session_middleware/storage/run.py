"""`RunContext`: the session, the caller and the run of an operation, and what an engine decides about them."""

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
    """Marks a session as having a run in progress. Nested runs share the lease of the run that encloses them.

    A later lease of a session has a greater number. If two runs have the session exclusively, because a lease expired,
    the one with the lower number has lost it.
    """

    number: int | None = None  # set when its row is inserted
    is_exclusive: bool = False  # no other run of the session is in progress
    is_over: bool = False  # the run has ended; the row may still exist
    has_row: bool = False  # the run has a row in the record, and the lease is released when that is closed
    silent_beats: int | None = None  # heartbeats since the last write, if no callback reports the run's end


@dataclass(slots=True, eq=False)
class SessionHandle:
    """Pins a `Session` to one incarnation of its id. A fresh start (``on_resume="fresh"``) replaces it."""

    incarnation: int


@dataclass(slots=True, eq=False)
class RunRecord:
    """What a run has recorded. The recorder, the checkpointer and the engine update it as the run proceeds."""

    # The next `append` or `put_checkpoint` of the context writes these first, in its own transaction.
    entries: deque[Entry] = field(default_factory=deque)
    branch: str | None = None  # of its messages; None: that of its checkpoint, or else of the session
    unclaimed: dict[Claim, str] = field(default_factory=dict)  # ids of recorded messages that are in no state yet
    aliases: dict[str, str] = field(default_factory=dict)  # recorded ids by the ids in the state
    message_steps: dict[tuple[str, str], int] = field(default_factory=dict)  # the latest step of a graph with a message
    output_steps: dict[str, tuple[str, int]] = field(default_factory=dict)  # namespace and step of model outputs
    executions: dict[str, set[str]] = field(default_factory=dict)  # execution ids by tool call id
    answers: dict[str, set[str]] = field(default_factory=dict)  # ids of answering messages by tool call id
    unidentified: dict[int, tuple[Any, datetime]] = field(default_factory=dict)  # messages without ids, by Python's id
    written: dict[str, int] = field(default_factory=dict)  # seqs of the messages that this run recorded first
    token_counts: deque[tuple[str | None, int | None, int | None]] = field(  # of the latest model calls, by model
        default_factory=lambda: deque(maxlen=256)
    )
    on_fault: Callable[[Exception], None] | None = None  # called with errors of recording


@dataclass(slots=True, eq=False)
class RunContext:
    """The caller of an operation, the run that it belongs to, and the engine's decision about both.

    The engine decides `admission` at the first read of a run. The decision holds for the whole run, so a run that
    takes longer than ``idle_timeout`` ends as it began. `admitted` is set when the admission is stored.
    """

    session_id: str
    identity: Identity
    run_id: str | None = None  # of a run that begins with the admission
    is_run: bool = True  # False: a change outside of runs, such as update_state, which resumes nothing
    must_be_new: bool = False  # it opens a session, and resumes none
    reading: bool = False  # a read outside of runs, for which read access is sufficient
    incarnation: int | None = None  # of the session, as it was found
    handle: SessionHandle | None = None  # the only incarnation that is admitted
    at: datetime | None = None  # the time of imported facts; None: now

    # The admission
    admission: Admission | None = None
    began_at: datetime | None = None  # the time of the admission
    admitted: bool = False  # the admission is stored
    announced: bool = False  # and its event
    refused: bool = False  # the admission was denied, and the denial is an event
    is_exposed: bool = False  # another process may end the session before this run's first write
    cached_state: Any = None  # the engine's cached state of the session

    # The run
    lease: Lease | None = None  # of a run in progress
    is_inside: bool = False  # the run is inside another run of its session, whose lease it shares
    is_identity_assumed: bool = False  # the identity is the first reader's, who may be another caller
    checkpointed: bool = False  # a checkpointer of ours serves the run, and records the messages of its checkpoints
    has_row: bool = False  # the run has a row
    has_checkpoint: bool = False  # the run has put a checkpoint
    checkpoint_id: str | None = None  # of the outermost graph: the latest that was read or put
    started_from: str | None = None  # the first that was read
    has_history: bool = False  # the run was given a history; messages that are not added to it get the flag "aside"
    continues_without_input: bool = False  # the run continues an interrupted one without new input
    run_input: Any = None  # the input, until the first read
    has_unrecorded_input: bool = False  # the run has new input, and no row in the record
    subgraph_inputs: dict[str, Any] = field(default_factory=dict)  # inputs of subgraphs by namespace, without task ids
    read_namespaces: set[str] = field(default_factory=set)  # the namespaces whose state was read
    puts_at_end: bool = False  # the run puts no checkpoint before it ends
    has_one_value: bool = False  # the state of the outermost graph is one value instead of named channels
    whole_input: Any = None  # the input of such a graph, until the first checkpoint
    input_texts: frozenset[str] | None = None  # the texts of the input, if they are known
    record: RunRecord = field(default_factory=RunRecord)

    def __post_init__(self) -> None:
        if self.run_id is not None and self.lease is None:
            self.lease = Lease()
