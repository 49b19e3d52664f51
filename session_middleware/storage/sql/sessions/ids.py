"""Finding session ids by their beginning, for people who type them."""

from __future__ import annotations

from session_middleware.storage.sql.connection import Connection

_END = "\U0010ffff"  # the last of all characters


def list_ids(connection: Connection, prefix: str, *, limit: int, deleted: bool = False) -> list[str]:
    """The ids of sessions, or with `deleted` of deleted and archived ones, that begin with `prefix`, in order."""
    table = "tombstones" if deleted else "sessions"
    sql = f"SELECT id FROM {table} WHERE id >= ? AND id < ? ORDER BY id LIMIT ?"
    return [found for (found,) in connection.execute(sql, (prefix, prefix + _END, limit))]
