"""What of a session's memory goes into a prompt: a few lines under a budget. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from session_middleware.memory.found import Memory

CountTokens = Callable[[str], int]

_OPENING = "What is remembered that may matter here:"


def about_tokens(text: str) -> int:
    """A token is about four characters of English; scripts without spaces have one for about each sign."""
    wide = sum(sign > "\u2e7f" for sign in text)
    return wide + (len(text) - wide + 3) // 4


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


def render(memories: Sequence[Memory], *, opening: str = _OPENING) -> str | None:
    """Oldest first, as a story is told; ``None`` when there is nothing to say."""
    if not memories:
        return None
    return "\n".join([opening, *map(line, sorted(memories, key=lambda memory: memory.created_at))])
