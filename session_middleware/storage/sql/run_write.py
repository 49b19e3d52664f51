"""The decisions of a transaction's operations about runs. The runs get these decisions after the commit.

An operation adds its decisions to the transaction when it has succeeded, and changes nothing else in memory. Therefore
nothing has to be undone after a rollback, and the operations can be repeated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from session_middleware.storage.record_entries import Claim, Entry
from session_middleware.storage.run import RecordState, RunContext, RunState

if TYPE_CHECKING:
    from session_middleware.storage.sql.connection import Connection


class RunWrite:
    """A run in one operation, with the decisions of this operation and of earlier ones in its transaction."""

    def __init__(self, connection: Connection, context: RunContext, *, is_careful: bool = False) -> None:
        self.context, self.session_id, self.run_id = context, context.session_id, context.run_id
        known: RunContext | RunWrite = connection.decisions.get(context, context)
        self.state: RunState = known.state
        self.record: RecordState = known.record
        self.taken: frozenset[int] = frozenset()  # numbers of entries
        self.claims: dict[Claim, str] = {}  # of messages that are in no state yet
        self.claimed: frozenset[tuple[Claim, str]] = frozenset()
        self.lease_number = None if context.lease is None else context.lease.number
        if isinstance(known, RunWrite):
            self.taken, self.claims, self.claimed = known.taken, known.claims, known.claimed
            self.lease_number = known.lease_number
        self.is_careful, self._is_recording = is_careful, False

    def begin_recording(self) -> None:
        """Copy the recorded facts before the first change of them."""
        if not self._is_recording:
            record = self.record
            self.record = RecordState(
                *(record.aliases.copy(), record.executions.copy(), record.answers.copy(), record.written.copy()),
                record.token_counts,
            )
            self._is_recording = True

    def pending(self) -> list[Entry]:
        """Return the buffered entries that the transaction has not taken."""
        return [entry for number, entry in [*self.context.notes.entries.items()] if number not in self.taken]

    def take(self) -> list[Entry]:
        """Return the buffered entries that the transaction has not taken. They leave the buffer after the commit."""
        entries = self.context.notes.entries
        if not entries:
            return []
        numbers = sorted(entries.keys() - self.taken)
        self.taken = self.taken.union(numbers)
        found = map(entries.get, numbers)  # another storage may have written some meanwhile
        return [entry for entry in found if entry is not None]

    @property
    def checkpoint_id(self) -> str | None:
        """The checkpoint of the outermost graph that was read or put last."""
        return self.state.checkpoint_id or self.context.started_from

    @property
    def has_unclaimed(self) -> bool:
        return bool(self.claims or self.context.notes.unclaimed)

    def find_unclaimed(self, claim: Claim) -> str | None:
        """Return the id of a recorded message that is in no state yet."""
        found = self.claims.get(claim) or self.context.notes.unclaimed.get(claim)
        return None if found is None or (claim, found) in self.claimed else found

    def add_unclaimed(self, claims: dict[Claim, str]) -> None:
        self.claims = self.claims | claims

    def claim(self, claim: Claim, message_id: str) -> None:
        self.claimed |= {(claim, message_id)}

    def publish_admission(self) -> None:
        """Apply the admission that a read decided, unless a write has decided it meanwhile."""
        context, state = self.context, self.state
        if context.state.admission is None:
            context.state = context.state._replace(
                admission=state.admission, began_at=state.began_at, incarnation=state.incarnation
            )


def publish(decisions: dict[RunContext, RunWrite]) -> None:
    """Apply the decisions of a transaction to the runs, after its commit."""
    for context, run in decisions.items():
        context.state, context.record, notes = run.state, run.record, context.notes
        for number in run.taken:
            notes.entries.pop(number, None)
        notes.unclaimed.update(run.claims)
        for claim, message_id in run.claimed:
            if notes.unclaimed.get(claim) == message_id:
                del notes.unclaimed[claim]
        if context.lease is not None and run.lease_number is not None:
            context.lease.number = run.lease_number
        if context.handle is not None and run.state.admitted and run.state.incarnation is not None:
            context.handle.incarnation = run.state.incarnation
