"""The tables that make memories and messages findable: `index_…` for words, `vectors` for what is meant.

All they hold can be made again from the tables of `schema.py`; `indexing.py` says how they hang
together. The triggers see to it that nobody who changes or deletes a message has to think of them. What
came from a message ends when it is deleted, unless its whole session is.
"""

INDEX_TABLES = (
    """
    CREATE TABLE index_scopes (
        id INTEGER PRIMARY KEY,
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        texts INTEGER NOT NULL DEFAULT 0,
        words INTEGER NOT NULL DEFAULT 0,
        stretches INTEGER NOT NULL DEFAULT 0,
        UNIQUE (kind, name)
    )
    """,
    """
    CREATE TABLE index_sessions (
        number INTEGER PRIMARY KEY,
        session_id TEXT NOT NULL UNIQUE,
        scope_id INTEGER NOT NULL,
        last_seq INTEGER NOT NULL DEFAULT 0,
        positions INTEGER NOT NULL DEFAULT 0,
        embedded INTEGER NOT NULL DEFAULT 0,
        texts INTEGER NOT NULL DEFAULT 0,
        words INTEGER NOT NULL DEFAULT 0
    )
    """,
    "CREATE INDEX index_sessions_by_scope ON index_sessions (scope_id)",
    "CREATE INDEX index_sessions_to_embed ON index_sessions (number) WHERE embedded < positions",
    """
    CREATE TABLE index_parts (
        part INTEGER PRIMARY KEY,
        seqs BLOB NOT NULL,
        lengths BLOB NOT NULL,
        terms TEXT NOT NULL
    )
    """,
    """
    CREATE TABLE index_words (
        scope_id INTEGER NOT NULL,
        term TEXT NOT NULL,
        part INTEGER NOT NULL,
        postings BLOB NOT NULL,
        PRIMARY KEY (scope_id, term, part)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE index_progress (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        message INTEGER NOT NULL DEFAULT 0,
        session_id TEXT,
        seq INTEGER,
        words TEXT
    )
    """,
    """
    CREATE TABLE index_stale (
        session_id TEXT NOT NULL,
        seq INTEGER NOT NULL,
        PRIMARY KEY (session_id, seq)
    ) WITHOUT ROWID
    """,
    """
    CREATE TRIGGER index_message_changed AFTER UPDATE OF text ON messages
    WHEN new.text != old.text AND EXISTS
        (SELECT 1 FROM index_sessions WHERE session_id = new.session_id AND last_seq >= new.seq)
    BEGIN INSERT OR IGNORE INTO index_stale VALUES (new.session_id, new.seq); END
    """,
    """
    CREATE TRIGGER index_message_deleted AFTER DELETE ON messages
    WHEN EXISTS (SELECT 1 FROM index_sessions WHERE session_id = old.session_id AND last_seq >= old.seq)
    BEGIN INSERT OR IGNORE INTO index_stale VALUES (old.session_id, old.seq); END
    """,
    """
    CREATE TRIGGER message_deleted AFTER DELETE ON messages
    WHEN EXISTS (SELECT 1 FROM sessions WHERE id = old.session_id)
    BEGIN UPDATE memories SET expires_at = '0' WHERE session_id = old.session_id AND message_id = old.message_id; END
    """,
    """
    CREATE TRIGGER message_renamed AFTER UPDATE OF message_id ON messages
    WHEN new.message_id != old.message_id
    BEGIN
        UPDATE memories SET message_id = new.message_id
        WHERE session_id = old.session_id AND message_id = old.message_id;
    END
    """,
    """
    CREATE TABLE vectors (
        id INTEGER PRIMARY KEY,
        scope_id INTEGER NOT NULL,
        place INTEGER NOT NULL,
        vector BLOB NOT NULL
    )
    """,
    "CREATE INDEX vectors_by_scope ON vectors (scope_id, place)",
    """
    CREATE TABLE vector_models (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        name TEXT NOT NULL,
        dimensions INTEGER NOT NULL
    )
    """,
)
