"""The tables.

Text ids, ISO-8601 UTC times and JSON columns, so that `sqlite3`, sqlite-utils and Datasette can read them. People read
sessions, runs, messages, branches, files, tool_calls, model_calls, questions, events and memories. The checkpointer
restores state from checkpoints, writes, lists, list_items and blobs (`checkpoints/schema.py`). conversation_items
belong to other SDKs; leases are the runs in progress, tombstones the deleted ids, revoked the refused users, settings
those of the app (`app_settings.py`). The index of words is in `memory/schema.py`.

The comment of a column says what it means. It is a part of the table, so `.schema` shows it, and the page
`docs/data_dictionary.md` has it.

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
        id TEXT PRIMARY KEY, -- the thread_id of LangGraph
        home INTEGER NOT NULL, -- the number of its family, which leads the keys of state
        version INTEGER NOT NULL DEFAULT 1, -- raised by each change of the session
        family_id TEXT NOT NULL, -- the id of the root session. A session and its forks are one family
        parent_id TEXT, -- the session that it was forked from
        user_id TEXT, -- the owner. Null: every caller has access
        group_id TEXT, -- the group of the owner that it belongs to
        visibility TEXT NOT NULL DEFAULT 'private', -- the access of the group: private, group (may read) or group-write
        status TEXT NOT NULL DEFAULT 'active', -- as stored: active, expired, completed, failed, abandoned
        reason TEXT, -- of the status, such as by_user or idle_timeout
        opened_as TEXT NOT NULL, -- how it was last opened: opened, resumed, revived, reopened or forked
        title TEXT, -- given, or made from the first message of its user
        title_key TEXT NOT NULL DEFAULT '{UNTITLED}', -- the title as it is searched and sorted
        purpose TEXT, -- the purpose given to open
        tags TEXT NOT NULL DEFAULT '[]', -- JSON list of texts
        metadata TEXT NOT NULL DEFAULT '{{}}', -- JSON object of the app
        context TEXT NOT NULL DEFAULT '{{}}', -- JSON object of preferences and facts, which context_for gives to models
        client TEXT NOT NULL DEFAULT '{{}}', -- JSON object that describes the client, such as an app and its version
        idle_timeout_seconds REAL, -- its own setting. Null: the setting of the app, 0: never
        max_age_seconds REAL, -- its own setting. Null: the setting of the app, 0: never
        retention_seconds REAL, -- its own setting. Null: the setting of the app, 0: never
        on_expire TEXT, -- its own setting. Null: the setting of the app
        on_resume TEXT, -- its own setting. Null: the setting of the app
        pinned TEXT, -- JSON object with by, why and at. A pinned session does not expire
        created_at TEXT NOT NULL, -- when it was first opened
        active_since TEXT NOT NULL, -- when it was opened, revived or reopened. Max_age counts from here
        incarnation INTEGER NOT NULL DEFAULT 1, -- of its id. Opening a deleted id again raises it
        last_active_at TEXT NOT NULL, -- the latest run, put, open or ping
        postponed_until TEXT, -- when a hook of on_expiring postponed its expiry
        ended_at TEXT, -- when it expired or was ended
        expires_at TEXT, -- when it expires by its own settings and those of the last writer
        pruned INTEGER NOT NULL DEFAULT 0, -- 1: it expired, and its earlier checkpoints were deleted
        latest_checkpoint_id TEXT, -- of the outermost graph, from which a run continues
        newest_position TEXT, -- the greatest position of the checkpoints of the outermost graph
        checkpoint_count INTEGER NOT NULL DEFAULT 0, -- of the outermost graph. A lost row is detected by it
        write_count INTEGER NOT NULL DEFAULT 0, -- rows of writes of the latest checkpoint. A lost row is detected by it
        branch TEXT NOT NULL DEFAULT 'main', -- the current branch of the conversation
        last_seq INTEGER NOT NULL DEFAULT 0, -- the last seq that was used
        run_count INTEGER NOT NULL DEFAULT 0, -- number of runs
        message_count INTEGER NOT NULL DEFAULT 0, -- number of messages of the conversation, each once
        tool_call_count INTEGER NOT NULL DEFAULT 0, -- number of executions of tools
        model_call_count INTEGER NOT NULL DEFAULT 0, -- number of calls of models
        unpriced_count INTEGER NOT NULL DEFAULT 0, -- calls of models whose cost is not known
        error_count INTEGER NOT NULL DEFAULT 0, -- failed runs and failed tool calls
        waiting_count INTEGER NOT NULL DEFAULT 0, -- open questions of its graph
        input_tokens INTEGER NOT NULL DEFAULT 0, -- sum over its model calls
        output_tokens INTEGER NOT NULL DEFAULT 0, -- sum over its model calls
        cost REAL -- sum over its model calls in US dollars. Null: no call has a known price
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
        session_id TEXT NOT NULL, -- the session that has a run in progress
        number INTEGER NOT NULL, -- of the lease, which later runs exceed
        run_id TEXT, -- the run that holds it
        user_id TEXT, -- the user of the run
        process TEXT NOT NULL, -- that executes the run: host, process id and start time
        started_at TEXT NOT NULL, -- when the run began
        renewed_at TEXT NOT NULL, -- when the process renewed it last. A minute later it has expired
        PRIMARY KEY (session_id, number)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE tombstones (
        id TEXT PRIMARY KEY, -- of the deleted session, which stays reserved for its owner
        user_id TEXT, -- the owner
        group_id TEXT, -- the group
        title TEXT, -- of an archived session
        incarnation INTEGER NOT NULL, -- of the deleted session
        action TEXT NOT NULL, -- deleted, archived, renamed, merged or forgotten
        reason TEXT, -- why. Of a merged session the id that it was merged into
        archive TEXT, -- the name of the file that has the session
        digest TEXT, -- of the archive
        on_resume TEXT, -- the own setting of the session
        retention_seconds REAL, -- the own setting of the session
        ended_at TEXT, -- when an archived session ended
        deleted_at TEXT NOT NULL -- when its rows were deleted
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
        user_hash TEXT PRIMARY KEY, -- a hash of the id of the user, which may be forgotten
        reason TEXT, -- given to revoke
        since TEXT NOT NULL -- when the user was revoked
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE settings (
        name TEXT PRIMARY KEY, -- of a setting that differs from its default
        value TEXT NOT NULL, -- JSON value with which the app last opened the database
        changed_at TEXT NOT NULL -- when it was stored
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE runs (
        session_id TEXT NOT NULL, -- the session
        seq INTEGER NOT NULL, -- its place in the record of the session
        id TEXT NOT NULL, -- of the run, as callbacks of LangChain have it
        user_id TEXT, -- the caller
        outcome TEXT NOT NULL, -- running, ok, error, waiting (at an interrupt) or interrupted (cancelled, or cut off)
        error TEXT, -- class and text of the exception
        tags TEXT, -- JSON list, from the config of the run
        metadata TEXT, -- JSON object, from the config of the run, without ids
        started_at TEXT NOT NULL, -- when it began
        duration_ms REAL, -- how long it took
        input_tokens INTEGER, -- sum over its model calls
        output_tokens INTEGER, -- sum over its model calls
        cost REAL, -- sum over its model calls in US dollars. Null: no call has a known price
        started_from TEXT, -- the checkpoint that it continued
        checkpointed INTEGER NOT NULL DEFAULT 0, -- 1: it has stored a checkpoint
        checkpoint_id TEXT, -- the checkpoint at which it ended
        process TEXT, -- that executes it: host, process id and start time. Null after its end
        PRIMARY KEY (session_id, seq),
        UNIQUE (id, session_id)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX runs_in_progress ON runs (session_id) WHERE outcome = 'running'",
    "CREATE INDEX runs_cut_off ON runs (session_id) WHERE outcome = 'interrupted'",
    "CREATE INDEX runs_by_user ON runs (user_id) WHERE user_id IS NOT NULL",
    """
    CREATE TABLE messages (
        session_id TEXT NOT NULL, -- the session
        seq INTEGER NOT NULL, -- its place in the record of the session
        run_id TEXT, -- the run that it was recorded in
        message_id TEXT NOT NULL, -- the id of LangChain, or one that was made. The same for all versions
        version INTEGER NOT NULL DEFAULT 1, -- 1, and one more for each edit
        replaced_by INTEGER, -- the seq of the next version. Null: this is the latest one
        branch TEXT NOT NULL DEFAULT 'main', -- the branch on which it was said
        position REAL NOT NULL, -- its place in the conversation, the same for all versions
        role TEXT NOT NULL, -- system, user, assistant or tool
        name TEXT, -- of the speaker or of the tool
        text TEXT NOT NULL, -- the text of the content
        content TEXT, -- JSON content, if it is more than the text. Files are replaced by their hash
        tool_calls TEXT, -- JSON list of the calls that an assistant requested
        tool_call_id TEXT, -- the call that a tool message answers
        model TEXT, -- that wrote it
        input_tokens INTEGER, -- of the call that wrote it
        output_tokens INTEGER, -- of the call that wrote it
        status TEXT NOT NULL DEFAULT 'complete', -- complete, or incomplete if its stream was cut off
        checkpoint_ns TEXT NOT NULL DEFAULT '', -- the subgraph. Empty for the outermost graph
        extra TEXT, -- JSON object with further fields of the message of LangChain
        flags TEXT, -- JSON list, such as aside, shared, merged or redacted:emails
        created_at TEXT NOT NULL, -- when it was recorded, or the time given
        PRIMARY KEY (session_id, seq),
        UNIQUE (session_id, message_id, version)
    )
    """,
    "CREATE INDEX messages_moved ON messages (session_id) WHERE position != seq",
    "CREATE INDEX messages_asking ON messages (session_id, seq) WHERE tool_calls IS NOT NULL",
    """
    CREATE TABLE branches (
        session_id TEXT NOT NULL, -- the session
        id TEXT NOT NULL, -- branch-2, branch-3 …. Main has no row
        parent_id TEXT NOT NULL, -- the branch that it leaves
        parent_seq INTEGER NOT NULL, -- it has the messages of its parent up to this seq
        run_id TEXT, -- the run that began it
        created_at TEXT NOT NULL, -- when it began
        PRIMARY KEY (session_id, id)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE files (
        session_id TEXT NOT NULL, -- the session
        hash TEXT NOT NULL, -- sha256 and the digest in hexadecimal, as it stands in the content of messages
        media_type TEXT, -- such as image/png
        data BLOB NOT NULL, -- the bytes
        PRIMARY KEY (session_id, hash)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE tool_calls (
        session_id TEXT NOT NULL, -- the session
        seq INTEGER NOT NULL, -- its place in the record of the session
        run_id TEXT, -- the run that executed it
        execution_id TEXT NOT NULL, -- of this execution
        tool_call_id TEXT NOT NULL, -- the id that the model gave to the call
        attempt INTEGER NOT NULL DEFAULT 1, -- 1, and one more for each further execution of the call
        name TEXT NOT NULL, -- of the tool
        arguments TEXT, -- JSON value
        result TEXT, -- JSON value
        artifact TEXT, -- JSON value that the tool returned beside its result
        status TEXT NOT NULL, -- running, ok, error, refused or interrupted
        error TEXT, -- class and text of the exception, or the reason of a refusal
        message_id TEXT, -- the message that requests the call
        checkpoint_ns TEXT NOT NULL DEFAULT '', -- the subgraph. Empty for the outermost graph
        node TEXT, -- the node that executed it
        flags TEXT, -- JSON list, such as redacted:keys or withheld:result
        started_at TEXT, -- when it began. Committed before the tool runs
        duration_ms REAL, -- how long it took
        process TEXT, -- that executes it outside of a run. Null after its end
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
        session_id TEXT NOT NULL, -- the session
        seq INTEGER NOT NULL, -- its place in the record of the session
        run_id TEXT, -- the run that made it
        id TEXT NOT NULL, -- of the call
        model TEXT, -- the name of the model
        provider TEXT, -- of the model
        input_tokens INTEGER, -- all tokens of the input
        output_tokens INTEGER, -- all tokens of the output
        cached_tokens INTEGER, -- of the input, read from a cache
        reasoning_tokens INTEGER, -- of the output
        cost REAL, -- in US dollars. Null: the model has no known price
        first_token_ms REAL, -- from the beginning to the first token of a streamed answer
        duration_ms REAL, -- how long it took
        error TEXT, -- class and text of the exception
        message_id TEXT, -- the answer
        checkpoint_ns TEXT NOT NULL DEFAULT '', -- the subgraph. Empty for the outermost graph
        node TEXT, -- the node that made it
        flags TEXT, -- JSON list: told (known from a message only), cached (from a cache of LangChain)
        started_at TEXT, -- when it began
        PRIMARY KEY (session_id, seq),
        UNIQUE (session_id, id)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE questions (
        session_id TEXT NOT NULL, -- the session
        seq INTEGER NOT NULL, -- its place in the record of the session
        run_id TEXT, -- the run that asked
        interrupt_id TEXT, -- the id of the interrupt in LangGraph. Null: a breakpoint
        value TEXT, -- JSON value that was passed to interrupt
        node TEXT, -- the node that asked
        checkpoint_ns TEXT NOT NULL DEFAULT '', -- the subgraph. Empty for the outermost graph
        checkpoint_id TEXT, -- of the outermost graph, which waits there
        status TEXT NOT NULL DEFAULT 'open', -- open, answered or dropped
        asked_at TEXT NOT NULL, -- when it was asked
        answer TEXT, -- JSON value with which a run resumed the graph
        answered_by TEXT, -- the user of that run
        answered_at TEXT, -- when that run began
        answer_run_id TEXT, -- that run
        flags TEXT, -- JSON list, such as withheld:value
        PRIMARY KEY (session_id, seq)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX questions_open ON questions (session_id) WHERE status = 'open'",
    "CREATE INDEX questions_by_user ON questions (answered_by) WHERE answered_by IS NOT NULL",
    """
    CREATE TABLE events (
        session_id TEXT NOT NULL, -- the session
        seq INTEGER NOT NULL, -- its place in the record of the session
        run_id TEXT, -- the run that caused it
        kind TEXT NOT NULL, -- opened, resumed, revived, reopened, forked, merged, denied, expired, closed …
        reason TEXT, -- why
        detail TEXT NOT NULL DEFAULT '{}', -- JSON object with further facts
        created_at TEXT NOT NULL, -- when it happened
        PRIMARY KEY (session_id, seq)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX events_of_deletions ON events (session_id) WHERE kind = 'message_deleted'",
    "CREATE INDEX events_user ON events (json_extract(detail, '$.user_id'))"
    " WHERE json_extract(detail, '$.user_id') IS NOT NULL",
    "CREATE INDEX events_actor ON events (json_extract(detail, '$.by')) WHERE json_extract(detail, '$.by') IS NOT NULL",
    """
    CREATE TABLE conversation_items (
        session_id TEXT NOT NULL, -- the session
        position INTEGER NOT NULL, -- of the item in the conversation
        item TEXT NOT NULL, -- JSON item of the other SDK, as it was given
        files TEXT, -- JSON object of the files in it, by their hash
        message_id TEXT NOT NULL, -- the message that the record has of it
        removed INTEGER NOT NULL DEFAULT 0, -- 1: the SDK removed it. The record keeps its message
        PRIMARY KEY (session_id, position)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX conversation_items_present ON conversation_items (session_id, position) WHERE removed = 0",
    """
    CREATE TABLE memories (
        id INTEGER PRIMARY KEY, -- a number
        namespace TEXT NOT NULL, -- texts in one. The first is session, user, group, global, or one of the app
        key TEXT NOT NULL, -- of the item in its namespace
        value TEXT NOT NULL, -- JSON object of the item
        text TEXT, -- that is searched, if it is not that of the value
        paths TEXT, -- JSON list of the fields with vectors. Null: those of the setting index
        session_id TEXT, -- the session that the item belongs to or came from
        message_id TEXT, -- the message that the item came from. It is deleted with the message
        created_at TEXT NOT NULL, -- when it was first put
        updated_at TEXT NOT NULL, -- when it was last put
        expires_at TEXT, -- when it is no longer found
        ttl_minutes REAL, -- its time to live, which a read may begin again
        embedded INTEGER, -- 0: its vectors have to be computed, 1: they are stored. Null: it has none
        terms TEXT, -- the words of its text as they are searched
        vectors BLOB, -- float32 numbers, one vector for each text
        UNIQUE (namespace, key)
    )
    """,
    "CREATE INDEX memories_by_message ON memories (session_id, message_id) WHERE message_id IS NOT NULL",
    "CREATE INDEX memories_by_session ON memories (session_id) WHERE session_id IS NOT NULL",
    "CREATE INDEX memories_by_expiry ON memories (expires_at) WHERE expires_at IS NOT NULL",
    "CREATE INDEX memories_to_embed ON memories (embedded, id) WHERE embedded = 0",
)

TABLES = (*_TABLES, *STATE_TABLES, *INDEX_TABLES)
