"""The tables that the state of a graph is restored from.

The row of a list in `lists` says that it branches off another list, which gives its first `parent_length` elements.
`position` orders the checkpoints of a namespace; see `latest_checkpoint`. Tables with long values have rowids: without
them, SQLite moves all but the first 1,000 bytes of a row to pages of its own.
"""

STATE_TABLES = (
    """
    CREATE TABLE checkpoints (
        home INTEGER NOT NULL, -- the number of the family
        session_id TEXT NOT NULL, -- the session
        checkpoint_ns TEXT NOT NULL, -- the subgraph. Empty for the outermost graph
        position TEXT NOT NULL, -- their order: the id, with a suffix if the clock stepped back
        checkpoint_id TEXT NOT NULL, -- the id in LangGraph
        parent_id TEXT, -- the checkpoint that it continues
        enclosing TEXT NOT NULL, -- JSON object: the checkpoints of the outer graphs, by namespace
        run_id TEXT, -- the run that stored it
        source TEXT, -- input, loop, update or fork
        step INTEGER, -- number of the step, -1 for the input
        channels TEXT NOT NULL, -- JSON object: for each channel, where its value is stored
        type TEXT NOT NULL, -- how the body is serialised
        body BLOB NOT NULL, -- the rest of the checkpoint and its metadata
        branch TEXT, -- the branch of the record that it belongs to
        seq INTEGER, -- the record is known up to this seq
        checksum INTEGER NOT NULL, -- CRC-32 over the content and the key
        PRIMARY KEY (home, session_id, checkpoint_ns, position)
    )
    """,
    "CREATE INDEX checkpoints_by_run ON checkpoints (run_id) WHERE run_id IS NOT NULL",
    """
    CREATE TABLE writes (
        home INTEGER NOT NULL, -- the number of the family
        session_id TEXT NOT NULL, -- the session
        checkpoint_ns TEXT NOT NULL, -- the subgraph. Empty for the outermost graph
        checkpoint_id TEXT NOT NULL, -- the checkpoint that the task began from
        task_id TEXT NOT NULL, -- of the task
        idx INTEGER NOT NULL, -- the place among the writes of the task
        task_path TEXT NOT NULL, -- of the task
        channel TEXT NOT NULL, -- that the value is written to
        value TEXT NOT NULL, -- where the value is stored
        checksum INTEGER NOT NULL, -- CRC-32 over the content and the key
        PRIMARY KEY (home, session_id, checkpoint_ns, checkpoint_id, task_id, idx)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE lists (
        home INTEGER NOT NULL, -- the number of the family
        id INTEGER NOT NULL, -- a number
        parent_id INTEGER NOT NULL, -- the list that it branches off. 0: none
        parent_length INTEGER NOT NULL, -- so many of its first elements are those of its parent
        depth INTEGER NOT NULL, -- how many lists it branches off, one after another
        PRIMARY KEY (home, id)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE list_items (
        home INTEGER NOT NULL, -- the number of the family
        list_id INTEGER NOT NULL, -- the list
        position INTEGER NOT NULL, -- of the first element in the list
        count INTEGER NOT NULL, -- how many successive elements the row holds
        digest BLOB NOT NULL, -- of the elements
        type TEXT, -- how the elements are serialised. Null: they are a blob with this digest
        data BLOB, -- the elements. Null: they are a blob with this digest
        PRIMARY KEY (home, list_id, position)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE blobs (
        home INTEGER NOT NULL, -- the number of the family
        digest BLOB NOT NULL, -- of the value
        type TEXT NOT NULL, -- how the value is serialised
        data BLOB NOT NULL, -- the serialised value
        PRIMARY KEY (home, digest)
    )
    """,
)
