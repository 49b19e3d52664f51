"""The tables of the search index: `index_…` for words, `vectors` for embeddings of messages.

They are derived data and can be rebuilt from the tables of `sql/schema.py`; `indexing.py` explains how they
belong together. Triggers mark the sessions whose messages are changed or deleted, so that no other code has to
maintain the index. An item that came from a message expires when that message is deleted.
"""

_OUTDATE = """
    UPDATE index_sessions
    SET version = '', embedded_seq = CASE WHEN embedded_seq < old.seq THEN embedded_seq ELSE old.seq - 1 END
    WHERE session_id = old.session_id AND indexed_seq >= old.seq
"""
INDEX_TABLES = (
    """
    CREATE TABLE index_sessions (
        number INTEGER PRIMARY KEY,
        session_id TEXT NOT NULL UNIQUE,
        user_id TEXT,
        scope_id INTEGER,
        version TEXT NOT NULL DEFAULT '',
        indexed_seq INTEGER NOT NULL DEFAULT 0,
        document_seq INTEGER NOT NULL DEFAULT 0,
        embedded_seq INTEGER NOT NULL DEFAULT 0,
        documents INTEGER NOT NULL DEFAULT 0,
        words INTEGER NOT NULL DEFAULT 0
    )
    """,
    "CREATE INDEX index_sessions_by_user ON index_sessions (user_id)",
    "CREATE INDEX index_sessions_by_version ON index_sessions (version)",
    "CREATE INDEX index_sessions_to_embed ON index_sessions (number) WHERE embedded_seq < document_seq",
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
    f"""
    CREATE TRIGGER index_message_changed AFTER UPDATE OF text, replaced_by ON messages
    WHEN new.text != old.text OR new.replaced_by IS NOT old.replaced_by
    BEGIN {_OUTDATE}; END
    """,
    f"""
    CREATE TRIGGER index_message_deleted AFTER DELETE ON messages
    BEGIN {_OUTDATE}; END
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
        number INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        vector BLOB NOT NULL,
        PRIMARY KEY (number, seq)
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
