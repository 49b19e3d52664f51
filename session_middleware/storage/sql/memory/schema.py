"""The tables of the search index: `index_…` for words, `vectors` for embeddings.

They are derived data and can be rebuilt from the tables of `sql/schema.py`; `indexing.py` explains how they
belong together. Triggers record changed and deleted messages in `index_stale`, so that no other code has to
maintain the index. An item that came from a message expires when that message is deleted.
"""

INDEX_TABLES = (
    """
    CREATE TABLE index_scopes (
        id INTEGER PRIMARY KEY,
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        version TEXT NOT NULL DEFAULT '',
        documents INTEGER NOT NULL DEFAULT 0,
        words INTEGER NOT NULL DEFAULT 0,
        passages INTEGER NOT NULL DEFAULT 0,
        positions INTEGER NOT NULL DEFAULT 0,
        indexed INTEGER NOT NULL DEFAULT 0,
        UNIQUE (kind, name)
    )
    """,
    "CREATE INDEX index_scopes_to_index ON index_scopes (id) WHERE indexed < positions",
    """
    CREATE TABLE index_sessions (
        number INTEGER PRIMARY KEY,
        session_id TEXT NOT NULL UNIQUE,
        scope_id INTEGER NOT NULL,
        indexed_seq INTEGER NOT NULL DEFAULT 0,
        positions INTEGER NOT NULL DEFAULT 0,
        embedded INTEGER NOT NULL DEFAULT 0,
        documents INTEGER NOT NULL DEFAULT 0,
        words INTEGER NOT NULL DEFAULT 0
    )
    """,
    "CREATE INDEX index_sessions_by_scope ON index_sessions (scope_id)",
    "CREATE INDEX index_sessions_to_embed ON index_sessions (scope_id, number) WHERE embedded < positions",
    """
    CREATE TABLE index_blocks (
        scope_id INTEGER NOT NULL,
        block INTEGER NOT NULL,
        seqs BLOB NOT NULL,
        lengths BLOB NOT NULL,
        terms TEXT NOT NULL,
        PRIMARY KEY (scope_id, block)
    )
    """,
    """
    CREATE TABLE index_postings (
        scope_id INTEGER NOT NULL,
        term TEXT NOT NULL,
        block INTEGER NOT NULL,
        postings BLOB NOT NULL,
        PRIMARY KEY (scope_id, term, block)
    ) WITHOUT ROWID
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
        (SELECT 1 FROM index_sessions WHERE session_id = new.session_id AND indexed_seq >= new.seq)
    BEGIN INSERT INTO index_stale VALUES (new.session_id, new.seq) ON CONFLICT DO NOTHING; END
    """,
    """
    CREATE TRIGGER index_message_deleted AFTER DELETE ON messages
    WHEN EXISTS (SELECT 1 FROM index_sessions WHERE session_id = old.session_id AND indexed_seq >= old.seq)
    BEGIN INSERT INTO index_stale VALUES (old.session_id, old.seq) ON CONFLICT DO NOTHING; END
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
        scope_id INTEGER NOT NULL,
        document INTEGER NOT NULL,
        vector BLOB NOT NULL,
        PRIMARY KEY (scope_id, document)
    )
    """,
    """
    CREATE TABLE vector_models (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        name TEXT NOT NULL,
        dimensions INTEGER NOT NULL
    )
    """,
)
