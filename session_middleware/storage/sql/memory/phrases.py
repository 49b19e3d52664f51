"""Search for what the index of words leaves out: words that say nothing, and signs that are no words.

"To be or not to be" is made of the words that every text has, and an emoji is none. Who asks for nothing else
means it as it is written, so the texts themselves are read, the latest first, until enough of them hold it.
That takes as long as there is text in scope; no run asks so.
"""

from __future__ import annotations

import sqlite3

from session_middleware.models import from_text, to_text
from session_middleware.storage.jsonable import clean
from session_middleware.storage.memory_types import MemoryQuery, MessageScope, StoredMemory
from session_middleware.storage.search.tokenizer import phrase, phrase_parts

_LONGEST = 64  # characters of a word that SQLite looks for, which takes no longer pattern than 50,000; `phrase` all
_COLUMNS = "m.session_id, m.seq, m.message_id, m.role, m.name, m.text, m.created_at, s.family_id"
_HOLDS = """
    m.role IN ('user', 'assistant', 'tool') AND m.text LIKE :pattern ESCAPE '\\' AND m.replaced_by IS NULL
    AND COALESCE(m.marks, '') NOT LIKE '%"resume"%'
    AND COALESCE(m.marks, '') NOT LIKE '%"memory"%' AND COALESCE(m.marks, '') NOT LIKE '%"removed"%'
    AND (m.created_at >= :since OR :since IS NULL)
"""
_OF_ALL = f"""
    SELECT {_COLUMNS} FROM messages AS m CROSS JOIN sessions AS s ON s.id = m.session_id
    WHERE {_HOLDS} ORDER BY m.rowid DESC
"""
_OF_USER = f"""
    SELECT {_COLUMNS} FROM sessions AS s CROSS JOIN messages AS m ON m.session_id = s.id
    WHERE s.user_id = :user_id AND {_HOLDS} ORDER BY m.rowid DESC
"""
_OF_SESSION = f"""
    SELECT {_COLUMNS} FROM sessions AS s CROSS JOIN messages AS m ON m.session_id = s.id
    WHERE s.id = :session_id AND (s.user_id = :user_id OR :user_id IS NULL) AND {_HOLDS} ORDER BY m.seq DESC
"""


def search(connection: sqlite3.Connection, query: MemoryQuery) -> list[StoredMemory]:
    """The messages that hold the query as it is written; what forks have in common once."""
    asked, whose = clean(query.query or ""), query.messages or MessageScope()
    parts = [
        part[:_LONGEST].replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") for part in phrase_parts(asked)
    ]
    if not parts:
        return []
    values = {
        "pattern": f"%{'%'.join(parts)}%",
        "since": query.since and to_text(query.since),
        "user_id": whose.user_id,
        "session_id": whose.session_id,
    }
    sql = _OF_SESSION if whose.session_id is not None else _OF_USER if whose.user_id is not None else _OF_ALL
    said = phrase(asked)
    found: dict[tuple[str, str, str], StoredMemory] = {}
    for session_id, seq, message_id, role, name, text, created_at, family_id in connection.execute(sql, values):
        if len(found) >= query.offset + query.limit:
            break
        if said.search(text) is None:
            continue
        value, when = {"text": text, "role": role} | ({"name": name} if name else {}), from_text(created_at)
        memory = StoredMemory(("session", session_id), message_id, value, text, session_id, when, when, score=1.0)
        found.setdefault((family_id, message_id, text), memory._replace(message_id=message_id, seq=seq))
    return list(found.values())[query.offset :]
