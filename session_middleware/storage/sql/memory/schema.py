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
        number INTEGER PRIMARY KEY, -- of the session in the index
        session_id TEXT NOT NULL UNIQUE, -- the session
        user_id TEXT, -- its owner, when it was indexed
        scope_id INTEGER, -- of the messages of one user
        version TEXT NOT NULL DEFAULT '', -- of the tokenizer that indexed it. Empty: it is to be indexed again
        indexed_seq INTEGER NOT NULL DEFAULT 0, -- its messages up to this seq are in the index
        document_seq INTEGER NOT NULL DEFAULT 0, -- the seq of its last message in the index
        embedded_seq INTEGER NOT NULL DEFAULT 0, -- its messages up to this seq have vectors
        documents INTEGER NOT NULL DEFAULT 0, -- number of its messages in the index
        words INTEGER NOT NULL DEFAULT 0 -- number of their words
    )
    """,
    "CREATE INDEX index_sessions_by_user ON index_sessions (user_id)",
    "CREATE INDEX index_sessions_by_version ON index_sessions (version)",
    "CREATE INDEX index_sessions_to_embed ON index_sessions (number) WHERE embedded_seq < document_seq",
    """
    CREATE TABLE index_blocks (
        scope_id INTEGER NOT NULL, -- of the messages of one user
        block INTEGER NOT NULL, -- 1,024 successive documents
        seqs BLOB NOT NULL, -- the seq of each document
        lengths BLOB NOT NULL, -- the number of words of each document
        terms TEXT NOT NULL, -- JSON list of the terms in the block
        PRIMARY KEY (scope_id, block)
    )
    """,
    """
    CREATE TABLE index_postings (
        scope_id INTEGER NOT NULL, -- of the messages of one user
        term TEXT NOT NULL, -- a word as it is searched
        block INTEGER NOT NULL, -- 1,024 successive documents
        postings BLOB NOT NULL, -- document, frequency and length, eight bytes each
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
        number INTEGER NOT NULL, -- of the session in the index
        seq INTEGER NOT NULL, -- the message
        vector BLOB NOT NULL, -- float32 numbers
        PRIMARY KEY (number, seq)
    )
    """,
    """
    CREATE TABLE vector_models (
        id INTEGER PRIMARY KEY CHECK (id = 1), -- always 1
        name TEXT NOT NULL, -- of the embedding model
        dimensions INTEGER NOT NULL -- of its vectors
    )
    """,
)
