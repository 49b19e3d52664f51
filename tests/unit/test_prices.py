"""What a model call cost is known, or nothing is said."""

from __future__ import annotations

import pytest

from session_middleware.recording.prices import Tokens, cost_of


def test_a_known_model_has_a_price_and_cached_tokens_are_cheaper() -> None:
    full = cost_of("gpt-4o-mini", "openai", Tokens(1_000_000, 0))
    cached = cost_of("gpt-4o-mini", "openai", Tokens(1_000_000, 0, cached=1_000_000))
    assert full
    assert cached
    assert 0 < cached < full


@pytest.mark.parametrize(
    ("model", "provider", "tokens"),
    [
        ("no-such-model", "openai", Tokens(1, 1)),
        ("gpt-4o-mini", "no-such-provider", Tokens(1, 1)),
        ("no-such-model", None, Tokens(1, 1)),
        (None, "openai", Tokens(1, 1)),
        ("gpt-4o-mini", "openai", Tokens(None, 1)),
        ("gpt-4o-mini", "openai", Tokens(1, 1, cached=5)),
    ],
)
def test_nothing_is_guessed(model: str | None, provider: str | None, tokens: Tokens) -> None:
    assert cost_of(model, provider, tokens) is None
