"""What a model call cost is known, or nothing is said."""

from __future__ import annotations

import pytest

from session_middleware.recording.usage import Tokens, cost_of


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


def test_what_is_kept_longer_in_the_cache_is_dearer() -> None:
    def written(**tokens: int) -> float | None:
        return cost_of("claude-sonnet-4-5", "anthropic", Tokens(1_000_000, 0, written=1_000_000, **tokens))

    assert written(written_1h=1_000_000) == pytest.approx(12)
    assert written(written_5m=1_000_000) == written() == pytest.approx(7.5)
    assert written(written_5m=500_000, written_1h=500_000) == pytest.approx(9.75)


def test_details_that_a_model_has_no_price_for_take_nothing_from_its_price() -> None:
    plain = cost_of("gpt-4o-mini", "openai", Tokens(1000, 100))
    assert cost_of("gpt-4o-mini", "openai", Tokens(1000, 100, reasoning=50, audio_input=10, audio_output=5)) == plain
    cached = cost_of("gpt-4o-mini", "openai", Tokens(1000, 100, cached=500))
    assert cost_of("gpt-4o-mini", "openai", Tokens(1000, 100, cached=500, audio_input=10)) == cached
