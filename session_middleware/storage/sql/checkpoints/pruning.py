"""Which of a session's checkpoints go, when not all of them do."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from session_middleware.storage.sql.checkpoints import latest_checkpoint
from session_middleware.storage.sql.checkpoints.blobs import CorruptRow
from session_middleware.storage.sql.checkpoints.delta_channels import ancestors_needed
from session_middleware.storage.sql.checkpoints.rows import HOME, Row
from session_middleware.storage.sql.connection import Connection

Namespaces = Mapping[str, Mapping[str, Row]]  # the checkpoints of a session by namespace and id


def prune(connection: Connection, session_id: str) -> int:
    """Keep the latest checkpoint of each namespace that is still of use; how many went.

    Raises:
        CorruptRow: the latest one cannot be found, so nothing of what is older may go.
    """
    namespaces = _read(connection, session_id)
    latest: dict[str, str] = {}
    for namespace, rows in namespaces.items():
        head = latest_checkpoint.find(connection, session_id, namespace)
        is_complete = bool(namespace) or (head is not None and head.checkpoint_count == len(rows))
        if head is None or head.latest_id not in rows or not is_complete:
            raise CorruptRow("the newest checkpoint cannot be found")
        latest[namespace] = head.latest_id
    kept = {
        (namespace, checkpoint_id)
        for namespace, rows in namespaces.items()
        if _is_of_use(namespace, rows[latest[namespace]], latest, namespaces)
        for checkpoint_id in (latest[namespace], *ancestors_needed(rows, [latest[namespace]]))
    }
    gone = [(ns, checkpoint_id) for ns, rows in namespaces.items() for checkpoint_id in rows]
    gone = [key for key in gone if key not in kept]
    written = connection.execute(
        f"SELECT DISTINCT checkpoint_ns, checkpoint_id FROM writes WHERE {HOME} AND session_id = ?",
        (session_id, session_id),
    ).fetchall()
    lost = [key for key in written if key not in kept and key[1] < latest.get(key[0], "")]
    _delete(connection, session_id, {*gone, *lost}, namespaces)
    return len(gone)


def _is_of_use(namespace: str, row: Row, latest: Mapping[str, str], namespaces: Namespaces) -> bool:
    """Whether a run that goes on from the latest checkpoints can come to this namespace.

    One with a task's id in it (``name:id``) serves the one task it was made for, which belongs to the
    enclosing checkpoint; when that has been left behind, nothing leads there. One that is not stored
    yet leaves nothing behind.
    """
    enclosing: dict[str, str] = json.loads(row.enclosing)

    def position(outer: str, checkpoint_id: str) -> str:
        found = namespaces.get(outer, {}).get(checkpoint_id)
        return checkpoint_id if found is None else found.position

    return ":" not in namespace or all(
        outer not in latest or position(outer, id_) >= position(outer, latest[outer])
        for outer, id_ in enclosing.items()
    )


def delete_for_runs(connection: Connection, run_ids: Sequence[str]) -> dict[str, int]:
    """Delete the checkpoints of some runs, but not those others are replayed from; how many, by session."""
    found = connection.execute(
        "SELECT session_id, checkpoint_ns, checkpoint_id FROM checkpoints"
        " WHERE run_id IN (SELECT value FROM json_each(?))",
        (json.dumps(list(run_ids)),),
    )
    theirs: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for session_id, namespace, checkpoint_id in found.fetchall():
        theirs[session_id].add((namespace, checkpoint_id))
    for session_id, keys in theirs.items():
        namespaces = _read(connection, session_id)
        for namespace in {namespace for namespace, _ in keys}:
            rows = namespaces[namespace]
            staying = [checkpoint_id for checkpoint_id in rows if (namespace, checkpoint_id) not in keys]
            keys -= {(namespace, checkpoint_id) for checkpoint_id in ancestors_needed(rows, staying)}
        _delete(connection, session_id, keys, namespaces)
    return {session_id: len(keys) for session_id, keys in theirs.items() if keys}


def _read(connection: Connection, session_id: str) -> Namespaces:
    columns = ", ".join(name if name != "body" else "x''" for name in Row._fields)  # which is most of a row
    found: dict[str, dict[str, Row]] = defaultdict(dict)
    sql = f"SELECT {columns} FROM checkpoints WHERE {HOME} AND session_id = ?"
    for values in connection.execute(sql, (session_id, session_id)):
        row = Row(*values)
        found[row.checkpoint_ns][row.checkpoint_id] = row
    return found


def _delete(connection: Connection, session_id: str, keys: Collection[tuple[str, str]], namespaces: Namespaces) -> None:
    if not keys:
        return
    changed = "UPDATE sessions SET version = version + 1 WHERE id = ? RETURNING home"
    ((home,),) = connection.execute(changed, (session_id,)).fetchall()
    connection.executemany(
        "DELETE FROM writes WHERE home = ? AND session_id = ? AND checkpoint_ns = ? AND checkpoint_id = ?",
        [(home, session_id, *key) for key in sorted(keys)],
    )
    connection.executemany(
        "DELETE FROM checkpoints WHERE home = ? AND session_id = ? AND checkpoint_ns = ? AND position = ?",
        [
            (home, session_id, namespace, row.position)
            for namespace, rows in namespaces.items()
            for row in rows.values()
            if (namespace, row.checkpoint_id) in keys
        ],
    )
    gone = {checkpoint_id for checkpoint_id in namespaces.get("", {}) if ("", checkpoint_id) in keys}
    if gone:
        latest_checkpoint.recount(connection, home, session_id, gone)
