"""Whose the stored values are, told by what refers to them, and not by what a session's row says of its family."""

from __future__ import annotations

import sqlite3
from collections import defaultdict

_REFERRED = """
    SELECT session_id, family_id FROM (
        SELECT own.session_id, blobs.family_id FROM checkpoints AS own, json_each(own.channels) AS ref
        JOIN blobs ON blobs.id = ref.value WHERE ref.type = 'integer'
        UNION SELECT own.session_id, lists.family_id FROM checkpoints AS own, json_each(own.channels) AS ref
        JOIN lists ON lists.id = json_extract(ref.value, '$[0]') WHERE ref.type = 'array'
        UNION SELECT own.session_id, blobs.family_id FROM writes AS own, json_each(own.value) AS ref
        JOIN blobs ON blobs.id = COALESCE(ref.atom, json_extract(ref.value, '$[0]')) WHERE ref.type != 'null'
    ) WHERE session_id IN (SELECT id FROM sessions)
"""


def referred(connection: sqlite3.Connection) -> dict[str, set[str]]:
    """By session, the families of what its checkpoints and writes refer to. Reads all of them, and no blob."""
    found: dict[str, set[str]] = defaultdict(set)
    for session_id, family_id in connection.execute(_REFERRED):
        found[session_id].add(family_id)
    return found


def wrong(connection: sqlite3.Connection) -> dict[str, tuple[str, set[str]]]:
    """By session, the family its row names, where its values are kept under others; and these."""
    named = dict(connection.execute("SELECT id, family_id FROM sessions").fetchall())
    found = referred(connection)
    return {
        session_id: (named[session_id], of) for session_id, of in sorted(found.items()) if of != {named[session_id]}
    }


def orphaned(connection: sqlite3.Connection) -> list[str]:
    """Families of values that no session names as its own, nor refers to."""
    rows = connection.execute(
        "SELECT family_id FROM blobs UNION SELECT family_id FROM lists EXCEPT SELECT family_id FROM sessions"
    ).fetchall()
    if not rows:
        return []
    in_use = {family_id for families in referred(connection).values() for family_id in families}
    return [family_id for (family_id,) in rows if family_id not in in_use]
