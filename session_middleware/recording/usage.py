"""Token counts of model calls, as messages, responses and callers report them, and the cost by genai-prices.

LangChain's `usage_metadata` comes first. Models that set none may report their provider's own counts, in a
message's `response_metadata` or a response's `llm_output`. A model or provider without an exact entry in the
price table has no cost.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from langchain_core.messages import AIMessage, BaseMessage

from session_middleware.storage.jsonable import is_a
from session_middleware.storage.record_entries import ModelCallEntry

_RAW = ("token_usage", "usage", "usage_metadata")  # keys of a provider's counts
_INPUT = ("input_tokens", "prompt_tokens", "prompt_token_count", "prompt_eval_count", "inputTokens")
_OUTPUT = ("output_tokens", "completion_tokens", "candidates_token_count", "eval_count", "outputTokens")
_INPUT_DETAILS = ("input_token_details", "input_tokens_details", "prompt_tokens_details")
_OUTPUT_DETAILS = ("output_token_details", "output_tokens_details", "completion_tokens_details")
_READ = ("cache_read", "cached_tokens")
_REASONING = ("reasoning", "reasoning_tokens")
_AUDIO = ("audio", "audio_tokens")
_OUTSIDE = ("cache_read_input_tokens", "cache_creation_input_tokens")  # Anthropic's raw counts exclude these from input
_WRITTEN = ("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")
_LIMIT = 2**53  # counts are below this
_MAX_UNPRICED = 1024

_unpriced: set[tuple[str | None, str]] = set()  # providers and models that the price table does not have
_loading = threading.Event()


class Tokens(NamedTuple):
    """The tokens of a call. `input` includes cached, written and audio input; `output` includes reasoning."""

    input: int | None = None
    output: int | None = None
    cached: int | None = None
    written: int | None = None  # to the cache, for any duration
    reasoning: int | None = None
    written_5m: int | None = None  # the part of `written` that is cached for five minutes
    written_1h: int | None = None
    audio_input: int | None = None
    audio_output: int | None = None


def count_tokens(usage: Any) -> tuple[Tokens, tuple[str, ...]]:
    """Return the counts of a usage under LangChain's or a provider's names, and marks; an invalid count is dropped."""
    if not _is_mapping(usage):
        return Tokens(), ()
    inputs, outputs = _details(usage, _INPUT_DETAILS), _details(usage, _OUTPUT_DETAILS)
    found = [
        *(_first(usage, _INPUT), _first(usage, _OUTPUT)),
        *(_first(inputs, _READ), inputs.get("cache_creation"), _first(outputs, _REASONING)),
        *(inputs.get(name) for name in _WRITTEN),
        *(_first(inputs, _AUDIO), _first(outputs, _AUDIO)),
    ]
    marks = () if all(count is None or is_count(count) for count in found) else ("invalid:tokens",)
    tokens = Tokens(*map(_count, found))
    if tokens.written_5m or tokens.written_1h:  # LangChain then reports 0 as their sum
        parts = (tokens.written_5m or 0) + (tokens.written_1h or 0)
        tokens = tokens._replace(written=max(tokens.written or 0, parts))
    if tokens.input is not None and any(is_count(usage.get(name)) for name in _OUTSIDE):
        read, written = (_count(usage.get(name)) or 0 for name in _OUTSIDE)
        five_minutes, one_hour = (_count(_details(usage, ("cache_creation",)).get(name)) for name in _WRITTEN)
        tokens = tokens._replace(cached=read, written=written, written_5m=five_minutes, written_1h=one_hour)
        tokens = tokens._replace(input=(tokens.input or 0) + read + written)
    return tokens, marks


def usage_of(message: BaseMessage) -> tuple[Tokens, tuple[str, ...]]:
    """Return the counts and marks of a message."""
    if not isinstance(message, AIMessage):
        return Tokens(), ()
    tokens, marks = count_tokens(message.usage_metadata)
    if tokens == Tokens() and not marks:
        tokens, _ = response_usage(message.response_metadata)
    return tokens, marks


def response_usage(output: Any) -> tuple[Tokens, tuple[str, ...]]:
    """Return the counts in a response's `llm_output` or a message's `response_metadata`."""
    if not _is_mapping(output):
        return Tokens(), ()
    counted = (count_tokens(output.get(name)) for name in _RAW)
    return next((found for found in counted if found[0] != Tokens()), (Tokens(), ()))


def model_in(metadata: Any) -> str | None:
    """Return the model's name in a message's `response_metadata` or a response's `llm_output`."""
    return text_in(metadata, "model_name") or text_in(metadata, "model")


def is_cached(message: BaseMessage) -> bool:
    """True for a message from LangChain's cache, which sets its cost to 0: no model was called."""
    usage: Any = message.usage_metadata if isinstance(message, AIMessage) else None
    cost = usage.get("total_cost") if _is_mapping(usage) else None
    return type(cost) in (int, float) and cost == 0


def reported_call(message: BaseMessage, tokens: Tokens, message_id: str, checkpoint_ns: str) -> ModelCallEntry | None:
    """Return the model call that a message with usage implies, for a call that no callback reported.

    Its id is the provider's response id, so copies of one message imply one call.
    """
    if tokens == Tokens():
        return None
    model, provider = model_in(message.response_metadata), text_in(message.response_metadata, "model_provider")
    response_id = None if is_cached(message) else text_in(message.response_metadata, "id")
    call = ModelCallEntry(
        response_id or message_id, model, provider, message_id=message_id, checkpoint_ns=checkpoint_ns
    )
    return with_usage(call, tokens, cached=is_cached(message))


def with_usage(call: ModelCallEntry, tokens: Tokens, *, cached: bool = False) -> ModelCallEntry:
    """Return the call with its tokens and cost; both are 0 for a `cached` message."""
    if cached:
        marks = (*call.marks, "cached")
        return call._replace(input_tokens=0, output_tokens=0, cost=lambda: 0.0, marks=marks)
    load_prices()
    return call._replace(
        input_tokens=tokens.input,
        output_tokens=tokens.output,
        cached_tokens=tokens.cached,
        reasoning_tokens=tokens.reasoning,
        cost=partial(cost_of, call.model, call.provider, tokens),
    )


def load_prices() -> None:
    """Load the price table on a thread, once per process: it is large, and the model call leaves time for it."""
    if not _loading.is_set():
        _loading.set()
        threading.Thread(target=_import_prices, name="session-prices", daemon=True).start()


def _import_prices() -> None:
    import genai_prices

    genai_prices.data_snapshot.get_snapshot()


def cost_of(model: str | None, provider: str | None, tokens: Tokens) -> float | None:
    """Return US dollars, or ``None`` if the model, its price or its tokens are unknown."""
    if model is None or tokens.input is None or tokens.output is None or (provider, model) in _unpriced:
        return None
    from genai_prices import Usage, calc_price

    details = {
        "cache_read_tokens": tokens.cached,
        "cache_write_tokens": tokens.written,
        "cache_write_5m_tokens": tokens.written_5m,
        "cache_write_1h_tokens": tokens.written_1h,
        "output_reasoning_tokens": tokens.reasoning,
    }
    if not (tokens.cached or tokens.written):  # the cached part of the audio is unknown
        details["input_audio_tokens"] = tokens.audio_input
    if not tokens.reasoning:
        details["output_audio_tokens"] = tokens.audio_output
    usage = Usage(input_tokens=tokens.input, output_tokens=tokens.output, **details)
    try:
        return float(calc_price(usage, model, provider_id=provider).total_price)
    except LookupError:
        if len(_unpriced) < _MAX_UNPRICED:
            _unpriced.add((provider, model))
        return None
    except ValueError:  # inconsistent counts, such as more cached than input tokens
        return None


def _is_mapping(value: Any) -> bool:
    return issubclass(type(value), Mapping)


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LIMIT


def _count(value: Any) -> int | None:
    return value if is_count(value) else None


def _details(usage: Mapping[str, Any], names: tuple[str, ...]) -> Mapping[str, Any]:
    return next((usage[name] for name in names if _is_mapping(usage.get(name))), {})


def _first(counts: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((counts[name] for name in names if counts.get(name) is not None), None)


def text_in(fields: Any, name: str) -> str | None:
    """Return a non-empty text of a mapping. No method of a value of another class is called."""
    value = fields.get(name) if _is_mapping(fields) else None
    return str.__str__(value) if is_a(value, str) and value else None
