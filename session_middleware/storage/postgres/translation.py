"""Translates statements from SQLite's dialect to PostgreSQL's; `library.sql` defines the functions that are missing."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

_WORDS = tuple(
    (re.compile(pattern), word)
    for pattern, word in (
        # A condition on one table, which an index can serve, instead of a join that comes after the others.
        (
            r"(?<!NOT )\bIN \((SELECT (?:value|CAST\(value AS INTEGER\)) FROM json_each\([^()]*\))\)",
            r"= ANY (ARRAY(\1))",
        ),
        (r"\bIS NOT (\?\d*|:[a-z_]+)", r"IS DISTINCT FROM \1"),
        (r"\bIS (\?\d*|:[a-z_]+)", r"IS NOT DISTINCT FROM \1"),
        (r" INDEXED BY \w+", ""),
        (r"\bCROSS JOIN (\w+(?: AS \w+)?)(?=\s+(?:ON|USING)\b)", r"JOIN \1"),
        (r"(?<=[\s(])\+(?=[a-z_]+ =)", ""),  # excludes the column from SQLite's choice of an index
        (r"\bCAST\(([^()]+) AS TEXT\)", r'CAST(\1 AS text) COLLATE "C"'),
        (r"\bAS BLOB\b", "AS bytea"),
        (r"\bAS INTEGER\b", "AS bigint"),
        (r"\bAS REAL\b", "AS double precision"),
        (r"\bLIKE\b", "ILIKE"),
        (r"/\* SKIP LOCKED \*/", "FOR UPDATE SKIP LOCKED"),  # SQLite has one writer
        (r"\bjson_object\(", "json_pair("),  # a word of the grammar since PostgreSQL 16
    )
)
_WRITING = re.compile(r"\b(INSERT|UPDATE|DELETE)\b")
_PARAMETER = re.compile(r"'(?:[^']|'')*'|\?(\d+)|\?|(?<![:\w]):([a-z_]\w*)")


class Translation(NamedTuple):
    text: bytes
    names: tuple[str, ...]  # of the parameters, in order, if they have names
    is_writing: bool


@lru_cache(maxsize=4096)
def translated(sql: str) -> Translation:
    names: dict[str, int] = {}
    last = 0

    def numbered(found: re.Match[str]) -> str:
        nonlocal last
        if found[0][0] == "'":
            return found[0]
        if found[2]:
            return f"${names.setdefault(found[2], len(names) + 1)}"
        number = int(found[1] or last + 1)
        last = max(last, number)
        return f"${number}"

    for pattern, word in _WORDS:
        sql = pattern.sub(word, sql)
    return Translation(_PARAMETER.sub(numbered, sql).encode(), tuple(names), bool(_WRITING.search(sql)))
