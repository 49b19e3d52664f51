"""Running an agent again with the recorded answers of its tools and its model.

A recorded tool call answers one call with its name and arguments. Calls with equal arguments are answered in the
order of the record. A call that is not on record is not executed, unless the caller asks for it, and the report lists
it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.tools import BaseTool, tool
from langgraph.errors import GraphBubbleUp

from session_middleware.display.text import call_text, plural
from session_middleware.errors import InvalidArgument, SessionError
from session_middleware.experiments.answers import is_withheld, problem_of
from session_middleware.experiments.current_branch import current_branch
from session_middleware.experiments.differences import key_of, likeness
from session_middleware.experiments.replay_report import MadeCall, ReplayReport, report_of
from session_middleware.experiments.replayed_model import ReplayedModel
from session_middleware.experiments.replayed_tool import ReplayedTool
from session_middleware.models import ToolCall
from session_middleware.recording.files import restore_files
from session_middleware.storage.jsonable import plain

if TYPE_CHECKING:
    from session_middleware.session import Session

OnMissing: TypeAlias = Literal["refuse", "run"]

_ASIDE = frozenset({"aside", "resume"})  # flags of messages that are not of the conversation


class NotOnRecord(SessionError, LookupError, GraphBubbleUp):
    """A replayed run called a tool or a model, and the record has no answer. Nothing was executed.

    LangGraph does not give this exception to a node's error handling: it ends the run.
    """

    def __init__(self, session_id: str, problem: str, *, advice: str) -> None:
        self.session_id = session_id
        super().__init__(f"replay of session {session_id!r}: {problem}; {advice}")


class Replay:
    """The recorded answers of a session for one run of an agent. Create another one to run again."""

    def __init__(
        self,
        session_id: str,
        calls: Sequence[ToolCall],
        answers: Sequence[AIMessage],
        inputs: Sequence[HumanMessage],
        *,
        redacted: Callable[[Any], Any],
        on_missing: OnMissing,
    ) -> None:
        self.session_id, self.on_missing = session_id, on_missing
        self.inputs = list(inputs)  # the messages of users, in order, without their ids
        self._calls = list(calls)
        self._answers = list(answers)
        self._redacted = redacted
        self._made: list[MadeCall] = []
        self._used: set[int] = set()  # the seqs of recorded calls that have answered
        self._asked: int | None = None  # how often the model was; None: there is no such model
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        parts = plural(len(self.inputs), "input"), plural(len(self._calls), "tool call")
        return f"<Replay of {self.session_id!r}: {', '.join(parts)}, {plural(len(self._answers), 'answer')} of models>"

    def tools(self, tools: Sequence[BaseTool | Callable[..., Any] | dict[str, Any]]) -> list[Any]:
        """Tools with the same names and schemas that answer from the record, and do not execute the given ones.

        A dict, which names a tool that a model's provider executes, is returned unchanged. A tool raises the errors
        that were recorded: Python's own and ``ToolException`` with their class, others as a `RecordedError` of the
        same name. Arguments are validated as the given tool does.

        Raises:
            NotOnRecord: by a tool: the record has no answer to a call, and ``on_missing`` is ``"refuse"``.
        """
        return [each if isinstance(each, dict) else self._replayed(each) for each in tools]

    def _replayed(self, given: BaseTool | Callable[..., Any]) -> ReplayedTool:
        if not isinstance(given, BaseTool) and not callable(given):
            raise InvalidArgument("tools", given, wanted="a list of tools, or of functions")
        return ReplayedTool.of(given if isinstance(given, BaseTool) else tool(given), self._take, self._reject)

    def model(self) -> ReplayedModel:
        """A chat model that answers with the recorded assistant messages, in order, whatever it is asked.

        It takes tools and streams. Its answers cost nothing, as those from LangChain's cache. After the last one it
        raises `NotOnRecord`.
        """
        self._asked = self._asked or 0
        return ReplayedModel(self._next_answer)

    def report(self) -> ReplayReport:
        """Where the run has departed from the record so far."""
        with self._lock:
            return report_of(self.session_id, self._calls, self._made, answers=len(self._answers), asked=self._asked)

    def _next_answer(self) -> AIMessage:
        with self._lock:
            number = self._asked or 0
            self._asked = number + 1
        if number < len(self._answers):
            return self._answers[number].model_copy()
        problem = f"a model was called for the {number + 1}. time, and the record has {plural(number, 'answer')}"
        raise NotOnRecord(self.session_id, problem, advice="compare the run with the record by print(replay.report())")

    def _take(self, name: str, arguments: Any) -> ToolCall | None:
        """The recorded call that answers this one, and from now on no other; ``None``: execute the tool."""
        made = MadeCall(name=name, arguments=plain(arguments))
        with self._lock:
            found = self._find(made)
            problem = "it is not on record" if found is None else problem_of(found)
            if found is not None:
                self._used.add(found.seq)
            self._made.append(made.model_copy(update={"answered_by": found, "problem": problem}))
        if problem is None or self.on_missing == "run":
            return found if problem is None else None
        nearest = "" if found else self._nearest(made)
        raise NotOnRecord(
            self.session_id,
            f"{call_text(name, arguments)} was not executed, because {problem}{nearest}",
            advice="execute such calls with sessions.replay(…, on_missing='run'), or correct the agent",
        )

    def _reject(self, call: ToolCall, problem: str) -> None:
        """Note that the tool did not accept the arguments that the record has a result for."""
        with self._lock:
            place = next(place for place, made in enumerate(self._made) if made.answered_by is call)
            self._made[place] = self._made[place].model_copy(update={"problem": problem})

    def _find(self, made: MadeCall) -> ToolCall | None:
        """The first recorded call with this name and these arguments that has not answered, or one without arguments.

        Calls that were cut off before they had a result come last: the record may have them again.
        """
        named = [call for call in self._calls if call.name == made.name and call.seq not in self._used]
        named.sort(key=lambda call: problem_of(call) is not None)
        keys = {key_of(made.arguments), key_of(self._redacted(made.arguments))}
        equal = (call for call in named if key_of(call.arguments) in keys)
        return next(equal, None) or next((call for call in named if is_withheld(call, "arguments")), None)

    def _nearest(self, made: MadeCall) -> str:
        """The recorded call that is the most similar, as a part of a sentence."""

        def by(call: ToolCall) -> tuple[bool, float, bool]:
            return call.name == made.name, likeness(call.arguments, made.arguments), call.seq not in self._used

        nearest = max(self._calls, key=by, default=None)
        if nearest is None:
            return ""
        place = f"{call_text(nearest.name, nearest.arguments)} (seq {nearest.seq})"
        if nearest.name == made.name and key_of(nearest.arguments) == key_of(made.arguments):
            return f" once more: {place} has answered already"
        is_redacted = any(flag.startswith("redacted") for flag in nearest.flags)
        note = ", which is redacted: open Sessions with the same redact= setting" if is_redacted else ""
        return f"; the nearest recorded call is {place}{note}"


def replay_of(session: Session, redacted: Callable[[Any], Any], on_missing: OnMissing) -> Replay:
    """Read the current branch of a session's record."""
    said, calls = current_branch(session)
    restored = partial(restore_files, read=session.file)
    calls = [
        call.model_copy(update={"result": restored(call.result), "artifact": restored(call.artifact)}) for call in calls
    ]
    answered = {call.message_id for call in session.model_calls()} & {message.message_id for message in said}
    history = session.history()
    answers = [
        _unpriced(history.to_message(message))
        for message in said
        if message.role == "assistant" and message.status == "complete"
        if not answered or message.message_id in answered
    ]
    inputs = [
        _without_id(history.to_message(message))
        for message in said
        if message.role == "user" and not message.checkpoint_ns and _ASIDE.isdisjoint(message.flags)
    ]
    return Replay(session.id, calls, answers, inputs, redacted=redacted, on_missing=on_missing)


def _without_id(message: BaseMessage) -> Any:
    return message.model_copy(update={"id": None})


def _unpriced(message: BaseMessage) -> Any:
    """The answer marked as LangChain's cache marks one: no model was called, and there is no cost."""
    used = getattr(message, "usage_metadata", None) or {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    return message.model_copy(update={"id": None, "usage_metadata": {**used, "total_cost": 0}})
