"""LangGraph's own savers, to read from: opened without writing, and read without trusting.

What is built of a source is what `StrictSerializer` builds. States come by the saver's own methods; what
those do not tell (which checkpoints there are, short of reading every state, and the paths that
order the writes of parallel tasks) comes from its tables.
"""

from __future__ import annotations

import copy
import importlib
import json
import os
import sqlite3
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from session_middleware.checkpoint.classes import TypeName
from session_middleware.checkpoint.serde import StrictSerializer
from session_middleware.errors import StorageError, UnserializableValue

Key = tuple[str, str, str]  # thread id, namespace, checkpoint id
Saver = BaseCheckpointSaver[Any]


class CannotCopy(Exception):
    """Why a thread is left as it is."""


@dataclass(frozen=True, slots=True)
class _Tables:
    """What a saver's interface does not tell, or only by reading every state."""

    keys: str
    paths: str
    has_paths: str


_TABLES = {  # by the module of the saver's class
    "langgraph.checkpoint.sqlite": _Tables(
        keys="SELECT thread_id, checkpoint_ns, checkpoint_id FROM checkpoints",
        paths="SELECT task_id, task_path FROM writes WHERE thread_id = ? AND checkpoint_ns = ? AND checkpoint_id = ?",
        has_paths="SELECT 1 FROM pragma_table_info('writes') WHERE name = 'task_path'",
    ),
    "langgraph.checkpoint.postgres": _Tables(
        keys="SELECT thread_id, checkpoint_ns, checkpoint_id FROM checkpoints",
        paths="SELECT task_id, task_path FROM checkpoint_writes"
        " WHERE thread_id = %s AND checkpoint_ns = %s AND checkpoint_id = %s",
        has_paths="SELECT 1 FROM pg_attribute WHERE attrelid = 'checkpoint_writes'::regclass AND attname = 'task_path'",
    ),
}
_FAULTS = (TypeError, ValueError, LookupError, NotImplementedError)  # of bytes that are no checkpoint


class ImportSource:
    """A saver, as what is in it: states by its own methods, keys and task paths by its tables if they are known."""

    def __init__(self, saver: Saver) -> None:
        self._saver: Any = saver
        self._tables = next((_TABLES[c.__module__] for c in type(saver).__mro__ if c.__module__ in _TABLES), None)
        self._has_paths = self._tables is not None and bool(self._select(self._tables.has_paths))

    def threads(self) -> list[list[Key]]:
        """The keys of each thread, oldest first; threads in the order of their latest, as a sidebar shows them."""
        found: dict[str, list[Key]] = {}
        for key in self._keys():
            found.setdefault(key[0], []).append(key)
        for keys in found.values():
            keys.sort(key=lambda key: (key[2], key[1]))
        return sorted(found.values(), key=lambda keys: keys[-1][2])

    def _keys(self) -> Iterable[Key]:
        if self._tables is not None:
            return [(row[0], row[1], row[2]) for row in self._select(self._tables.keys)]
        where = (found.config["configurable"] for found in self._saver.list(None))
        return [(conf["thread_id"], conf.get("checkpoint_ns", ""), conf["checkpoint_id"]) for conf in where]

    def read(self, key: Key) -> CheckpointTuple:
        try:
            found: CheckpointTuple | None = self._saver.get_tuple(config_of(*key))
        except UnserializableValue as error:
            raise CannotCopy(f"{name_of(key)}: {error}") from error
        except _FAULTS as error:
            raise CannotCopy(f"{name_of(key)} cannot be read ({error}); it is damaged in the source") from error
        if found is None:
            raise CannotCopy(f"{name_of(key)} is gone from the source; run the import again")
        return found

    def task_paths(self, key: Key) -> dict[str, str]:
        """The path of each task that wrote, which orders the writes of parallel tasks."""
        if self._tables is None or not self._has_paths:
            return {}
        return {row[0]: row[1] for row in self._select(self._tables.paths, key)}

    def _select(self, sql: str, parameters: tuple[str, ...] = ()) -> list[Any]:
        is_sqlite = "?" in self._tables.paths if self._tables else False
        with self._saver.cursor(transaction=False) if is_sqlite else self._saver._cursor() as cursor:
            cursor.execute(sql, parameters)
            return [tuple(row.values()) if isinstance(row, dict) else row for row in cursor.fetchall()]


def config_of(thread_id: str, checkpoint_ns: str, checkpoint_id: str | None = None) -> RunnableConfig:
    """With these keys only, because a saver adds any other to the metadata."""
    key = {"thread_id": thread_id, "checkpoint_ns": checkpoint_ns, "checkpoint_id": checkpoint_id}
    return {"configurable": {name: value for name, value in key.items() if value is not None}}


def name_of(key: Key) -> str:
    return f"checkpoint {key[2]}" + (f" of namespace {key[1]!r}" if key[1] else "")


class _SourceSerializer(StrictSerializer):
    """For a copy of what LangGraph wrote: a class that only has to be imported is an error, and no dict.

    It says of a type that is not read how to allow it here.
    """

    def __init__(self, allowed: Iterable[type | TypeName] = (), *, only_allowed: bool = False) -> None:
        super().__init__(allowed, only_allowed=only_allowed)
        self._allowed_json_modules = {(*name[0].split("."), name[1]) for name in self.allowed}

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        if data[0] == "json":
            return json.loads(data[1], object_hook=self._reviver)
        return super().loads_typed(data)

    def _class(self, module: str, name: str, shape: int | None) -> type | None:
        cls = super()._class(module, name, shape)
        if cls is None and module not in sys.modules:
            raise self._not_allowed(module, name)
        return cls

    def _not_allowed(self, module: str, name: str) -> UnserializableValue:
        return UnserializableValue(
            f"the type {module}.{name} is not one that may be read from the source",
            advice=f"pass --allow {module}:{name}, or in Python Sessions(..., allowed_types=[{name}])",
        )

    def _reviver(self, value: dict[str, Any]) -> Any:
        """Of JSON, which LangGraph wrote until 2024; what it does not revive, it would leave as a dict."""
        made = super()._reviver(value)
        if isinstance(made, dict) and made.get("lc") == 2 and made.get("type") == "constructor":
            *module, name = made["id"]
            raise self._not_allowed(".".join(module), name)
        return made


def reading_strictly(saver: Saver, allowed: Iterable[TypeName], *, only_allowed: bool) -> Saver:
    """The saver with LangGraph's own serializer made strict; a serializer of the user's is kept."""
    if type(saver.serde) not in (JsonPlusSerializer, StrictSerializer):
        return saver
    strict = copy.copy(saver)
    strict.serde = _SourceSerializer(allowed, only_allowed=only_allowed)
    return strict


# Opening it


@contextmanager
def open_source(where: str) -> Iterator[Saver]:
    """LangGraph's saver on a database of its own, by a path or a postgresql:// URL, for reading only.

    One snapshot is read. Nothing is written: neither the tables' set-up nor, if no other program has
    the file open, a file beside it.

    Raises:
        StorageError: it is not there, is not LangGraph's, or its saver's package is not installed.
    """
    if where.startswith(("postgresql://", "postgres://")):
        with _open_postgres(where) as saver:
            yield saver
    else:
        with _open_sqlite(where) as saver:
            yield saver


_COLUMNS = {"thread_id", "checkpoint_ns", "checkpoint_id", "parent_checkpoint_id", "checkpoint", "metadata"}


@contextmanager
def _open_sqlite(where: str) -> Iterator[Saver]:
    module = _imported("langgraph.checkpoint.sqlite", where, "langgraph-checkpoint-sqlite")
    path = Path(where)
    if not path.is_file():
        raise StorageError(where, "there is no such file", advice="name the file of a SqliteSaver")
    uri = f"{path.absolute().as_uri()}?{_how_to_open(where)}"
    try:
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)) as connection:
            connection.execute("BEGIN")
            rows = connection.execute("SELECT name FROM pragma_table_info('checkpoints')").fetchall()
            _check_columns(where, {name for (name,) in rows})
            saver = module.SqliteSaver(connection, serde=StrictSerializer())
            saver.is_setup = True  # to set up is to write
            writes = connection.execute("SELECT name FROM pragma_table_info('writes')").fetchall()
            saver._has_task_path = ("task_path",) in writes  # which setting up would find out
            yield saver
    except sqlite3.Error as error:
        advice = "name the file of a SqliteSaver, and stop the program that writes to it"
        raise StorageError(where, f"it cannot be read ({error})", advice=advice) from error


def _how_to_open(where: str) -> str:
    """Immutable makes no -wal and -shm files, but is only right when no other program has the file open."""
    log, memory, journal = (Path(os.path.realpath(where) + end) for end in ("-wal", "-shm", "-journal"))
    in_use = memory.exists() or journal.exists() or (log.exists() and log.stat().st_size > 0)
    return "mode=ro" if in_use else "immutable=1"


@contextmanager
def _open_postgres(url: str) -> Iterator[Saver]:
    parts = urlsplit(url)
    where = f"{parts.scheme}://{parts.hostname or ''}{parts.path}"  # without the password
    module = _imported("langgraph.checkpoint.postgres", where, "'langgraph-checkpoint-postgres' 'psycopg[binary]'")
    psycopg = importlib.import_module("psycopg")
    try:
        with psycopg.connect(url, row_factory=psycopg.rows.dict_row, prepare_threshold=0) as connection:
            connection.read_only = True
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            rows = connection.execute(
                "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass('checkpoints') AND attnum > 0"
            ).fetchall()
            _check_columns(where, {row["attname"] for row in rows})
            yield module.PostgresSaver(connection, serde=StrictSerializer())
    except psycopg.Error as error:
        text = " ".join(str(error).split())
        raise StorageError(where, f"it cannot be read ({text})", advice="check the URL, and who may read") from error


def _imported(module: str, where: str, packages: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        advice = f"install it with pip install {packages}"
        raise StorageError(where, f"{module} is needed to read it ({error})", advice=advice) from error


def _check_columns(where: str, columns: set[str]) -> None:
    if "session_id" in columns:
        raise StorageError(where, "it is session-middleware's own", advice="open it with Sessions(...) or --db")
    if not columns >= _COLUMNS:
        problem = "it holds no checkpoints of LangGraph's"
        raise StorageError(where, problem, advice="name the database of a SqliteSaver or PostgresSaver")
