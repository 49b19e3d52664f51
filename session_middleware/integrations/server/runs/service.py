"""`RunService` begins, finds, cancels and follows runs, also those of other processes on the same database.

A run belongs to the process that received its request. A session has one run at a time. Later runs wait in the queue of
the database, which also holds runs begun by Python code; their order is exact across processes.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import uuid4

from fastapi.exceptions import HTTPException

from session_middleware import Session, Sessions
from session_middleware.errors import SessionBusy, SessionNotFound
from session_middleware.integrations.callers import Caller
from session_middleware.integrations.server.assistants import Assistant, assistants_of, get_assistant
from session_middleware.integrations.server.runs.job import Job
from session_middleware.integrations.server.runs.log import PAUSE_SECONDS, Event, position_of
from session_middleware.integrations.server.runs.notes import DIED, Order, RunNote, RunNotes
from session_middleware.integrations.server.runs.request import Action, RunCreate
from session_middleware.integrations.server.runs.upkeep import RunUpkeep
from session_middleware.integrations.server.serialization import json_bytes
from session_middleware.integrations.server.server_state import Server
from session_middleware.integrations.server.threads.fields import check_checkpoint
from session_middleware.models import Run, utc_now
from session_middleware.user_sessions import UserSessions

_POLL_SECONDS = 0.1
_NOTE_SECONDS = 0.25  # in which a process has noted a run that has begun
_LATEST = 100  # runs of the record among which those that have not ended are
_TEMPORARY = {"idle_timeout": "2h", "on_expire": "delete"}  # a sweep deletes what a killed process leaves
_KEPT_BYTES = 32 << 20  # of the events of runs that have ended, for clients that come back
_BUSY = "the thread has a run already; wait for its end, or choose another multitask_strategy"
_OUTCOMES = {"running": "running", "ok": "success", "waiting": "success", "error": "error"}
Access = Sessions | UserSessions


class RunService:
    """The runs of the API. Belongs to one event loop."""

    def __init__(self, server: Server) -> None:
        self._server, self._sessions = server, server.sessions
        self.notes = RunNotes(server.sessions)
        self._jobs: OrderedDict[str, Job] = OrderedDict()  # by run id; those that have ended until they are too many
        self._upkeep = RunUpkeep(self.notes, self._active)
        self._tasks: set[asyncio.Future[None]] = set()

    # Beginning

    async def start(
        self, asked: RunCreate, caller: Caller, access: Access, thread_id: str | None, *, at_once: bool = False
    ) -> Job:
        """Begin a run in a thread, or in one of its own.

        Args:
            at_once: the run is known to the other processes when this returns.

        Raises:
            HTTPException: 404 for an unknown assistant, 409 for a busy thread that the run may not wait for.
            SessionError: the caller may not run there.
        """
        assistant = get_assistant(self._server, asked.assistant_id)
        session = await self._session(asked, caller, access, thread_id, assistant.as_metadata)
        others = await self._others(session)
        is_strict = self._is_strict(asked)
        if is_strict and (others or session.is_running or self._active_in(session.id)):
            raise HTTPException(409, _BUSY)
        job = self._job(asked, assistant, session, others, is_temporary=thread_id is None and not asked.is_kept)
        self._jobs[job.note.run_id] = job
        self._upkeep.note(job)
        if asked.cancels_others:
            for other in others:
                await self.cancel(other, "rollback" if asked.strategy == "rollback" else "interrupt")
        job.start()
        if is_strict and not asked.after_seconds and await job.is_refused():  # another process was first
            await self._hide(job.note)
            raise HTTPException(409, _BUSY)
        if at_once:
            await self._upkeep.flush()
        else:
            self._upkeep.flush_soon()
        return job

    def _is_strict(self, asked: RunCreate) -> bool:
        """Whether the run may not wait for another one."""
        rejects = self._sessions.settings.on_busy == "reject"
        return asked.strategy == "reject" or (asked.strategy == "enqueue" and rejects)

    def _job(
        self, asked: RunCreate, assistant: Assistant, session: Session, others: list[RunNote], *, is_temporary: bool
    ) -> Job:
        rule = {"on_busy": "reject"} if self._is_strict(asked) else {"on_busy": "wait", "busy_timeout": "never"}
        run_id = uuid4()
        config = asked.run_config(session.config(**rule), **assistant.as_metadata, run_id=str(run_id))
        config["run_id"] = run_id
        note = self.notes.new(
            *(str(run_id), session.id, assistant.id, utc_now()),
            metadata=dict(asked.metadata),
            kwargs=asked.kwargs(),
            multitask_strategy=asked.strategy,
        )

        async def before() -> None:
            if asked.after_seconds:
                await asyncio.sleep(asked.after_seconds)
            if asked.cancels_others:
                for other in others:
                    await self.until_done(other)

        return Job(
            *(note, asked, assistant.graph, config),
            on_change=self._upkeep.note,
            before=before,
            after=self._end,
            is_temporary=is_temporary,
            is_queued=bool(others) or session.is_running,
        )

    async def _session(
        self, asked: RunCreate, caller: Caller, access: Access, thread_id: str | None, labels: dict[str, str]
    ) -> Session:
        """The session of a thread, in which the caller may run, or one for this run."""
        if thread_id is None:
            if asked.command is not None and asked.command.resume is not None:
                raise HTTPException(400, "a run without a thread has nothing to resume; name its thread")
            return await self._open(access, caller, None, labels, **({} if asked.is_kept else _TEMPORARY))
        try:
            if isinstance(access, UserSessions):
                session = await access.acheck(thread_id)
            else:
                session = await access.aget(thread_id)
        except SessionBusy:
            if not asked.cancels_others:
                raise
            session = await access.aget(thread_id)
        except SessionNotFound:
            if asked.if_not_exists != "create":
                raise
            return await self._open(access, caller, thread_id, labels)
        await check_checkpoint(self._server, session.config(**asked.named_checkpoint()))
        if any(session.metadata.get(name) != value for name, value in labels.items()):
            session = await session.aupdate(metadata=labels)
        return session

    async def _open(
        self, access: Access, caller: Caller, thread_id: str | None, labels: dict[str, str], **options: Any
    ) -> Session:
        if isinstance(access, UserSessions):
            return await access.aopen(thread_id, metadata=labels, **options)
        return await access.aopen(thread_id, user_id=caller.user_id, metadata=labels, **options)

    async def _others(self, session: Session) -> list[RunNote]:
        """The runs of a session that have not ended."""
        if not session.is_running and not self._active_in(session.id):
            return []
        found = await self._list_active(session)
        if any(note.owner is None for note in found):  # another process has just begun it, or Python code has
            await asyncio.sleep(_NOTE_SECONDS)
            found = await self._list_active(session)
        return [note for note in found if note.owner is not None]

    async def _list_active(self, session: Session) -> list[RunNote]:
        found = await self._merged(session, await session.aruns(last=_LATEST))
        return [note for note in found if note.is_active]

    # Finding

    def _active(self) -> list[Job]:
        return [job for job in self._jobs.values() if job.note.is_active]

    def _active_in(self, thread_id: str) -> list[Job]:
        return [job for job in self._active() if job.note.thread_id == thread_id]

    async def find(self, session: Session, run_id: str) -> RunNote | None:
        """A run of a session, by this API or by Python code."""
        if (job := self._jobs.get(run_id)) is not None and job.note.thread_id == session.id:
            return None if job.note.is_hidden else job.note
        note = await self.notes.find(session.id, run_id)
        if note is not None and not note.is_active:
            return None if note.is_hidden else note
        last = _LATEST
        while True:
            runs = await session.aruns(last=last)
            recorded = next((run for run in runs if run.id == run_id), None)
            if recorded is not None or len(runs) < last:
                return await self._as_of_now(session, note, recorded)
            last *= 4  # it began earlier

    async def list_runs(self, session: Session, count: int, status: str | None = None) -> list[RunNote]:
        """The latest `count` runs of a session, or those with this status, the latest first."""
        last = count + 1
        while True:
            recorded = await session.aruns(last=last)
            since = recorded[0].started_at if len(recorded) == last else None  # all runs that began then or later
            merged = await self._merged(session, recorded, since)
            earliest = "" if since is None else since.isoformat()
            found = [each for each in merged if each.created_at >= earliest and status in (None, each.status)]
            if len(found) >= count or since is None:
                return found[:count]
            last *= 4  # some are hidden, or have another status

    async def _merged(self, session: Session, runs: Sequence[Run], since: datetime | None = None) -> list[RunNote]:
        """The latest runs of the record, and those that were noted, at `since` or later, as they are now."""
        notes = {note.run_id: note for note in await self.list_noted(session, since)}
        recorded = {run.id: run for run in runs}
        if since is not None:  # they may have waited long
            earlier = await self.notes.list_some(session.id, recorded.keys() - notes)
            notes |= {note.run_id: note for note in earlier}
        found = [await self._as_of_now(session, notes.get(id_), recorded.get(id_)) for id_ in {**recorded, **notes}]
        return sorted((note for note in found if note is not None), key=lambda note: note.created_at, reverse=True)

    async def list_noted(self, session: Session, since: datetime | None = None) -> list[RunNote]:
        """The runs of this API in a session, as they were noted, also hidden ones. Cheaper than `list_runs`.

        Args:
            since: without those of other processes that were noted before.
        """
        notes = {note.run_id: note for note in await self.notes.list_runs(session.id, since)}
        notes |= {id_: job.note for id_, job in self._jobs.items() if job.note.thread_id == session.id}
        return list(notes.values())

    async def _as_of_now(self, session: Session, note: RunNote | None, recorded: Run | None) -> RunNote | None:
        if note is None:
            return None if recorded is None else self._recorded(session, recorded)
        if note.is_hidden or (note.created_at < session.created_at.isoformat() and recorded is None):
            return None  # or it is of an earlier session of this id
        if note.is_abandoned(utc_now()):
            return await self._abandon(note)
        if note.status == "pending" and recorded is not None:
            return replace(note, status="running")
        return note

    def _recorded(self, session: Session, run: Run) -> RunNote:
        """A run that only the record has."""
        began = run.started_at.isoformat()
        return RunNote(
            run_id=run.id,
            thread_id=session.id,
            assistant_id=str(session.metadata.get("assistant_id") or assistants_of(self._server)[0].id),
            created_at=began,
            updated_at=began,
            status=_OUTCOMES.get(run.outcome, "interrupted"),  # type: ignore[arg-type]
            metadata=dict(run.metadata),
        )

    async def _abandon(self, note: RunNote) -> RunNote:
        """End a run whose process has died, for all who ask."""
        ended = note.ended("error", utc_now(), {"error": "ServerEnded", "message": DIED})
        await self.notes.put([ended])
        return ended

    # Ending

    async def cancel(self, note: RunNote, action: Action) -> None:
        """Cancel a run of any process. It may continue for a moment; see `until_done`."""
        job = self._jobs.get(note.run_id)
        if job is not None:
            job.cancel(action)
        elif note.is_active and note.owner is None:
            raise HTTPException(409, "this run was begun by another program, which alone can cancel it")
        elif note.is_active:
            await self.notes.order(note, Order(action))

    async def hide(self, note: RunNote) -> None:
        """Show a run that has ended no more. The session's record still has it."""
        if note.is_active:
            raise HTTPException(409, "the run has not ended; cancel it first")
        await self._hide(note)

    async def _hide(self, note: RunNote) -> None:
        if (job := self._jobs.get(note.run_id)) is None:
            await self.notes.put([replace(note, is_hidden=True)])
        else:
            job.note = replace(job.note, is_hidden=True)
            self._upkeep.note(job)  # after what is yet to be written of it
            await self._upkeep.flush()

    def cancel_soon(self, note: RunNote) -> None:
        """Interrupt a run, from a place that may not wait."""
        if (job := self._jobs.get(note.run_id)) is not None:
            job.cancel("interrupt")
        else:
            task = asyncio.ensure_future(self.notes.order(note, Order("interrupt")))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def until_done(self, note: RunNote) -> RunNote:
        """Wait until a run has ended, and what follows a cancellation is done. Returns it as ended."""
        async with aclosing(self.until_done_with_pauses(note)) as waiting:
            async for ended in waiting:
                if ended is not None:
                    return ended
        return note

    async def until_done_with_pauses(self, note: RunNote) -> AsyncGenerator[RunNote | None]:
        """The run as it has ended, when it has; before that ``None`` from time to time."""
        if (job := self._jobs.get(note.run_id)) is not None:
            while not job.done.is_set():
                try:
                    await asyncio.wait_for(job.done.wait(), PAUSE_SECONDS)
                except TimeoutError:
                    yield None
            yield job.note
            return
        found, paused = note, time.monotonic()
        while found.is_active:
            if found.is_abandoned(utc_now()):
                found = await self._abandon(found)
                break
            await asyncio.sleep(_POLL_SECONDS)
            found = await self.notes.find(note.thread_id, note.run_id) or note.ended("interrupted", utc_now())
            if time.monotonic() - paused > PAUSE_SECONDS:
                paused = time.monotonic()
                yield None
        yield found

    async def _end(self, job: Job) -> None:
        """What follows the end of a job."""
        if job.action == "rollback" and job.note.status == "interrupted":
            await self._sessions.checkpointer.adelete_for_runs([job.note.run_id])
            job.note = replace(job.note, is_hidden=True)
        if job.is_temporary:
            with suppress(SessionNotFound):  # its user was forgotten, or deleted the thread
                await self._sessions.adelete(job.note.thread_id)
        ended = [each for each in self._jobs.values() if not each.note.is_active]
        size = sum(each.log.size_bytes for each in ended)
        for each in ended[:-1]:
            if size <= _KEPT_BYTES and len(ended) < 1_000:
                break
            del self._jobs[each.note.run_id]
            size -= each.log.size_bytes

    async def flush(self) -> None:
        """Make the runs of this process known to the others now."""
        await self._upkeep.flush()

    async def close(self) -> None:
        """End all jobs of this process."""
        jobs = self._active()
        for job in jobs:
            job.cancel(None)
        for job in jobs:
            await job.done.wait()
        await self._upkeep.flush()

    # Following

    async def follow(self, note: RunNote, after: str | None) -> AsyncGenerator[Event | None]:
        """The events of a run after the one with this id, until its end; without an id from now on.

        ``None`` in longer pauses. Close the iterator after use.
        """
        job = self._jobs.get(note.run_id)
        if job is None:
            async with aclosing(self._follow_elsewhere(note, after)) as events:
                async for event in events:
                    yield event
            return
        seq = job.log.last_seq if after is None else position_of(after)[1]
        if job.shares_events and seq + 1 < job.log.first_seq:  # they are no more in memory
            for stored in (await self.notes.first_events(note))[1]:
                if seq < stored.seq < job.log.first_seq:
                    yield stored
                    seq = stored.seq
        async with aclosing(job.log.read(seq)) as found:
            async for event in found:
                yield event

    async def _follow_elsewhere(self, note: RunNote, after: str | None) -> AsyncGenerator[Event | None]:
        """The events of a run of another process, which writes them about ten times a second when somebody reads."""
        if note.is_active and not note.kwargs.get("resumable"):
            await self.notes.order(note, Order(share_events=True))
        since_ms = time.time_ns() // 1_000_000 if after is None else 0
        seq, paused = position_of(after)[1], time.monotonic()
        following, events = await self.notes.first_events(note)
        now: RunNote | None = note
        has_error = False  # among its events
        while True:
            for event in events:
                has_error |= event.name == "error"
                if event.seq > seq and event.at_ms >= since_ms:
                    yield event
                    seq, paused = event.seq, time.monotonic()
            if not events:
                if now is not None and now.is_abandoned(utc_now()):
                    now = await self._abandon(now)
                if now is None or not now.is_active:
                    if now is not None and now.error is not None and not has_error:
                        yield Event(seq + 1, time.time_ns() // 1_000_000, "error", json_bytes(now.error))
                    return
                if time.monotonic() - paused > PAUSE_SECONDS:
                    paused = time.monotonic()
                    yield None
                await asyncio.sleep(_POLL_SECONDS)
            following, events, now = await self.notes.next_events(note, following)

    # Results

    async def result(self, access: Access, note: RunNote) -> bytes:
        """What a client gets that waited for the end of a run: the values, the questions, or the error."""
        job = self._jobs.get(note.run_id)
        if job is not None and not note.is_hidden and (body := job.result.body()) is not None:
            return body
        if note.error is not None:
            return json_bytes({"__error__": note.error})
        session = await access.afind(note.thread_id)
        if session is None:  # it was temporary, or was deleted meanwhile
            return b"{}"
        state = await get_assistant(self._server, note.assistant_id).graph.aget_state(session.config())
        if state.interrupts:
            return json_bytes({"__interrupt__": list(state.interrupts)})
        return json_bytes(state.values or {})
