"""The tables that the state of a graph is restored from.

The row of a list in `lists` says that it branches off another list, which gives its first `parent_length` elements.
`position` orders the checkpoints of a namespace; see `latest_checkpoint`. Tables with long values have rowids: without
them, SQLite moves all but the first 1,000 bytes of a row to pages of its own.
"""

STATE_TABLES = (
    """
    CREATE TABLE checkpoints (
        home INTEGER NOT NULL,
        session_id TEXT NOT NULL,
        checkpoint_ns TEXT NOT NULL,
        position TEXT NOT NULL,
        checkpoint_id TEXT NOT NULL,
        parent_id TEXT,
        enclosing TEXT NOT NULL,
        run_id TEXT,
        source TEXT,
        step INTEGER,
        channels TEXT NOT NULL,
        type TEXT NOT NULL,
        body BLOB NOT NULL,
        branch TEXT,
        seq INTEGER,
        checksum INTEGER NOT NULL,
        PRIMARY KEY (home, session_id, checkpoint_ns, position)
    )
    """,
    "CREATE INDEX checkpoints_by_run ON checkpoints (run_id) WHERE run_id IS NOT NULL",
    """
    CREATE TABLE writes (
        home INTEGER NOT NULL,
        session_id TEXT NOT NULL,
        checkpoint_ns TEXT NOT NULL,
        checkpoint_id TEXT NOT NULL,
        task_id TEXT NOT NULL,
        idx INTEGER NOT NULL,
        task_path TEXT NOT NULL,
        channel TEXT NOT NULL,
        value TEXT NOT NULL,
        checksum INTEGER NOT NULL,
        PRIMARY KEY (home, session_id, checkpoint_ns, checkpoint_id, task_id, idx)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE lists (
        home INTEGER NOT NULL,
        id INTEGER NOT NULL,
        parent_id INTEGER NOT NULL,
        parent_length INTEGER NOT NULL,
        depth INTEGER NOT NULL,
        PRIMARY KEY (home, id)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE list_items (
        home INTEGER NOT NULL,
        list_id INTEGER NOT NULL,
        position INTEGER NOT NULL,
        count INTEGER NOT NULL,
        digest BLOB NOT NULL,
        type TEXT,
        data BLOB,
        PRIMARY KEY (home, list_id, position)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE blobs (
        home INTEGER NOT NULL,
        digest BLOB NOT NULL,
        type TEXT NOT NULL,
        data BLOB NOT NULL,
        PRIMARY KEY (home, digest)
    )
    """,
)
