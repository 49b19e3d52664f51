"""Revoked users, of whom only a hash is stored. Each operation of a user checks it in its transaction."""

from __future__ import annotations

import hashlib
from functools import lru_cache

from session_middleware.errors import UserRevoked
from session_middleware.storage.sql.connection import Connection


def hashed(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


@lru_cache(maxsize=1024)
def hash_of(user_id: str | None) -> str | None:
    return None if user_id is None else hashed(user_id)


def is_revoked(connection: Connection, user_id: str | None) -> bool:
    row = connection.execute("SELECT 1 FROM revoked WHERE user_hash = ?", (hash_of(user_id),)).fetchone()
    return row is not None


def check_not_revoked(connection: Connection, session_id: str, user_id: str | None) -> None:
    """Raises `UserRevoked`."""
    if user_id is not None and is_revoked(connection, user_id):
        raise UserRevoked(session_id, user_id=user_id)


def lift(connection: Connection, user_id: str) -> bool:
    return bool(connection.execute("DELETE FROM revoked WHERE user_hash = ?", (hash_of(user_id),)).rowcount)
