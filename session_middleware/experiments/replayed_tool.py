"""A tool that looks like another one, and answers from the record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self, TypeAlias

from langchain_core.tools import BaseTool
from pydantic import PrivateAttr

from session_middleware.display.text import shortened
from session_middleware.experiments.answers import result_of
from session_middleware.models import ToolCall
from session_middleware.recording.messages import error_text

Take: TypeAlias = Callable[[str, Any], ToolCall | None]  # of a name and arguments; None: execute the tool
Reject: TypeAlias = Callable[[ToolCall, str], None]  # of a recorded call, whose arguments are not valid any more


class ReplayedTool(BaseTool):
    """The fields of the original, its validation and its callbacks, but not its function."""

    _original: BaseTool = PrivateAttr()
    _take: Take = PrivateAttr()
    _reject: Reject = PrivateAttr()
    _answer: ToolCall | None = PrivateAttr(default=None)  # to the call in progress, in a copy of the tool

    @classmethod
    def of(cls, original: BaseTool, take: Take, reject: Reject) -> Self:
        replayed = cls(**{name: getattr(original, name) for name in BaseTool.model_fields})
        replayed._original, replayed._take, replayed._reject = original, take, reject
        return replayed

    # What LangChain and LangGraph look at to inject the state, the store and the runtime

    @property
    def func(self) -> Any:
        return getattr(self._original, "func", None)

    @property
    def coroutine(self) -> Any:
        return getattr(self._original, "coroutine", None)

    @property
    def _injected_args_keys(self) -> frozenset[str]:
        return self._original._injected_args_keys

    def get_input_schema(self, config: Any = None) -> Any:
        return self._original.get_input_schema(config)

    # Execution

    def run(self, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        answering = self._answering(tool_input)
        if answering is None:
            return self._original.run(tool_input, *args, **kwargs)
        return BaseTool.run(answering, tool_input, *args, **kwargs)

    async def arun(self, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        answering = self._answering(tool_input)
        if answering is None:
            return await self._original.arun(tool_input, *args, **kwargs)
        return await BaseTool.arun(answering, tool_input, *args, **kwargs)

    def _answering(self, tool_input: Any) -> Self | None:
        """A copy that has the answer to this call. Arguments are compared as the recorder receives them."""
        arguments = self._filter_injected_args(tool_input) if isinstance(tool_input, dict) else tool_input
        answer = self._take(self.name, arguments)
        if answer is None:
            return None
        copied = self.model_copy()
        copied._answer = answer
        return copied

    def _to_args_and_kwargs(self, tool_input: Any, tool_call_id: str | None) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Validate the arguments. An invalid call was recorded with an error, which is raised again here."""
        assert self._answer is not None
        try:
            super()._to_args_and_kwargs(tool_input, tool_call_id)
        except ValueError as error:
            if self._answer.status == "ok":
                self._reject(
                    self._answer, f"its arguments are not valid any more ({shortened(error_text(error), 200)})"
                )
            raise
        return (), {"tool_call_id": tool_call_id}

    def _run(self, *, tool_call_id: str | None) -> Any:
        assert self._answer is not None
        result = result_of(self._answer, tool_call_id)
        return (result, self._answer.artifact) if self.response_format == "content_and_artifact" else result

    async def _arun(self, *, tool_call_id: str | None) -> Any:
        return self._run(tool_call_id=tool_call_id)
