"""Token counts of model calls, as messages, responses and callers report them, and the cost by genai-prices.

LangChain's `usage_metadata` comes first. Models that set none may report their provider's own counts, in a
message's `response_metadata` or a response's `llm_output`. A model or provider without an exact entry in the
price table has no cost.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, cast

from langchain_core.messages import AIMessage, BaseMessage
from pydantic import BaseModel

from session_middleware.errors import InvalidArgument
from session_middleware.storage.record_entries import ModelCallEntry
from session_middleware.storage.validation import check_kind

_RAW = ("token_usage", "usage", "usage_metadata")  # keys of a provider's counts
_INPUT_DETAILS = ("input_token_details", "input_tokens_details", "prompt_tokens_details")
_OUTPUT_DETAILS = ("output_token_details", "output_tokens_details", "completion_tokens_details")
_COUNTS = {  # for each field of `Tokens`: the keys of the details that contain it (none: the usage), and its own keys
    "input": ((), ("input_tokens", "prompt_tokens", "prompt_token_count", "prompt_eval_count", "inputTokens")),
    "output": ((), ("output_tokens", "completion_tokens", "candidates_token_count", "eval_count", "outputTokens")),
    "cached": (_INPUT_DETAILS, ("cache_read", "cached_tokens")),
    "written": (_INPUT_DETAILS, ("cache_creation",)),
    "reasoning": (_OUTPUT_DETAILS, ("reasoning", "reasoning_tokens")),
    "written_5m": (_INPUT_DETAILS, ("ephemeral_5m_input_tokens",)),
    "written_1h": (_INPUT_DETAILS, ("ephemeral_1h_input_tokens",)),
    "audio_input": (_INPUT_DETAILS, ("audio", "audio_tokens")),
    "audio_output": (_OUTPUT_DETAILS, ("audio", "audio_tokens")),
}
_PARTS: tuple[tuple[str, ...], ...] = ((), _INPUT_DETAILS, _OUTPUT_DETAILS)
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


_NONE: tuple[Tokens, tuple[str, ...]] = Tokens(), ()


def count_tokens(usage: Any) -> tuple[Tokens, tuple[str, ...]]:
    """Return the counts of a usage under LangChain's or a provider's names, and flags; an invalid count is dropped."""
    if not issubclass(type(usage), Mapping):
        return _NONE
    by_details = {details: _details(usage, details) for details in _PARTS}
    found: dict[str, int] = {}
    flags: tuple[str, ...] = ()
    for field, (details, names) in _COUNTS.items():
        counts = by_details[details]
        for name in names:
            if (count := counts.get(name)) is not None:
                if type(count) is int and 0 <= count < _LIMIT:
                    found[field] = count
                else:
                    flags = ("invalid:tokens",)
                break
    tokens = Tokens(**found)
    if tokens.written_5m or tokens.written_1h:  # LangChain then reports 0 as their sum
        parts = (tokens.written_5m or 0) + (tokens.written_1h or 0)
        tokens = tokens._replace(written=max(tokens.written or 0, parts))
    if tokens.input is not None and not usage.keys().isdisjoint(_OUTSIDE):
        read, written = (count if is_count(count := usage.get(name)) else None for name in _OUTSIDE)
        if not (read is written is None):
            created = _details(usage, ("cache_creation",))
            durations = [count if is_count(count := created.get(name)) else None for name in _WRITTEN]
            tokens = tokens._replace(cached=read or 0, written=written or 0)
            tokens = tokens._replace(written_5m=durations[0], written_1h=durations[1])
            tokens = tokens._replace(input=(tokens.input or 0) + (read or 0) + (written or 0))
    return tokens, flags


def given_tokens(usage: Any, **counts: int | None) -> Tokens:
    """Return the counts that a caller gives, which override those of the usage. Raises `InvalidArgument`."""
    check_kind("usage", usage, Mapping | BaseModel | None, "a dict of token counts, or a provider's usage")
    for name, count in counts.items():
        if count is not None and not is_count(count):
            raise InvalidArgument(name, count, wanted="a number of tokens")
    tokens, flags = count_tokens(usage.model_dump() if isinstance(usage, BaseModel) else usage)
    if flags:
        raise InvalidArgument("usage", usage, wanted="numbers of tokens that are not negative")
    given = {name.removesuffix("_tokens"): count for name, count in counts.items() if count is not None}
    return tokens._replace(**given)


def _details(usage: Mapping[str, Any], keys: tuple[str, ...]) -> Mapping[str, Any]:
    """Return the first mapping with one of the keys; without keys, the usage itself."""
    for key in keys:
        details: Any = usage.get(key)
        if issubclass(type(details), Mapping):
            return cast("Mapping[str, Any]", details)
    return {} if keys else usage


def usage_of(message: BaseMessage) -> tuple[Tokens, tuple[str, ...]]:
    """Return the counts and flags of a message."""
    if not isinstance(message, AIMessage):
        return _NONE
    found = count_tokens(message.usage_metadata) if message.usage_metadata else _NONE
    return response_usage(message.response_metadata) if found == _NONE and message.response_metadata else found


def response_usage(output: Any) -> tuple[Tokens, tuple[str, ...]]:
    """Return the counts in a response's `llm_output` or a message's `response_metadata`."""
    if not issubclass(type(output), Mapping):
        return _NONE
    counted = (count_tokens(output[name]) for name in _RAW if name in output)
    return next((found for found in counted if found[0] != Tokens()), _NONE)


def model_in(metadata: Any) -> str | None:
    """Return the model's name in a message's `response_metadata` or a response's `llm_output`."""
    return text_in(metadata, "model_name", "model")


def is_cached(message: BaseMessage) -> bool:
    """True for a message from LangChain's cache, which sets its cost to 0: no model was called."""
    usage: Any = getattr(message, "usage_metadata", None)
    cost = usage.get("total_cost") if issubclass(type(usage), Mapping) else None
    return type(cost) in (int, float) and cost == 0


def answered_call(call: ModelCallEntry, message: BaseMessage, output: Any = None, *, class_name: str) -> ModelCallEntry:
    """Return the call with what its answer reports, or the `llm_output` of its response."""
    tokens, flags = usage_of(message)
    if tokens == Tokens() and output:
        tokens, flags = response_usage(output)
    model = model_in(message.response_metadata) or call.model or model_in(output)
    call = call._replace(model=model, message_id=message.id, flags=flags)
    return with_usage(call, tokens, message, class_name=class_name)


def reported_call(message: BaseMessage, tokens: Tokens, message_id: str, checkpoint_ns: str) -> ModelCallEntry:
    """Return the model call that a message with usage implies, for a call that no callback reported.

    Its id is the provider's response id, so copies of one message imply one call.
    """
    call_id = (None if is_cached(message) else text_in(message.response_metadata, "id")) or message_id
    model = model_in(message.response_metadata)
    call = ModelCallEntry(call_id, model, message_id=message_id, checkpoint_ns=checkpoint_ns)
    return with_usage(call, tokens, message)


def with_usage(
    call: ModelCallEntry, tokens: Tokens, answer: BaseMessage | None = None, *, class_name: str = ""
) -> ModelCallEntry:
    """Return the call with its tokens and cost; both are 0 for an answer from LangChain's cache.

    The provider is the one that the model states, else the one that its answer states, else the one that LangChain
    derives from `class_name`. The first one with a price for the model determines the cost.
    """
    if answer is not None and is_cached(answer):
        flags = (*call.flags, "cached")
        return call._replace(input_tokens=0, output_tokens=0, cost=lambda: 0.0, flags=flags)
    load_prices()
    stated = None if call.provider in _default_providers(class_name) else call.provider
    answering = None if answer is None else text_in(answer.response_metadata, "model_provider")
    providers: list[str | None] = [provider for provider in (stated, answering, call.provider) if provider is not None]
    if stated is answering is None:
        providers += [None]
    return call._replace(
        provider=providers[0],
        input_tokens=tokens.input,
        output_tokens=tokens.output,
        cached_tokens=tokens.cached,
        reasoning_tokens=tokens.reasoning,
        cost=lambda: _first(cost_of(call.model, provider, tokens) for provider in providers),
    )


def _default_providers(class_name: str) -> set[str]:
    """Return the values that LangChain gives to ``ls_provider`` if a class of models does not."""
    name = class_name.lower()
    return {name.removeprefix("chat"), name.removesuffix("chat"), name.removesuffix("llm")}


def _first(costs: Iterable[float | None]) -> float | None:
    return next((cost for cost in costs if cost is not None), None)


def load_prices() -> None:
    """Load the price table on a thread, once per process: it is large, and the model call leaves time for it."""
    if not _loading.is_set():
        _loading.set()
        threading.Thread(target=_import_prices, name="session-prices", daemon=True).start()


def _import_prices() -> None:
    import genai_prices

    genai_prices.data_snapshot.get_snapshot()


def cost_of(model: str | None, provider: str | None, tokens: Tokens) -> float | None:
    """Return US dollars, or ``None`` if the model, its price or its tokens are unknown.

    Without a provider, it is derived from the name of the model.
    """
    if model is None or tokens.input is None or tokens.output is None or (provider, model) in _unpriced:
        return None
    from genai_prices import Usage, calc_price

    is_split = tokens.cached or tokens.written  # the cached part of the audio is unknown
    usage = Usage(
        input_tokens=tokens.input,
        output_tokens=tokens.output,
        cache_read_tokens=tokens.cached,
        cache_write_tokens=tokens.written,
        cache_write_5m_tokens=tokens.written_5m,
        cache_write_1h_tokens=tokens.written_1h,
        output_reasoning_tokens=tokens.reasoning,
        input_audio_tokens=None if is_split else tokens.audio_input,
        output_audio_tokens=None if tokens.reasoning else tokens.audio_output,
    )
    try:
        return float(calc_price(usage, model, provider_id=provider).total_price)
    except LookupError:
        if len(_unpriced) < _MAX_UNPRICED:
            _unpriced.add((provider, model))
        return None
    except ValueError:  # inconsistent counts, such as more cached than input tokens
        return None


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LIMIT


def text_in(fields: Any, *names: str) -> str | None:
    """Return the first non-empty text of a mapping. No method of a value of another class is called."""
    if fields and issubclass(type(fields), Mapping):
        for name in names:
            if issubclass(type(value := fields.get(name)), str) and value:
                return str.__str__(value)
    return None
