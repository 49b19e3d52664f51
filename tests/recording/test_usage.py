"""What a model call took, in whichever words that is told."""

from __future__ import annotations

from typing import Any
from unittest.mock import MagicMock

import pytest
from langchain_core.messages import AIMessage, HumanMessage

from session_middleware.recording.usage import Tokens, count_tokens, is_cached, response_usage, usage_of

DETAILS = {"cached_tokens": 4}
TOLD: dict[str, tuple[Any, Tokens]] = {
    "LangChain": (
        {
            "input_tokens": 10,
            "output_tokens": 5,
            "input_token_details": {"cache_read": 4, "cache_creation": 2, "audio": 1},
            "output_token_details": {"reasoning": 3, "audio": 1},
        },
        Tokens(10, 5, cached=4, written=2, reasoning=3, audio_input=1, audio_output=1),
    ),
    "Anthropic by LangChain": (
        {
            "input_tokens": 10,
            "output_tokens": 5,
            "input_token_details": {
                "cache_read": 1,
                "cache_creation": 0,
                "ephemeral_5m_input_tokens": 2,
                "ephemeral_1h_input_tokens": 3,
            },
        },
        Tokens(10, 5, cached=1, written=5, written_5m=2, written_1h=3),
    ),
    "Anthropic": (
        {
            "input_tokens": 10,
            "output_tokens": 5,
            "cache_read_input_tokens": 100,
            "cache_creation_input_tokens": 20,
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 20},
        },
        Tokens(130, 5, cached=100, written=20, written_5m=0, written_1h=20),
    ),
    "OpenAI's chat": (
        {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "prompt_tokens_details": DETAILS,
            "completion_tokens_details": None,
        },
        Tokens(10, 5, cached=4),
    ),
    "OpenAI's responses": (
        {"input_tokens": 10, "output_tokens": 5, "input_tokens_details": DETAILS}
        | {"output_tokens_details": {"reasoning_tokens": 3}},
        Tokens(10, 5, cached=4, reasoning=3),
    ),
    "Google": ({"prompt_token_count": 10, "candidates_token_count": 5}, Tokens(10, 5)),
    "Bedrock": ({"inputTokens": 10, "outputTokens": 5}, Tokens(10, 5)),
    "half of it": ({"input_tokens": 10}, Tokens(10)),
}


@pytest.mark.parametrize(("told", "tokens"), TOLD.values(), ids=TOLD)
def test_counts_are_found_under_the_names_of_their_provider(told: Any, tokens: Tokens) -> None:
    assert count_tokens(told) == (tokens, ())
    assert response_usage({"token_usage": told, "model_name": "m"}) == (tokens, ())
    assert usage_of(AIMessage("hi", response_metadata={"usage": told})) == (tokens, ())


@pytest.mark.parametrize(
    "told",
    [
        None,
        [],
        "10",
        10,
        {},
        {"input_token_details": [1]},
        {"output_token_details": "x"},
        MagicMock(),
        MagicMock(spec=dict),
    ],
)
def test_what_is_no_usage_says_nothing(told: Any) -> None:
    assert count_tokens(told) == (Tokens(), ())
    assert response_usage(told) == response_usage({"token_usage": told}) == (Tokens(), ())


def test_what_is_no_count_is_left_out_with_a_mark() -> None:
    for count in (-1, 2**60, 1.5, "many", True, MagicMock()):
        assert count_tokens({"input_tokens": count, "output_tokens": 5}) == (Tokens(None, 5), ("invalid:tokens",))


def test_an_answer_from_the_cache_says_so() -> None:
    usage: Any = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
    assert not is_cached(AIMessage("hi", usage_metadata=usage))
    assert is_cached(AIMessage("hi").model_copy(update={"usage_metadata": {**usage, "total_cost": 0}}))
    assert not is_cached(AIMessage("hi").model_copy(update={"usage_metadata": {**usage, "total_cost": 0.5}}))
    assert not is_cached(HumanMessage("hi"))
