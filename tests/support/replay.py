"""A real conversation, replayed through a graph: months of sittings, and a process that ends between them.

One speaker is the user, the other is scripted as the model. Run as a program, this file is one
process's part of it: it opens the database, replays some sittings of a thread, and prints the id of
each message once the turn it belongs to has been acknowledged.

    python replay.py TURNS_FILE DATABASE FIRST_SITTING LAST_SITTING [--killed]

The conversation is LoCoMo's (github.com/snap-research/locomo, CC BY-NC 4.0), one JSON object per
line with `conversation_id`, `session`, `turn_id`, `speaker`, `text` and at times `image_caption`.
No word of it is kept here: it is read from the folder that the variable LOCOMO_DIR names.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langgraph.graph import END, START, MessagesState, StateGraph

THREAD = "replay"
ABSENT = "the LoCoMo conversations are not here: set LOCOMO_DIR to the folder that holds turns.jsonl"

_BESIDE_THE_REPOSITORY = Path(__file__).parents[3] / "shared" / "data" / "locomo-dev"


class Turn(NamedTuple):
    """What the user says, maybe nothing, and what the model answers, maybe several messages or none."""

    said: list[BaseMessage]
    answers: list[BaseMessage]


Sittings = dict[int, list[Turn]]


def find_turns_file() -> Path | None:
    """Where the data is, if it is there; `LOCOMO_DIR` comes before the folder beside the repository."""
    folder = os.environ.get("LOCOMO_DIR")
    path = (Path(folder) if folder else _BESIDE_THE_REPOSITORY) / "turns.jsonl"
    return path if path.is_file() else None


def read_sittings(turns_file: Path) -> Sittings:
    """The shortest conversation of the file, by sitting; who speaks first is the user."""
    with turns_file.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    lengths = Counter(row["conversation_id"] for row in rows)
    shortest = min(lengths, key=lambda name: (lengths[name], name))
    rows = [row for row in rows if row["conversation_id"] == shortest]
    messages = {row["turn_id"]: _message(row, user=rows[0]["speaker"]) for row in rows}
    return {
        sitting: list(_turns(messages[row["turn_id"]] for row in part))
        for sitting, part in groupby(rows, key=lambda row: row["session"])
    }


def _message(row: dict[str, Any], *, user: str) -> BaseMessage:
    content: Any = row["text"]
    if caption := row.get("image_caption"):
        content = [{"type": "text", "text": row["text"]}, {"type": "text", "text": f"[image: {caption}]"}]
    return (HumanMessage if row["speaker"] == user else AIMessage)(content, id=row["turn_id"])


def _turns(messages: Iterable[BaseMessage]) -> Iterator[Turn]:
    turn = Turn([], [])
    for message in messages:
        if isinstance(message, HumanMessage) and turn.answers:
            yield turn
            turn = Turn([], [])
        (turn.said if isinstance(message, HumanMessage) else turn.answers).append(message)
    yield turn


def all_messages(sittings: Sittings) -> list[BaseMessage]:
    return [message for turns in sittings.values() for turn in turns for message in (*turn.said, *turn.answers)]


def build(script: deque[BaseMessage]) -> StateGraph[Any, Any, Any, Any]:
    """A graph whose model says what the script has next, until it is at its end."""

    def model(state: MessagesState) -> dict[str, Any]:
        return {"messages": [script.popleft()]}

    def has_more(state: MessagesState) -> str:
        return "model" if script else END

    graph = StateGraph(MessagesState)
    graph.add_node("model", model)
    graph.add_conditional_edges(START, has_more)
    graph.add_conditional_edges("model", has_more)
    return graph


def play(graph: Any, script: deque[BaseMessage], turn: Turn, config: Any) -> None:
    """One turn. Copies are given, so that replaying the same conversation twice in a process is allowed."""
    script.extend(message.model_copy(deep=True) for message in turn.answers)
    said = [message.model_copy(deep=True) for message in turn.said]
    graph.invoke({"messages": said}, config, durability="sync")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("turns_file", type=Path)
    parser.add_argument("database")
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int)
    parser.add_argument("--killed", action="store_true", help="kill this process after the last turn")
    options = parser.parse_args()
    from session_middleware import Sessions

    script: deque[BaseMessage] = deque()
    sittings = read_sittings(options.turns_file)
    with Sessions(options.database) as sessions:
        graph = sessions.attach(build(script).compile())
        for sitting in range(options.first, options.last + 1):
            for turn in sittings[sitting]:
                play(graph, script, turn, sessions.config(THREAD, user_id="reader"))
                print(*(message.id for message in (*turn.said, *turn.answers)), sep="\n", flush=True)
        if options.killed:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
