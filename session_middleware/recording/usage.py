"""What model calls took, as their messages, results and callers tell it.

LangChain's `usage_metadata` comes first. Where a model gives none, there are the counts that its provider
sent, in a message's `response_metadata` or a result's `llm_output`, under names of the provider's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage

from session_middleware.recording.prices import Tokens, cost_of, load
from session_middleware.storage.jsonable import is_a
from session_middleware.storage.record_entries import ModelCallEntry

_RAW = ("token_usage", "usage", "usage_metadata")  # where providers' own counts are
_INPUT = ("input_tokens", "prompt_tokens", "prompt_token_count", "prompt_eval_count", "inputTokens")
_OUTPUT = ("output_tokens", "completion_tokens", "candidates_token_count", "eval_count", "outputTokens")
_INPUT_DETAILS = ("input_token_details", "input_tokens_details", "prompt_tokens_details")
_OUTPUT_DETAILS = ("output_token_details", "output_tokens_details", "completion_tokens_details")
_READ = ("cache_read", "cached_tokens")
_REASONING = ("reasoning", "reasoning_tokens")
_AUDIO = ("audio", "audio_tokens")
_OUTSIDE = ("cache_read_input_tokens", "cache_creation_input_tokens")  # Anthropic's own: no part of its input
_KEPT = ("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")  # and for how long
_MOST = 2**53  # what a count is below


def count_tokens(usage: Any) -> tuple[Tokens, tuple[str, ...]]:
    """The counts of a usage, in LangChain's names or a provider's; a count that is none is left out, with a mark."""
    if not _is_mapping(usage):
        return Tokens(), ()
    given, answered = _details(usage, _INPUT_DETAILS), _details(usage, _OUTPUT_DETAILS)
    found = [
        *(_first(usage, _INPUT), _first(usage, _OUTPUT)),
        *(_first(given, _READ), given.get("cache_creation"), _first(answered, _REASONING)),
        *(given.get(name) for name in _KEPT),
        *(_first(given, _AUDIO), _first(answered, _AUDIO)),
    ]
    counts = [count if is_count(count) else None for count in found]
    marks = () if all(count is None or is_count(count) for count in found) else ("invalid:tokens",)
    tokens = Tokens(*counts)
    if tokens.written_5m or tokens.written_1h:  # then LangChain's sum of both is 0
        parts = (tokens.written_5m or 0) + (tokens.written_1h or 0)
        tokens = tokens._replace(written=max(tokens.written or 0, parts))
    if tokens.input is not None and any(is_count(usage.get(name)) for name in _OUTSIDE):
        read, written = (count if is_count(count := usage.get(name)) else 0 for name in _OUTSIDE)
        kept = [count if is_count(count := _details(usage, ("cache_creation",)).get(name)) else None for name in _KEPT]
        tokens = tokens._replace(cached=read, written=written, written_5m=kept[0], written_1h=kept[1])
        tokens = tokens._replace(input=(tokens.input or 0) + read + written)
    return tokens, marks


def usage_of(message: BaseMessage) -> tuple[Tokens, tuple[str, ...]]:
    """What a message says that it took."""
    tokens, marks = count_tokens(message.usage_metadata if isinstance(message, AIMessage) else None)
    if tokens == Tokens() and not marks and isinstance(message, AIMessage):
        tokens, _ = told_beside(message.response_metadata)
    return tokens, marks


def told_beside(output: Any) -> tuple[Tokens, tuple[str, ...]]:
    """What a result's `llm_output` or a message's `response_metadata` says, where the message says nothing."""
    if not _is_mapping(output):
        return Tokens(), ()
    counted = (count_tokens(output.get(name)) for name in _RAW)
    return next((found for found in counted if found[0] != Tokens()), (Tokens(), ()))


def model_in(metadata: Any) -> str | None:
    """The model that a message's `response_metadata` or a result's `llm_output` names."""
    return text_in(metadata, "model_name") or text_in(metadata, "model")


def is_cached(message: BaseMessage) -> bool:
    """Whether it is from LangChain's cache, which says so by a cost of 0: no model was called for it."""
    usage: Any = message.usage_metadata if isinstance(message, AIMessage) else None
    cost = usage.get("total_cost") if _is_mapping(usage) else None
    return type(cost) in (int, float) and cost == 0


def call_told_by(message: BaseMessage, tokens: Tokens, message_id: str, checkpoint_ns: str) -> ModelCallEntry | None:
    """The model call that a message with usage comes from, for where nobody has seen that call.

    Its id is the provider's of the answer, so that copies of one answer tell of one call.
    """
    if tokens == Tokens():
        return None
    model, provider = model_in(message.response_metadata), text_in(message.response_metadata, "model_provider")
    own_id = None if is_cached(message) else text_in(message.response_metadata, "id")
    call = ModelCallEntry(own_id or message_id, model, provider, message_id=message_id, checkpoint_ns=checkpoint_ns)
    return with_usage(call, tokens, cached=is_cached(message))


def with_usage(call: ModelCallEntry, tokens: Tokens, *, cached: bool = False) -> ModelCallEntry:
    """The call with what it took and what that costs: nothing, where the answer was `cached`."""
    if cached:
        marks = (*call.marks, "cached")
        return call._replace(input_tokens=0, output_tokens=0, cost=lambda: 0.0, marks=marks)
    load()
    return call._replace(
        input_tokens=tokens.input,
        output_tokens=tokens.output,
        cached_tokens=tokens.cached,
        reasoning_tokens=tokens.reasoning,
        cost=partial(cost_of, call.model, call.provider, tokens),
    )


def _is_mapping(value: Any) -> bool:
    return issubclass(type(value), Mapping)


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST


def _details(usage: Mapping[str, Any], names: tuple[str, ...]) -> Mapping[str, Any]:
    return next((usage[name] for name in names if _is_mapping(usage.get(name))), {})


def _first(counts: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((counts[name] for name in names if counts.get(name) is not None), None)


def text_in(fields: Any, name: str) -> str | None:
    """The text of that name; a value of any other class is asked nothing."""
    value = fields.get(name) if _is_mapping(fields) else None
    return str.__str__(value) if is_a(value, str) and value else None
