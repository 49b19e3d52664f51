"""The settings with which an app opened the database, so that the command line shows the same status and expiry.

Only settings that differ from their defaults have a row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from session_middleware.models import to_text
from session_middleware.storage.sql.connection import Connection


def find(connection: Connection) -> dict[str, Any]:
    return {name: json.loads(value) for name, value in connection.execute("SELECT name, value FROM settings")}


def replace(connection: Connection, values: Mapping[str, Any], now: datetime) -> None:
    connection.execute("DELETE FROM settings")
    rows = [(name, json.dumps(value), to_text(now)) for name, value in values.items()]
    connection.executemany("INSERT INTO settings (name, value, changed_at) VALUES (?, ?, ?)", rows)
