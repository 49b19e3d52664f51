"""Models at work: what they take and cost, and what they are saying before they have said it.

What is streamed is written down now and then as an ``incomplete`` message, never further behind than
the ``stream_flush`` setting, so that it is kept when the process dies; the whole message then takes
its place, or it stays incomplete.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, Generation

from session_middleware.models import Clock, NewId
from session_middleware.recording.active_run import ActiveRun, ModelCallInProgress, namespace_of, noted, since
from session_middleware.recording.messages import describe
from session_middleware.recording.prices import Tokens, load
from session_middleware.recording.usage import is_cached, model_in, text_in, told_beside, usage_of, with_usage
from session_middleware.recording.write_buffer import RecordBuffer
from session_middleware.storage.jsonable import is_a
from session_middleware.storage.record_entries import MessageEntry, ModelCallEntry


class Models:
    def __init__(self, journal: RecordBuffer, *, new_id: NewId, clock: Clock, flush_seconds: float) -> None:
        self._journal = journal
        self._new_id = new_id
        self._clock = clock
        self._flush_seconds = flush_seconds

    def start(self, trace: ActiveRun, run_id: UUID, metadata: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        given = options.get("invocation_params")
        model = text_in(metadata, "ls_model_name") or text_in(given, "model") or text_in(given, "model_name")
        trace.models[run_id] = ModelCallInProgress(
            trace=trace,
            id=str(run_id),
            started=time.perf_counter(),
            started_at=self._clock(),
            model=model,
            provider=text_in(metadata, "ls_provider"),
            namespace=namespace_of(metadata),
            node=noted(metadata, "langgraph_node"),
            step=noted(metadata, "langgraph_step"),
        )
        load()

    # Streaming

    def hear(self, trace: ActiveRun, run_id: UUID, token: Any, chunk: Any) -> None:
        asked = trace.models.get(run_id)
        if asked is None:
            return
        if asked.first_token_ms is None:
            asked.first_token_ms = since(asked.started)
        message = chunk.message if is_a(chunk, ChatGeneration) else None
        if asked.message_id is None:
            asked.message_id = str((message and message.id) or f"lc_run--{asked.id}")
        text = token if is_a(token, str) else str(message.text) if message is not None else ""
        if text:
            asked.parts.append(text)
            if asked.timer is None:
                self._set_timer(asked)

    def _set_timer(self, asked: ModelCallInProgress) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            asked.timer = threading.Timer(self._flush_seconds, self._flush, [asked])
            asked.timer.daemon = True
            asked.timer.start()
        else:
            asked.timer = loop.call_later(self._flush_seconds, self._flush, asked)

    def _flush(self, asked: ModelCallInProgress) -> None:
        """Write down what has been streamed so far."""
        asked.timer = None
        visit = asked.trace.visit
        try:
            with asked.trace.lock:  # a model's end must not be overtaken by the text of a moment before it
                seen = [] if asked.done else self._incomplete(asked, cut_off=False)
                if not seen:
                    return
                if asked.step is not None:
                    visit.heard_at[str(asked.message_id)] = asked.namespace.rpartition("|")[0], asked.step
                self._journal.keep(visit, seen)
                asked.flushed = True
            if visit.entries:  # else the run has written them
                self._journal.flush(visit)
        except Exception as error:  # noqa: BLE001  # nobody waits for this, and a fault here must not break a run
            self._journal.fault(error)

    def _incomplete(self, asked: ModelCallInProgress, *, cut_off: bool) -> list[MessageEntry]:
        """What is kept of what has been said so far, if anything is."""
        text = self._journal.keeping.begun(asked.text, cut_off=cut_off)
        seen = MessageEntry(
            message_id=str(asked.message_id),
            role="assistant",
            text=text,
            model=asked.model,
            checkpoint_ns=asked.namespace,
            complete=False,
        )
        return [seen] if text else []

    # Ends

    def end(self, trace: ActiveRun, run_id: UUID, response: Any) -> bool:
        """Take down what the model said and took; whether it was at work."""
        asked = self._finish(trace, run_id)
        if asked is None:
            return False
        message = _message_of(response, asked)
        (seen,) = describe([message], asked.namespace, new_id=self._new_id)
        cached = is_cached(message)
        tokens, marks = usage_of(message)
        if tokens == Tokens():
            tokens, marks = told_beside(response.llm_output)
        model = seen.model or asked.model or model_in(response.llm_output)
        seen, said = seen._replace(model=model, call=None), seen.message_id
        if cached and asked.id not in said:
            seen = seen._replace(message_id=f"lc_run--{asked.id}", again=said)
        if asked.flushed:
            trace.visit.unclaimed[seen.claim] = str(asked.message_id)
        if asked.node is None:
            self._journal.keep(trace.visit, [seen])
        else:
            trace.hear(seen)
        for other in list(trace.models.values()):
            other.inner.add(said)
        if said not in asked.inner:  # else it only hands on what a model said that it has asked itself
            call = _call(asked, model)._replace(message_id=said, marks=marks)
            self._journal.keep(trace.visit, [with_usage(call, tokens, cached=cached)])
        if not trace.visit.checkpointed and trace.visit.run_id != str(run_id):
            self._journal.flush(trace.visit)
        return True

    def fail(self, trace: ActiveRun, run_id: UUID, error: str) -> None:
        """Take down that it failed, and what it had said by then."""
        asked = self._finish(trace, run_id)
        if asked is None:
            return
        self._journal.keep(trace.visit, self._incomplete(asked, cut_off=True))
        self._journal.keep(trace.visit, [_call(asked, asked.model)._replace(error=error)])
        self._journal.flush(trace.visit)

    def cut_off(self, trace: ActiveRun) -> None:
        """The run has ended; what is still being said in it is cut off."""
        for run_id in list(trace.models):
            asked = self._finish(trace, run_id)
            if asked is not None and asked.text:
                self._journal.keep(trace.visit, self._incomplete(asked, cut_off=True))
                self._journal.keep(trace.visit, [_call(asked, asked.model)._replace(error="cut off")])

    def _finish(self, trace: ActiveRun, run_id: UUID) -> ModelCallInProgress | None:
        asked = trace.models.pop(run_id, None)
        if asked is not None:
            with trace.lock:
                asked.done = True
            if asked.timer is not None:
                asked.timer.cancel()
        return asked


def _message_of(response: Any, asked: ModelCallInProgress) -> AIMessage:
    """What was said, as a message, whatever kind of model said it."""
    first = next((generation for some in response.generations for generation in some), None)
    message = first.message if is_a(first, ChatGeneration) else None
    if is_a(message, AIMessage):
        return message if message.id else message.model_copy(update={"id": f"lc_run--{asked.id}"})
    text = str(message.text) if message is not None else first.text if is_a(first, Generation) else ""
    return AIMessage(text, id=(message and message.id) or f"lc_run--{asked.id}")


def _call(asked: ModelCallInProgress, model: str | None) -> ModelCallEntry:
    return ModelCallEntry(
        id=asked.id,
        model=model or asked.model,
        provider=asked.provider,
        first_token_ms=asked.first_token_ms,
        duration_ms=since(asked.started),
        checkpoint_ns=asked.namespace,
        node=asked.node,
        started_at=asked.started_at,
    )
