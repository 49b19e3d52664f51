"""What a model call cost, by the prices of the genai-prices package: known, or nothing.

The table of prices is large, so it is loaded by the first model call of the process, on a thread of
its own while the model is at work. A model or a provider it does not know has no price: nothing is
guessed from a similar name.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

_unknown: set[tuple[str | None, str]] = set()  # providers and models that were looked for in vain
_REMEMBERED = 1024
_loading = threading.Event()


class Tokens(NamedTuple):
    """What a call took; cached, written to the cache and heard are parts of the input, reasoning is of the output."""

    input: int | None = None
    output: int | None = None
    cached: int | None = None
    written: int | None = None  # to the cache, for however long
    reasoning: int | None = None
    written_5m: int | None = None  # of those written: to be kept for five minutes
    written_1h: int | None = None
    heard: int | None = None  # of audio
    spoken: int | None = None


def load() -> None:
    """Have the prices loaded, without waiting for it."""
    if not _loading.is_set():
        _loading.set()
        threading.Thread(target=_import, name="session-prices", daemon=True).start()


def _import() -> None:
    import genai_prices

    genai_prices.data_snapshot.get_snapshot()


def cost_of(model: str | None, provider: str | None, tokens: Tokens) -> float | None:
    """US dollars, or ``None`` when the model, its price or its tokens are not known."""
    if model is None or tokens.input is None or tokens.output is None or (provider, model) in _unknown:
        return None
    from genai_prices import Usage, calc_price

    details = {
        "cache_read_tokens": tokens.cached,
        "cache_write_tokens": tokens.written,
        "cache_write_5m_tokens": tokens.written_5m,
        "cache_write_1h_tokens": tokens.written_1h,
        "output_reasoning_tokens": tokens.reasoning,
    }
    if not (tokens.cached or tokens.written):  # how much of the audio was cached, nobody says
        details["input_audio_tokens"] = tokens.heard
    if not tokens.reasoning:
        details["output_audio_tokens"] = tokens.spoken
    usage = Usage(input_tokens=tokens.input, output_tokens=tokens.output, **details)
    try:
        return float(calc_price(usage, model, provider_id=provider).total_price)
    except LookupError:
        if len(_unknown) < _REMEMBERED:
            _unknown.add((provider, model))
        return None
    except ValueError:  # more cached than there were, and the like
        return None
