"""The data dictionary: all tables and columns of the schema, with the meanings that stand beside them there."""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

from session_middleware.storage.sql.schema import TABLES

_TABLE = re.compile(r"\s*CREATE TABLE (\w+) \(\s*(.*)\)", re.DOTALL)
_COLUMN = re.compile(r"^\s*(\w+) (TEXT|INTEGER|REAL|BLOB)\b(.*?),?(?: -- (.*))?$", re.MULTILINE)
_KEY = re.compile(r"PRIMARY KEY \(([^)]*)\)")

PURPOSES = {  # in the order of the page, by theme
    "The record": {
        "sessions": "One row for each session, with its owner, status, own settings and counters.",
        "runs": "One row for each invocation of a graph, or block of a hand-written loop.",
        "messages": "One row for each version of a message.",
        "tool_calls": "One row for each execution of a tool.",
        "model_calls": "One row for each call of a model.",
        "questions": "What graphs asked at interrupts, and the answers.",
        "events": "Facts of the lifecycle, with their reasons.",
        "branches": "The branches of conversations other than `main`.",
        "files": "Images and files of messages, each once in a session.",
        "conversation_items": "The conversations of other SDKs, such as OpenAI's Agents SDK, item by item.",
    },
    "Memory": {
        "memories": "What was remembered on purpose, and the items of `sessions.store`.",
        "index_sessions": "The sessions whose messages are in the index of words.",
        "index_blocks": "The documents of the index.",
        "index_postings": "The words of the index.",
        "vectors": "The vectors of messages, where an embedding model is set.",
        "vector_models": "The embedding model that made all vectors.",
    },
    "Lifecycle": {
        "leases": "The runs in progress.",
        "tombstones": "Deleted, archived and merged ids.",
        "revoked": "Users that are refused.",
        "settings": "The settings of the app, for the command line.",
    },
    "The state of graphs": {
        "checkpoints": "LangGraph's checkpoints, each with references to the values of its channels.",
        "writes": "LangGraph's pending writes.",
        "lists": "Lists that a checkpoint refers to, such as that of the messages.",
        "list_items": "The elements of lists.",
        "blobs": "Values, each stored once in a family.",
    },
}


class Column(NamedTuple):
    type: str
    is_required: bool
    is_key: bool
    meaning: str


@cache
def schema() -> dict[str, dict[str, Column]]:
    found = {}
    for created in filter(None, map(_TABLE.match, TABLES)):
        name, text = created.groups()
        stated = _KEY.search(text)
        keys = stated[1].split(", ") if stated else []
        found[name] = {
            column: Column(kind, "NOT NULL" in rest, column in keys or "PRIMARY KEY" in rest, meaning or "")
            for column, kind, rest, meaning in _COLUMN.findall(text)
        }
    return found


def columns_of(table: str) -> dict[str, str]:
    """The meanings of a table's columns, by name."""
    return {name: column.meaning for name, column in schema().get(table, {}).items()}


def tables_text() -> str:
    parts = []
    for theme, tables in PURPOSES.items():
        parts.append(f"## {theme}")
        for name, purpose in tables.items():
            lines = ["| column | type | meaning |", "| --- | --- | --- |"]
            for column, (kind, is_required, is_key, meaning) in schema()[name].items():
                notes = "key" if is_key else "" if is_required else "or null"
                lines.append(f"| `{column}` | {' '.join(filter(None, (kind.lower(), notes)))} | {meaning} |")
            parts += [f"### {name} {{#{name}}}", purpose, "\n".join(lines)]
    return "\n\n".join(parts)
