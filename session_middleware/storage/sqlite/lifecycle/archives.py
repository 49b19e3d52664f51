"""Archives of sessions: one gzipped file of JSON lines each, which can be made a session again.

A line is a row: ``["table", {column: value}]``, bytes as ``{"$bytes": base64}``; the last one counts the
others. A file is written under another name first, synced, renamed, and read back before anything of
the session is deleted. What is shared in a family is written as far as the session refers to it,
and gets new ids when it is restored.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from session_middleware.errors import StorageError
from session_middleware.model import SessionInfo, to_text
from session_middleware.storage.sqlite.files import create_private
from session_middleware.storage.sqlite.lifecycle import events, sessions, tombstones
from session_middleware.storage.sqlite.lifecycle.tombstones import Tombstone
from session_middleware.storage.sqlite.memory import memories
from session_middleware.storage.sqlite.record import runs
from session_middleware.storage.sqlite.rules import Rules
from session_middleware.storage.sqlite.state import checkpoints
from session_middleware.storage.sqlite.state.blobs import find_blob, is_sum
from session_middleware.storage.sqlite.state.sealed import WRONG, Row, WriteRow

VERSION = 1
Line = tuple[str, dict[str, Any]]


class Archive(NamedTuple):
    path: str
    digest: str  # SHA-256 of the lines
    rows: int


# Writing


def read(connection: sqlite3.Connection, session: SessionInfo) -> list[Line]:
    """Everything of a session, row by row: in one snapshot, as `connection` is."""
    lines: list[Line] = [("archive", {"version": VERSION, "database": _mark_of(connection)})]
    lines += _rows(connection, "sessions", "SELECT * FROM sessions WHERE id = ?", session.id)
    for table in (*runs.TABLES, "checkpoints", "heads", "writes"):
        lines += _rows(connection, table, f"SELECT * FROM {table} WHERE session_id = ?", session.id)
    exact, above, below = memories.own_namespaces(session.id)
    remembered = "SELECT * FROM memories WHERE namespace = ? OR namespace >= ? AND namespace < ? ORDER BY id"
    lines += _rows(connection, "memories", remembered, exact, above, below)
    lists, blobs = _references(connection, lines)
    for list_id in sorted(lists):
        lines += _rows(connection, "lists", "SELECT * FROM lists WHERE id = ?", list_id)
        items = "SELECT * FROM list_items WHERE list_id = ? AND position < ?"
        found = list(_rows(connection, "list_items", items, list_id, lists[list_id]))
        blobs.update(row["blob_id"] for _, row in found)
        lines += found
    for blob_id in sorted(blobs):
        lines += _rows(connection, "blobs", "SELECT * FROM blobs WHERE id = ?", blob_id)
    return lines


def _rows(connection: sqlite3.Connection, table: str, sql: str, *values: Any) -> Iterator[Line]:
    cursor = connection.execute(sql, values)
    names = [column[0] for column in cursor.description]
    for row in cursor.fetchall():
        yield table, dict(zip(names, row, strict=True))


def _references(connection: sqlite3.Connection, lines: list[Line]) -> tuple[dict[int, int], set[int]]:
    """The lists that checkpoints refer to with how far, those they are branched from included; and the blobs."""
    lists: dict[int, int] = {}
    blobs: set[int] = set()
    for table, row in lines:
        if table == "checkpoints":
            for ref in json.loads(row["channels"]).values():
                if isinstance(ref, list):
                    lists[ref[0]] = max(lists.get(ref[0], 0), ref[1])
                elif isinstance(ref, int):
                    blobs.add(ref)
        elif table == "writes":
            value = json.loads(row["value"])
            blobs.update([ref[0] for ref in value] if isinstance(value, list) else [] if value is None else [value])
    for list_id in sorted(lists, reverse=True):  # a list is younger than the one it was branched from
        child, upto = list_id, lists[list_id]
        while (parent := _parent(connection, child)) is not None:
            child, upto = parent[0], min(parent[1], upto)
            lists[child] = max(lists.get(child, 0), upto)
    return lists, blobs


def _parent(connection: sqlite3.Connection, list_id: int) -> tuple[int, int] | None:
    row = connection.execute("SELECT parent_id, parent_length FROM lists WHERE id = ?", (list_id,)).fetchone()
    return None if row is None or row[0] is None else (row[0], row[1])


def write(lines: list[Line], folder: Path, session: SessionInfo) -> Archive:
    """Write a file and read it back. Raises `StorageError` when it cannot be written, or reads differently."""
    text = "".join(json.dumps([table, _packed(row)], separators=(",", ":")) + "\n" for table, row in lines)
    text += json.dumps(["end", {"rows": len(lines)}]) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    path = folder / f"{file_name(session.id)}.{session.incarnation}.{lines[0][1]['database']}-{digest[:8]}.jsonl.gz"
    try:
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)  # the ids of sessions are in the names
        temporary = path.with_suffix(".partial")
        temporary.unlink(missing_ok=True)
        create_private(temporary)
        with temporary.open("wb") as file:
            file.write(gzip.compress(text.encode(), mtime=0))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(folder)
    except OSError as error:
        raise StorageError(str(path), f"it cannot be written ({error})", advice="nothing was deleted") from error
    if _text(path, digest) != text:
        raise StorageError(str(path), "it does not read as it was written", advice="nothing was deleted")
    return Archive(str(path.absolute()), digest, len(lines))


def file_name(text: str) -> str:
    """A name any file system takes, and no two texts have in common."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in text)[:64]
    return kept if kept == text else f"{kept}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _mark_of(connection: sqlite3.Connection) -> str:
    """What tells the archives of this database from another's in the same folder: when it was made."""
    made = connection.execute(
        "SELECT applied_at FROM _sqlite_migrations WHERE migration_set = 'session_middleware' ORDER BY id LIMIT 1"
    ).fetchone()
    return hashlib.sha256(str(made[0]).encode()).hexdigest()[:8]


def names_of(connection: sqlite3.Connection, rules: Rules, session_id: str, incarnation: int) -> list[str]:
    """The archives there are of a session, up to this incarnation: also one whose writer has died meanwhile."""
    if rules.archives is None:
        return []
    stem, mark = file_name(session_id), _mark_of(connection)
    found = (rules.archives.glob(f"{stem}.{n}.{mark}-*.jsonl.*") for n in range(1, incarnation + 1))
    return [str(path) for paths in found for path in paths]


def remove(path: str) -> int:
    """How many bytes it had; 0 where there is none. Raises `StorageError` when it cannot be deleted."""
    try:
        size = Path(path).stat().st_size
        Path(path).unlink()
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise StorageError(str(path), f"it cannot be deleted ({error})", advice="see to its rights") from error
    return size


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _packed(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: {"$bytes": base64.b64encode(value).decode()} if isinstance(value, bytes) else value
        for name, value in row.items()
    }


def _unpacked(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: base64.b64decode(value["$bytes"]) if isinstance(value, dict) else value for name, value in row.items()
    }


# Reading


def _text(path: Path, digest: str) -> str:
    try:
        text = gzip.decompress(path.read_bytes()).decode()
    except (OSError, EOFError, ValueError) as error:
        raise StorageError(str(path), f"the archive cannot be read ({error})", advice="restore the file") from error
    if hashlib.sha256(text.encode()).hexdigest() != digest:
        raise StorageError(str(path), "the archive is not what was written", advice="restore the file from a backup")
    return text


def restore(connection: sqlite3.Connection, stone: Tombstone, rules: Rules) -> SessionInfo:
    """Make the session again, expired as it was; whoever resumes it then revives it. Raises `StorageError`."""
    assert stone.archive is not None
    assert stone.digest is not None
    text = _text(Path(rules.archive_at(stone.archive)), stone.digest)
    rows: dict[str, list[dict[str, Any]]] = {}
    for line in text.splitlines():
        table, row = json.loads(line)
        rows.setdefault(table, []).append(_unpacked(row))
    (session,) = rows["sessions"]
    incarnation = tombstones.next_incarnation(connection, stone.id)
    _insert(connection, "sessions", {**session, "status": "opening", "incarnation": incarnation})
    for table in runs.TABLES:
        for row in rows.get(table, ()):
            _insert(connection, table, row)
    for row in rows.get("memories", ()):
        _insert(connection, "memories", {**row, "id": None, **memories.as_not_indexed(row)})
    _restore_state(connection, session["family_id"], rows)
    connection.execute("UPDATE sessions SET status = 'expired' WHERE id = ?", (stone.id,))
    tombstones.restored(connection, stone.id)
    events.append(connection, stone.id, "restored", "archive", {"archived_at": to_text(stone.buried_at)}, rules.clock())
    return sessions.get(connection, stone.id)


def _restore_state(connection: sqlite3.Connection, family_id: str, rows: Mapping[str, list[dict[str, Any]]]) -> None:
    blobs: dict[int, int] = {}
    for row in rows.get("blobs", ()):
        there = find_blob(connection, family_id, row["digest"])
        blobs[row["id"]] = there if there is not None else _insert(connection, "blobs", {**row, "id": None})
    lists: dict[int, int] = {}
    for row in rows.get("lists", ()):  # in the order of their ids: parents first
        parent = None if row["parent_id"] is None else lists[row["parent_id"]]
        lists[row["id"]] = _insert(connection, "lists", {**row, "id": None, "parent_id": parent})
    for row in rows.get("list_items", ()):
        _insert(connection, "list_items", {**row, "list_id": lists[row["list_id"]], "blob_id": blobs[row["blob_id"]]})
    for row in rows.get("checkpoints", ()):
        found = Row(**row)
        channels = json.dumps(_mapped(json.loads(found.channels), lists, blobs), separators=(",", ":"))
        mapped = found._replace(channels=channels)  # what was damaged stays so
        checkpoints.insert(connection, mapped, mapped.sum() if is_sum(found.sum, found.checksum) else WRONG)
    for row in rows.get("writes", ()):
        write = WriteRow(**row)
        value = json.dumps(_written(json.loads(write.value), blobs), separators=(",", ":"))
        checkpoints.insert_writes(connection, [write._replace(value=value)], keep_first=True)
        if not is_sum(write.sum, write.checksum):
            connection.execute(
                "UPDATE writes SET checksum = ? WHERE session_id = ? AND checkpoint_ns = ? AND checkpoint_id = ?",
                (WRONG, *write[:3]),
            )
    for row in rows.get("heads", ()):
        _insert(connection, "heads", row)


def _mapped(refs: dict[str, Any], lists: Mapping[int, int], blobs: Mapping[int, int]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, ref in refs.items():
        if isinstance(ref, list):
            found[name] = [lists[ref[0]], *ref[1:]]
        else:
            found[name] = blobs[ref] if isinstance(ref, int) else ref
    return found


def _written(ref: Any, blobs: Mapping[int, int]) -> Any:
    if isinstance(ref, list):
        return [[blobs[blob_id], length] for blob_id, length in ref]
    return None if ref is None else blobs[ref]


def _insert(connection: sqlite3.Connection, table: str, row: Mapping[str, Any]) -> int:
    """A row with whichever of its columns the table has: a later version may have more, or fewer."""
    columns = [name for (name,) in connection.execute("SELECT name FROM pragma_table_info(?)", (table,))]
    named = {name: row[name] for name in columns if name in row}
    cursor = connection.execute(
        f"INSERT INTO {table} ({', '.join(named)}) VALUES ({', '.join('?' * len(named))})", tuple(named.values())
    )
    return cursor.lastrowid or 0
