"""Search for a query as it is written, when it has no indexed word.

The index leaves out stop words and signs, so it finds neither "to be or not to be" nor an emoji. A query of
nothing else is matched against the texts themselves, the latest first. The cost grows with the text in scope;
runs never search this way.
"""

from __future__ import annotations

from session_middleware.models import to_text
from session_middleware.storage.jsonable import clean
from session_middleware.storage.memory_types import MemoryQuery, StoredMemory
from session_middleware.storage.search.tokenizer import phrase, phrase_parts, unfinished_word
from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.memory import recall
from session_middleware.storage.sql.memory.indexing import SEARCHABLE, restriction

_LONGEST = 64  # characters of a word in SQL, because SQLite limits a LIKE pattern to 50,000 bytes; `phrase` has all


def search(connection: Connection, query: MemoryQuery) -> list[StoredMemory]:
    """The messages that contain the query as it is written; a message that forks share is found once."""
    text, [whose] = clean(query.query or ""), query.whose
    parts = [
        part[:_LONGEST].replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") for part in phrase_parts(text)
    ]
    if not parts:
        return []
    where, values = restriction(whose, "s.id", "s.user_id")
    rows = connection.execute(
        "SELECT s.family_id, m.session_id, m.seq, m.message_id, m.role, m.name, m.text, m.created_at"
        f" FROM sessions AS s CROSS JOIN messages AS m WHERE {where} AND m.session_id = s.id"
        f" AND m.text LIKE ? ESCAPE '\\' AND {SEARCHABLE} AND COALESCE(m.marks, '') NOT LIKE '%\"removed\"%'"
        " AND m.created_at >= ? ORDER BY m.created_at DESC, s.last_active_at DESC, m.session_id, m.seq DESC",
        (*values, f"%{'%'.join(parts)}%", "" if query.since is None else to_text(query.since)),
    )
    pattern = phrase(text, unfinished=unfinished_word(text) is not None)
    found: dict[tuple[str, str, str], StoredMemory] = {}
    for family_id, *columns in rows:
        if len(found) >= query.offset + query.limit:
            break
        memory = recall.message_as_memory(*columns)
        if pattern.search(memory.text or "") is not None:
            found.setdefault((family_id, memory.key, memory.text or ""), memory._replace(score=1.0))
    return list(found.values())[query.offset :]
