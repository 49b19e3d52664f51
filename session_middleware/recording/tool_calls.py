"""Tools at work: each execution is down before the tool runs, and closed with what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from session_middleware.recording.active_run import ActiveRun, Tool, namespace_of, noted, since
from session_middleware.recording.messages import Outcome
from session_middleware.recording.write_buffer import RecordBuffer
from session_middleware.storage.jsonable import to_json
from session_middleware.storage.record_entries import ToolEnd, ToolStart


class Tools:
    def __init__(self, journal: RecordBuffer) -> None:
        self._journal = journal

    def start(
        self,
        trace: ActiveRun,
        run_id: UUID,
        name: str,
        arguments: Any,
        call_id: str | None,
        metadata: Mapping[str, Any],
    ) -> None:
        """Take down the start, unless it was foretold; it is to be written before the tool runs."""
        namespace = namespace_of(metadata)
        foretold = trace.foretold.pop((namespace, call_id or ""), None)
        trace.tools[run_id] = Tool(name, foretold.execution_id if foretold else str(run_id))
        if call_id:
            with trace.lock:
                trace.executed[namespace, call_id] += 1
        if foretold is not None and to_json(foretold.arguments) == to_json(arguments):
            return
        start = ToolStart(
            execution_id=trace.tools[run_id].execution_id,
            tool_call_id=call_id,
            name=name,
            arguments=arguments,
            checkpoint_ns=namespace.rpartition("|")[0],
            node=noted(metadata, "langgraph_node"),
            message_id=trace.asked_by(namespace, call_id, arguments) if call_id else None,
            corrects=foretold is not None,
        )
        self._journal.keep(trace.visit, [*trace.take_said(None), start])

    def end(self, trace: ActiveRun, run_id: UUID, outcome: Outcome) -> None:
        tool = trace.tools.pop(run_id, None)
        if tool is None:
            return
        end = ToolEnd(
            execution_id=tool.execution_id,
            status=outcome.status,
            result=outcome.result,
            error=outcome.error,
            duration_ms=since(tool.started),
            artifact=outcome.artifact,
            name=tool.name,
            files=outcome.files,
        )
        self._journal.keep(trace.visit, [end])
        if trace.visit.run_id != str(run_id) and (not trace.visit.puts or trace.tools):
            self._journal.flush(trace.visit)  # else with the writes of its node, which are stored at once
