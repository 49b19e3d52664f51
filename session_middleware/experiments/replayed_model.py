"""A chat model that answers from the record."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import PrivateAttr


class ReplayedModel(BaseChatModel):
    """Answers with the next recorded message, whatever it is asked."""

    _next: Callable[[], AIMessage] = PrivateAttr()

    def __init__(self, next_answer: Callable[[], AIMessage]) -> None:
        super().__init__(cache=False)
        self._next = next_answer

    @property
    def _llm_type(self) -> str:
        return "replay"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Self:
        """The model itself: the recorded messages ask for the recorded tools."""
        return self

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._next())])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        """Stream a text by words, then the rest of the message."""
        for part in _parts(self._next()):
            chunk = ChatGenerationChunk(message=part)
            if run_manager is not None:
                run_manager.on_llm_new_token(str(part.text), chunk=chunk)
            yield chunk


def _parts(answer: AIMessage) -> Iterator[AIMessageChunk]:
    words = re.findall(r"\S+\s*|\s+", answer.content) if isinstance(answer.content, str) else []
    yield from (AIMessageChunk(content=word) for word in words)
    calls = [*answer.tool_calls, *answer.invalid_tool_calls]
    yield AIMessageChunk(
        content="" if isinstance(answer.content, str) else answer.content,
        additional_kwargs=answer.additional_kwargs,
        response_metadata=answer.response_metadata,
        usage_metadata=answer.usage_metadata,
        tool_call_chunks=[_chunk(call, index) for index, call in enumerate(calls)],
        chunk_position="last",
    )


def _chunk(call: Any, index: int) -> Any:
    arguments = call["args"] if isinstance(call["args"], str | None) else json.dumps(call["args"])
    return {"name": call["name"], "args": arguments, "id": call["id"], "index": index, "type": "tool_call_chunk"}
