"""The tables that a graph's state is restored from.

Its values are blobs, stored once per family by their digest. A list is rows of `list_items`; the
list it was branched from is its parent and gives its first `parent_length` elements. Lists only
grow, and their ids are never used twice, so "the first n elements of list i" means the same for ever.

A checkpoint's `place` is where it stands among those of its namespace: it is its id, which begins with a time,
unless the clock was behind that of a checkpoint which is there already; then it comes right after the newest.

A checkpoint's row notes the next older one of its namespace and how many writes that has (`previous_id`:
null for its parent, empty for none); `heads` notes the newest, and `latest_id`, which was put last and is
mostly the same. So a row that has vanished is missed.
"""

STATE_TABLES = (
    """
    CREATE TABLE checkpoints (
        session_id TEXT NOT NULL,
        checkpoint_ns TEXT NOT NULL,
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
        previous_id TEXT,
        previous_writes INTEGER NOT NULL,
        place TEXT NOT NULL,
        checksum INTEGER NOT NULL,
        PRIMARY KEY (session_id, checkpoint_ns, place)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE heads (
        session_id TEXT NOT NULL,
        checkpoint_ns TEXT NOT NULL,
        checkpoint_id TEXT NOT NULL,
        place TEXT NOT NULL,
        latest_id TEXT NOT NULL,
        write_count INTEGER NOT NULL,
        checksum INTEGER NOT NULL,
        PRIMARY KEY (session_id, checkpoint_ns)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX checkpoints_by_run ON checkpoints (run_id) WHERE run_id IS NOT NULL",
    """
    CREATE TABLE writes (
        session_id TEXT NOT NULL,
        checkpoint_ns TEXT NOT NULL,
        checkpoint_id TEXT NOT NULL,
        task_id TEXT NOT NULL,
        idx INTEGER NOT NULL,
        task_path TEXT NOT NULL,
        channel TEXT NOT NULL,
        value TEXT,
        checksum INTEGER NOT NULL,
        PRIMARY KEY (session_id, checkpoint_ns, checkpoint_id, task_id, idx)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE lists (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        family_id TEXT NOT NULL,
        parent_id INTEGER,
        parent_length INTEGER NOT NULL DEFAULT 0,
        depth INTEGER NOT NULL DEFAULT 0
    )
    """,
    "CREATE INDEX lists_by_family ON lists (family_id)",
    """
    CREATE TABLE list_items (
        list_id INTEGER NOT NULL,
        position INTEGER NOT NULL,
        count INTEGER NOT NULL,
        blob_id INTEGER NOT NULL,
        PRIMARY KEY (list_id, position)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE blobs (
        id INTEGER PRIMARY KEY,
        family_id TEXT NOT NULL,
        digest BLOB NOT NULL,
        checksum INTEGER NOT NULL,
        type TEXT NOT NULL,
        data BLOB NOT NULL,
        UNIQUE (family_id, digest)
    )
    """,
)
