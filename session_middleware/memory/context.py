"""What of a session's memory goes into a prompt: a few lines under a budget. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from session_middleware.memory.found import Memory

CountTokens = Callable[[str], int]

_OPENING = "What is remembered that may matter here:"


def about_tokens(text: str) -> int:
    """A token is about four characters of English; scripts without spaces have one for about each sign."""
    wide = sum(sign > "\u2e7f" for sign in text)
    return wide + (len(text) - wide + 3) // 4


def facts_within_budget(
    context: Mapping[str, Any], budget_tokens: int, *, count_tokens: CountTokens = about_tokens
) -> tuple[list[str], int]:
    """A session's preferences and facts as lines, those that fit; and what is left of the budget."""
    lines = []
    for name, value in context.items():
        told = f"- {name}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        if (cost := count_tokens(told)) <= budget_tokens:
            lines.append(told)
            budget_tokens -= cost
    return lines, budget_tokens


def within_budget(
    memories: Iterable[Memory], budget_tokens: int, *, count_tokens: CountTokens = about_tokens
) -> list[Memory]:
    """The memories that fit, best first, each text once; one that does not fit makes room for the next."""
    found: list[Memory] = []
    texts: set[str] = set()
    for memory in memories:
        cost, text = count_tokens(line(memory)), " ".join(memory.text.lower().split())
        if text and text not in texts and cost <= budget_tokens:
            texts.add(text)
            found.append(memory)
            budget_tokens -= cost
    return found


def line(memory: Memory) -> str:
    """One memory as a prompt has it: when, who, what."""
    speaker = memory.value.get("name") or memory.value.get("role") if memory.kind == "message" else None
    said_by = f", {speaker}" if speaker else ""
    return f"- [{memory.created_at:%Y-%m-%d}{said_by}] {' '.join(memory.text.split())}"


def render(memories: Sequence[Memory], facts: Sequence[str] = (), *, opening: str = _OPENING) -> str | None:
    """The facts, then what was said or remembered, oldest first; ``None`` when there is nothing to say."""
    if not memories and not facts:
        return None
    return "\n".join([opening, *facts, *map(line, sorted(memories, key=lambda memory: memory.created_at))])
