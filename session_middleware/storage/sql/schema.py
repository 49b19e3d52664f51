"""The tables.

Text ids, ISO-8601 UTC times and JSON columns, so that `sqlite3`, sqlite-utils and Datasette can read them. People read
sessions, runs, messages, branches, files, tool_calls, model_calls, questions, events and memories. The checkpointer
restores state from checkpoints, writes, lists, list_items and blobs (`checkpoints/schema.py`). conversation_items
belong to other SDKs; leases are the runs in progress, tombstones the deleted ids, revoked the refused users, settings
those of the app (`app_settings.py`). The index of words is in `memory/schema.py`.

A session's `title_key` is its title as it is searched and sorted; of a session without a title it sorts last.
A session's own settings are columns: null means no own setting, and 0 seconds mean never. `pruned` marks an expired
session that has been pruned.

A message's `position` orders its conversation: the seq of its first version, unless it was inserted before an older
message. A branch continues its parent at a seq; a checkpoint stores the branch and the seq it was put at. A tool call
has a process while it runs outside of a run.
"""

from __future__ import annotations

from session_middleware.storage.sql.checkpoints.schema import STATE_TABLES
from session_middleware.storage.sql.memory.schema import INDEX_TABLES
from session_middleware.storage.titles import UNTITLED

_TABLES = (
    f"""
    CREATE TABLE sessions (
        id TEXT PRIMARY KEY,
        home INTEGER NOT NULL,
        version INTEGER NOT NULL DEFAULT 1,
        family_id TEXT NOT NULL,
        parent_id TEXT,
        user_id TEXT,
        group_id TEXT,
        visibility TEXT NOT NULL DEFAULT 'private',
        status TEXT NOT NULL DEFAULT 'active',
        reason TEXT,
        opened_as TEXT NOT NULL,
        title TEXT,
        title_key TEXT NOT NULL DEFAULT '{UNTITLED}',
        purpose TEXT,
        tags TEXT NOT NULL DEFAULT '[]',
        metadata TEXT NOT NULL DEFAULT '{{}}',
        context TEXT NOT NULL DEFAULT '{{}}',
        client TEXT NOT NULL DEFAULT '{{}}',
        idle_timeout_seconds REAL,
        max_age_seconds REAL,
        retention_seconds REAL,
        on_expire TEXT,
        on_resume TEXT,
        pinned TEXT,
        created_at TEXT NOT NULL,
        active_since TEXT NOT NULL,
        incarnation INTEGER NOT NULL DEFAULT 1,
        last_active_at TEXT NOT NULL,
        postponed_until TEXT,
        ended_at TEXT,
        expires_at TEXT,
        pruned INTEGER NOT NULL DEFAULT 0,
        latest_checkpoint_id TEXT,
        newest_position TEXT,
        checkpoint_count INTEGER NOT NULL DEFAULT 0,
        write_count INTEGER NOT NULL DEFAULT 0,
        branch TEXT NOT NULL DEFAULT 'main',
        last_seq INTEGER NOT NULL DEFAULT 0,
        run_count INTEGER NOT NULL DEFAULT 0,
        message_count INTEGER NOT NULL DEFAULT 0,
        tool_call_count INTEGER NOT NULL DEFAULT 0,
        model_call_count INTEGER NOT NULL DEFAULT 0,
        unpriced_count INTEGER NOT NULL DEFAULT 0,
        error_count INTEGER NOT NULL DEFAULT 0,
        waiting_count INTEGER NOT NULL DEFAULT 0,
        input_tokens INTEGER NOT NULL DEFAULT 0,
        output_tokens INTEGER NOT NULL DEFAULT 0,
        cost REAL
    ) WITHOUT ROWID
    """,
    # Statements that change the other columns, which are written most often, raise the version themselves.
    """
    CREATE TRIGGER sessions_version AFTER UPDATE OF
        id, home, user_id, group_id, visibility, status, title, purpose, tags, metadata, context, client,
        idle_timeout_seconds, max_age_seconds, retention_seconds, on_expire, on_resume, pinned, active_since,
        incarnation, ended_at, pruned
    ON sessions WHEN new.version = old.version
    BEGIN UPDATE sessions SET version = version + 1 WHERE id = new.id; END
    """,
    "CREATE INDEX sessions_by_home ON sessions (home)",
    # With the title, because a text in it is searched in the order of the list.
    "CREATE INDEX sessions_by_activity ON sessions (last_active_at, id, title_key)",
    "CREATE INDEX sessions_by_user ON sessions (user_id, last_active_at, id) WHERE user_id IS NOT NULL",
    "CREATE INDEX sessions_by_group ON sessions (group_id, last_active_at, id) WHERE group_id IS NOT NULL",
    # Activity does not change these, and a session without a user or a group is in none of those above.
    "CREATE INDEX sessions_of_users ON sessions (user_id, created_at, id)",
    "CREATE INDEX sessions_of_groups ON sessions (group_id)",
    "CREATE INDEX sessions_by_creation ON sessions (created_at, id, title_key)",
    "CREATE INDEX sessions_by_title ON sessions (title_key, id)",
    "CREATE INDEX sessions_of_users_by_title ON sessions (user_id, title_key, id)",
    "CREATE INDEX sessions_by_status ON sessions"
    " (status, last_active_at, id, idle_timeout_seconds, pinned, on_expire, postponed_until, user_id)",
    "CREATE INDEX sessions_by_pin ON sessions (json_extract(pinned, '$.by')) WHERE pinned IS NOT NULL",
    "CREATE INDEX sessions_by_end ON sessions (ended_at) WHERE ended_at IS NOT NULL",
    """
    CREATE INDEX sessions_by_on_expire ON sessions
    (status, on_expire, pruned, ended_at, id, pinned, postponed_until, user_id, last_active_at)
    WHERE status = 'expired'
    """,
    "CREATE INDEX sessions_waiting ON sessions (last_active_at, id, user_id) WHERE waiting_count > 0",
    "CREATE INDEX sessions_by_age ON sessions (active_since) WHERE ended_at IS NULL",
    """
    CREATE INDEX sessions_by_own_idle_timeout ON sessions (idle_timeout_seconds, last_active_at)
    WHERE idle_timeout_seconds IS NOT NULL
    """,
    """
    CREATE INDEX sessions_by_own_max_age ON sessions (max_age_seconds, active_since)
    WHERE max_age_seconds IS NOT NULL
    """,
    """
    CREATE INDEX sessions_by_own_retention ON sessions (retention_seconds, ended_at)
    WHERE retention_seconds IS NOT NULL
    """,
    """
    CREATE TABLE leases (
        session_id TEXT NOT NULL,
        number INTEGER NOT NULL,
        run_id TEXT,
        user_id TEXT,
        process TEXT NOT NULL,
        started_at TEXT NOT NULL,
        renewed_at TEXT NOT NULL,
        PRIMARY KEY (session_id, number)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE tombstones (
        id TEXT PRIMARY KEY,
        user_id TEXT,
        group_id TEXT,
        title TEXT,
        incarnation INTEGER NOT NULL,
        action TEXT NOT NULL,
        reason TEXT,
        archive TEXT,
        digest TEXT,
        on_resume TEXT,
        retention_seconds REAL,
        ended_at TEXT,
        deleted_at TEXT NOT NULL
    ) WITHOUT ROWID
    """,
    "CREATE INDEX tombstones_by_user ON tombstones (user_id) WHERE user_id IS NOT NULL",
    "CREATE INDEX tombstones_archived ON tombstones (deleted_at, id) WHERE archive IS NOT NULL",
    "CREATE INDEX tombstones_archived_by_user ON tombstones (user_id, deleted_at, id) WHERE archive IS NOT NULL",
    "CREATE INDEX tombstones_archived_by_end ON tombstones (ended_at, id) WHERE archive IS NOT NULL",
    """
    CREATE INDEX tombstones_by_own_retention ON tombstones (retention_seconds, ended_at)
    WHERE retention_seconds IS NOT NULL
    """,
    """
    CREATE TABLE revoked (
        user_hash TEXT PRIMARY KEY,
        reason TEXT,
        since TEXT NOT NULL
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE settings (
        name TEXT PRIMARY KEY,
        value TEXT NOT NULL,
        changed_at TEXT NOT NULL
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE runs (
        session_id TEXT NOT NULL,
        seq INTEGER NOT NULL,
        id TEXT NOT NULL,
        user_id TEXT,
        outcome TEXT NOT NULL,
        error TEXT,
        tags TEXT,
        metadata TEXT,
        started_at TEXT NOT NULL,
        duration_ms REAL,
        input_tokens INTEGER,
        output_tokens INTEGER,
        cost REAL,
        started_from TEXT,
        checkpointed INTEGER NOT NULL DEFAULT 0,
        checkpoint_id TEXT,
        process TEXT,
        PRIMARY KEY (session_id, seq),
        UNIQUE (id, session_id)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX runs_in_progress ON runs (session_id) WHERE outcome = 'running'",
    "CREATE INDEX runs_cut_off ON runs (session_id) WHERE outcome = 'interrupted'",
    "CREATE INDEX runs_by_user ON runs (user_id) WHERE user_id IS NOT NULL",
    """
    CREATE TABLE messages (
        session_id TEXT NOT NULL,
        seq INTEGER NOT NULL,
        run_id TEXT,
        message_id TEXT NOT NULL,
        version INTEGER NOT NULL DEFAULT 1,
        replaced_by INTEGER,
        branch TEXT NOT NULL DEFAULT 'main',
        position REAL NOT NULL,
        role TEXT NOT NULL,
        name TEXT,
        text TEXT NOT NULL,
        content TEXT,
        tool_calls TEXT,
        tool_call_id TEXT,
        model TEXT,
        input_tokens INTEGER,
        output_tokens INTEGER,
        status TEXT NOT NULL DEFAULT 'complete',
        checkpoint_ns TEXT NOT NULL DEFAULT '',
        extra TEXT,
        flags TEXT,
        created_at TEXT NOT NULL,
        PRIMARY KEY (session_id, seq),
        UNIQUE (session_id, message_id, version)
    )
    """,
    "CREATE INDEX messages_moved ON messages (session_id) WHERE position != seq",
    "CREATE INDEX messages_asking ON messages (session_id, seq) WHERE tool_calls IS NOT NULL",
    """
    CREATE TABLE branches (
        session_id TEXT NOT NULL,
        id TEXT NOT NULL,
        parent_id TEXT NOT NULL,
        parent_seq INTEGER NOT NULL,
        run_id TEXT,
        created_at TEXT NOT NULL,
        PRIMARY KEY (session_id, id)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE files (
        session_id TEXT NOT NULL,
        hash TEXT NOT NULL,
        media_type TEXT,
        data BLOB NOT NULL,
        PRIMARY KEY (session_id, hash)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE tool_calls (
        session_id TEXT NOT NULL,
        seq INTEGER NOT NULL,
        run_id TEXT,
        execution_id TEXT NOT NULL,
        tool_call_id TEXT NOT NULL,
        attempt INTEGER NOT NULL DEFAULT 1,
        name TEXT NOT NULL,
        arguments TEXT,
        result TEXT,
        artifact TEXT,
        status TEXT NOT NULL,
        error TEXT,
        message_id TEXT,
        checkpoint_ns TEXT NOT NULL DEFAULT '',
        node TEXT,
        flags TEXT,
        started_at TEXT,
        duration_ms REAL,
        process TEXT,
        PRIMARY KEY (session_id, seq),
        UNIQUE (session_id, tool_call_id, message_id, attempt),
        UNIQUE (session_id, execution_id)
    )
    """,
    "CREATE INDEX tool_calls_outside ON tool_calls (session_id) WHERE process IS NOT NULL",
    "CREATE INDEX tool_calls_by_time ON tool_calls (COALESCE(started_at, ''), session_id, seq)",
    "CREATE INDEX tool_calls_by_name ON tool_calls (name, COALESCE(started_at, ''), session_id, seq)",
    """
    CREATE TABLE model_calls (
        session_id TEXT NOT NULL,
        seq INTEGER NOT NULL,
        run_id TEXT,
        id TEXT NOT NULL,
        model TEXT,
        provider TEXT,
        input_tokens INTEGER,
        output_tokens INTEGER,
        cached_tokens INTEGER,
        reasoning_tokens INTEGER,
        cost REAL,
        first_token_ms REAL,
        duration_ms REAL,
        error TEXT,
        message_id TEXT,
        checkpoint_ns TEXT NOT NULL DEFAULT '',
        node TEXT,
        flags TEXT,
        started_at TEXT,
        PRIMARY KEY (session_id, seq),
        UNIQUE (session_id, id)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE questions (
        session_id TEXT NOT NULL,
        seq INTEGER NOT NULL,
        run_id TEXT,
        interrupt_id TEXT,
        value TEXT,
        node TEXT,
        checkpoint_ns TEXT NOT NULL DEFAULT '',
        checkpoint_id TEXT,
        status TEXT NOT NULL DEFAULT 'open',
        asked_at TEXT NOT NULL,
        answer TEXT,
        answered_by TEXT,
        answered_at TEXT,
        answer_run_id TEXT,
        flags TEXT,
        PRIMARY KEY (session_id, seq)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX questions_open ON questions (session_id) WHERE status = 'open'",
    "CREATE INDEX questions_by_user ON questions (answered_by) WHERE answered_by IS NOT NULL",
    """
    CREATE TABLE events (
        session_id TEXT NOT NULL,
        seq INTEGER NOT NULL,
        run_id TEXT,
        kind TEXT NOT NULL,
        reason TEXT,
        detail TEXT NOT NULL DEFAULT '{}',
        created_at TEXT NOT NULL,
        PRIMARY KEY (session_id, seq)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX events_of_deletions ON events (session_id) WHERE kind = 'message_deleted'",
    "CREATE INDEX events_user ON events (json_extract(detail, '$.user_id'))"
    " WHERE json_extract(detail, '$.user_id') IS NOT NULL",
    "CREATE INDEX events_actor ON events (json_extract(detail, '$.by')) WHERE json_extract(detail, '$.by') IS NOT NULL",
    """
    CREATE TABLE conversation_items (
        session_id TEXT NOT NULL,
        position INTEGER NOT NULL,
        item TEXT NOT NULL,
        files TEXT,
        message_id TEXT NOT NULL,
        removed INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (session_id, position)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX conversation_items_present ON conversation_items (session_id, position) WHERE removed = 0",
    """
    CREATE TABLE memories (
        id INTEGER PRIMARY KEY,
        namespace TEXT NOT NULL,
        key TEXT NOT NULL,
        value TEXT NOT NULL,
        text TEXT,
        paths TEXT,
        session_id TEXT,
        message_id TEXT,
        created_at TEXT NOT NULL,
        updated_at TEXT NOT NULL,
        expires_at TEXT,
        ttl_minutes REAL,
        embedded INTEGER,
        terms TEXT,
        vectors BLOB,
        UNIQUE (namespace, key)
    )
    """,
    "CREATE INDEX memories_by_message ON memories (session_id, message_id) WHERE message_id IS NOT NULL",
    "CREATE INDEX memories_by_session ON memories (session_id) WHERE session_id IS NOT NULL",
    "CREATE INDEX memories_by_expiry ON memories (expires_at) WHERE expires_at IS NOT NULL",
    "CREATE INDEX memories_to_embed ON memories (embedded, id) WHERE embedded = 0",
)

TABLES = (*_TABLES, *STATE_TABLES, *INDEX_TABLES)
