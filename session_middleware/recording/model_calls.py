"""Recording of model calls: usage and cost, and streamed text before the message is complete.

A partial message is recorded as ``incomplete``, at most ``stream_flush`` after its text was streamed, so
it survives a crash. The complete message then replaces it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, Generation

from session_middleware.recording.active_run import ActiveRun, ModelCallInProgress, elapsed_ms, node_of
from session_middleware.recording.usage import answered_call, is_cached, load_prices, text_in
from session_middleware.recording.write_buffer import RecordBuffer
from session_middleware.storage.jsonable import is_a
from session_middleware.storage.record_entries import MessageEntry, ModelCallEntry


class ModelCallRecorder:
    def __init__(self, buffer: RecordBuffer, *, flush_seconds: float) -> None:
        self._buffer = buffer
        self._flush_seconds = flush_seconds

    def start(
        self, run: ActiveRun, run_id: UUID, class_name: str, metadata: Mapping[str, Any], options: Mapping[str, Any]
    ) -> None:
        node = node_of(metadata, run)
        model = text_in(metadata, "ls_model_name") or text_in(options.get("invocation_params"), "model", "model_name")
        entry = ModelCallEntry(str(run_id), model, text_in(metadata, "ls_provider"), started_at=self._buffer.clock())
        entry = entry._replace(checkpoint_ns=node.namespace, node=node.name)
        run.models[run_id] = ModelCallInProgress(run, entry, class_name, node)
        load_prices()

    # Streaming

    def add_token(self, run: ActiveRun, run_id: UUID, token: Any, chunk: Any) -> None:
        call = run.models.get(run_id)
        if call is None:
            return
        if call.entry.first_token_ms is None:
            call.entry = call.entry._replace(first_token_ms=elapsed_ms(call.started))
        message = chunk.message if is_a(chunk, ChatGeneration) else None
        if call.message_id is None:
            call.message_id = str((message and message.id) or call.default_message_id)
        text = token if is_a(token, str) else str(message.text) if message is not None else ""
        if text:
            call.parts.append(text)
            if call.timer is None:
                self._set_timer(call)

    def _set_timer(self, call: ModelCallInProgress) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            call.timer = threading.Timer(self._flush_seconds, self._flush, [call])
            call.timer.daemon = True
            call.timer.start()
        else:
            call.timer = loop.call_later(self._flush_seconds, self._flush, call)

    def _flush(self, call: ModelCallInProgress) -> None:
        """Record the text that has been streamed so far."""
        call.timer = None
        context = call.run.context
        try:
            with call.run.lock:  # the partial text must not be recorded after the complete message
                partial = [] if call.is_done else self._partial(call, cut_off=False)
                if not partial:
                    return
                if call.node.step is not None:
                    context.notes.output_steps[str(call.message_id)] = call.node.graph_namespace, call.node.step
                self._buffer.add(context, partial)
                call.is_flushed = True
            if context.notes.entries:  # otherwise the run has written them already
                self._buffer.flush(context)
        except Exception as error:  # noqa: BLE001  # no caller waits for this, and a fault here must not break a run
            self._buffer.fault(error)

    def _partial(self, call: ModelCallInProgress, *, cut_off: bool) -> list[MessageEntry]:
        """Return an incomplete message with the recordable part of the streamed text, or an empty list."""
        text = self._buffer.redaction.partial_text("".join(call.parts), cut_off=cut_off)
        message = MessageEntry(
            message_id=str(call.message_id),
            role="assistant",
            text=text,
            model=call.entry.model,
            checkpoint_ns=call.node.namespace,
            complete=False,
        )
        return [message] if text else []

    # Ends

    def end(self, run: ActiveRun, run_id: UUID, response: Any) -> bool:
        """Record the message and the usage of a finished call. Returns whether the call was in progress."""
        call = self._finish(run, run_id)
        if call is None:
            return False
        message = _message_of(response, call)
        (entry,) = self._buffer.describe([message], call.node.namespace)
        done = answered_call(call.entry, message, response.llm_output, class_name=call.class_name)
        entry, original_id = entry._replace(model=done.model, call=None), entry.message_id
        if is_cached(message) and call.entry.id not in original_id:
            entry = entry._replace(message_id=call.default_message_id, again=original_id)
        if call.is_flushed:
            run.context.notes.unclaimed[entry.claim] = str(call.message_id)
        if call.node.name is None:
            self._buffer.add(run.context, [entry])
        else:
            with run.lock:
                run.pending_output.append(entry)
                run.index_requests([entry])
        for other in list(run.models.values()):
            other.inner_ids.add(original_id)
        if original_id not in call.inner_ids:  # a wrapper that returns another model's message made no call itself
            self._buffer.add(run.context, [done._replace(duration_ms=elapsed_ms(call.started))])
        if not run.context.checkpointed and run.context.run_id != str(run_id):
            self._buffer.flush(run.context)
        return True

    def fail(self, run: ActiveRun, run_id: UUID, error: str) -> None:
        """Record a failed call, and the text that was streamed before the failure."""
        if (call := self._finish(run, run_id)) is not None:
            self._add_failed(call, error)
            self._buffer.flush(run.context)

    def cut_off(self, run: ActiveRun) -> None:
        """Record the partial messages of calls that are in progress when their run ends."""
        for run_id in list(run.models):
            call = self._finish(run, run_id)
            if call is not None and call.parts:
                self._add_failed(call, "cut off")

    def _add_failed(self, call: ModelCallInProgress, error: str) -> None:
        entry = call.entry._replace(error=error, duration_ms=elapsed_ms(call.started))
        self._buffer.add(call.run.context, [*self._partial(call, cut_off=True), entry])

    def _finish(self, run: ActiveRun, run_id: UUID) -> ModelCallInProgress | None:
        call = run.models.pop(run_id, None)
        if call is not None:
            with run.lock:
                call.is_done = True
            if call.timer is not None:
                call.timer.cancel()
        return call


def _message_of(response: Any, call: ModelCallInProgress) -> AIMessage:
    """Return the first generation as a message, whatever the kind of the model."""
    first = next((generation for some in response.generations for generation in some), None)
    message = first.message if is_a(first, ChatGeneration) else None
    if is_a(message, AIMessage):
        return message if message.id else message.model_copy(update={"id": call.default_message_id})
    text = str(message.text) if message is not None else first.text if is_a(first, Generation) else ""
    return AIMessage(text, id=(message and message.id) or call.default_message_id)
