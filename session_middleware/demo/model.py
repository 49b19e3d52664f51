"""A chat model that needs no key: LangChain's interface around the decisions of `script`.

It is deterministic and honest about what it is, and it behaves like a provider's model where that
matters to sessions: it binds tools, streams tokens, names itself and counts tokens (by estimate).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ToolCall
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from session_middleware.demo import script

NAME = "scripted-1"
_CHARACTERS_PER_TOKEN = 4  # the usual rule of thumb for English


class ScriptedModel(BaseChatModel):
    """Decides by rules from the last human message. Token counts are estimates: characters / 4."""

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | None = None,  # noqa: ARG002 - the interface's; the script chooses for itself
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,  # noqa: ARG002 - the interface's; the script never runs on
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002 - nothing happens on the way
        **kwargs: Any,
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=_reply(messages, kwargs))])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,  # noqa: ARG002 - as above
        **kwargs: Any,
    ) -> ChatResult:
        return self._generate(messages, stop, **kwargs)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,  # noqa: ARG002 - as above
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for chunk in _chunks(_reply(messages, kwargs)):
            if run_manager is not None:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,  # noqa: ARG002 - as above
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in _chunks(_reply(messages, kwargs)):
            if run_manager is not None:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    @property
    def _llm_type(self) -> str:
        return "scripted"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model_name": NAME}


def _reply(messages: Sequence[BaseMessage], kwargs: dict[str, Any]) -> AIMessage:
    tools = [tool["function"]["name"] for tool in kwargs.get("tools", ())]
    reply = script.decide(messages, tools)
    calls = []
    if reply.tool is not None:
        calls.append(ToolCall(name=reply.tool, args=reply.arguments, id=_call_id(messages)))
    return AIMessage(
        reply.text,
        tool_calls=calls,
        usage_metadata=_usage(messages, f"{reply.text}{reply.tool or ''}{reply.arguments or ''}"),
        response_metadata={"model_name": NAME},
    )


def _call_id(messages: Sequence[BaseMessage]) -> str:
    """The same history gives the same id, and no two histories of a session do."""
    digest = hashlib.sha256()
    for message in messages:
        digest.update(f"{message.type}\0{message.id}\0{message.text}\0".encode("utf-8", "replace"))
    return f"call_{digest.hexdigest()[:12]}"


def _usage(messages: Sequence[BaseMessage], said: str) -> UsageMetadata:
    read = sum(len(message.text) for message in messages)
    counts = (_tokens(read), _tokens(len(said)))
    return UsageMetadata(input_tokens=counts[0], output_tokens=counts[1], total_tokens=sum(counts))


def _tokens(characters: int) -> int:
    return -(-characters // _CHARACTERS_PER_TOKEN)


def _chunks(reply: AIMessage) -> Iterator[ChatGenerationChunk]:
    """The text word by word; calls, usage and name come once, at the end, since merging adds them up."""
    for word in re.findall(r"\s*\S+\s*$|\s*\S+", str(reply.content)):
        yield ChatGenerationChunk(message=AIMessageChunk(content=word))
    yield ChatGenerationChunk(
        message=AIMessageChunk(
            content="",
            tool_calls=reply.tool_calls,
            usage_metadata=reply.usage_metadata,
            response_metadata=reply.response_metadata,
            chunk_position="last",
        )
    )
