"""LangGraph's own savers as an import source: opened for reading only, and deserialised strictly.

`StrictSerializer` decides which values are built. Checkpoints are read by the saver's own methods. The keys of
all checkpoints and the paths that order the writes of parallel tasks come from the saver's tables, because its
interface offers neither without reading every state.
"""

from __future__ import annotations

import copy
import importlib
import json
import sqlite3
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from session_middleware import StorageError, UnserializableValue
from session_middleware.checkpoint.classes import TypeName
from session_middleware.checkpoint.serde import StrictSerializer
from session_middleware.settings import without_secrets
from session_middleware.storage.factory import is_postgres
from session_middleware.storage.sqlite.connection import connect, version_of
from session_middleware.storage.sqlite.files import beside, check_path

Key = tuple[str, str, str]  # thread id, namespace, checkpoint id
Saver = BaseCheckpointSaver[Any]


class CannotCopy(Exception):
    """The reason why a thread is left out."""


_KEYS = "SELECT thread_id, checkpoint_ns, checkpoint_id FROM checkpoints"
_PATHS = "SELECT task_id, task_path FROM {} WHERE thread_id = {} AND checkpoint_ns = {} AND checkpoint_id = {}"
_STATEMENTS = {  # by the module of the saver's class: task paths, and whether the column exists
    "langgraph.checkpoint.sqlite": (
        _PATHS.format("writes", *"???"),
        "SELECT 1 FROM pragma_table_info('writes') WHERE name = 'task_path'",
    ),
    "langgraph.checkpoint.postgres": (
        _PATHS.format("checkpoint_writes", "%s", "%s", "%s"),
        "SELECT 1 FROM pg_attribute WHERE attrelid = 'checkpoint_writes'::regclass AND attname = 'task_path'",
    ),
}
_MALFORMED = (TypeError, ValueError, LookupError, NotImplementedError)  # raised for bytes that are no checkpoint


class ImportSource:
    """The keys, checkpoints and task paths of a saver."""

    def __init__(self, saver: Saver) -> None:
        self._saver: Any = saver
        modules = [cls.__module__ for cls in type(saver).__mro__ if cls.__module__ in _STATEMENTS]
        self._module = modules[0] if modules else None
        self._paths = ""
        if self._module is not None:
            paths, has_paths = _STATEMENTS[self._module]
            self._paths = paths if self._select(has_paths) else ""

    def threads(self) -> list[list[Key]]:
        """The keys of each thread, oldest first; threads in the order of their latest checkpoints."""
        threads: dict[str, list[Key]] = {}
        for key in self._keys():
            threads.setdefault(key[0], []).append(key)
        for keys in threads.values():
            keys.sort(key=lambda key: (key[2], key[1]))
        return sorted(threads.values(), key=lambda keys: keys[-1][2])

    def _keys(self) -> Iterable[Key]:
        if self._module is not None:
            return [(row[0], row[1], row[2]) for row in self._select(_KEYS)]
        configs = (found.config["configurable"] for found in self._saver.list(None))
        return [(config["thread_id"], config.get("checkpoint_ns", ""), config["checkpoint_id"]) for config in configs]

    def read(self, key: Key) -> CheckpointTuple:
        try:
            found: CheckpointTuple | None = self._saver.get_tuple(config_of(*key))
        except UnserializableValue as error:
            raise CannotCopy(f"{name_of(key)}: {error}") from error
        except _MALFORMED as error:
            raise CannotCopy(f"{name_of(key)} is damaged in the source ({error}); restore its backup") from error
        if found is None:
            raise CannotCopy(f"{name_of(key)} was deleted from the source; run the import again")
        return found

    def task_paths(self, key: Key) -> dict[str, str]:
        """The path of each task that wrote; it orders the writes of parallel tasks."""
        return {row[0]: row[1] for row in self._select(self._paths, key)} if self._paths else {}

    def _select(self, sql: str, parameters: tuple[str, ...] = ()) -> list[Any]:
        is_sqlite = self._module == "langgraph.checkpoint.sqlite"
        with self._saver.cursor(transaction=False) if is_sqlite else self._saver._cursor() as cursor:
            cursor.execute(sql, parameters)
            return [tuple(row.values()) if isinstance(row, dict) else row for row in cursor.fetchall()]


def config_of(thread_id: str, checkpoint_ns: str, checkpoint_id: str | None = None) -> RunnableConfig:
    """A config with these keys only, because a saver adds all others to the metadata."""
    key = {"thread_id": thread_id, "checkpoint_ns": checkpoint_ns, "checkpoint_id": checkpoint_id}
    return {"configurable": {name: value for name, value in key.items() if value is not None}}


def name_of(key: Key) -> str:
    return f"checkpoint {key[2]}" + (f" of namespace {key[1]!r}" if key[1] else "")


class _SourceSerializer(StrictSerializer):
    """Raises for a class that is not imported, where `StrictSerializer` would return a dict."""

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
            f"the type {module}.{name} is not allowed to be read from the source",
            advice=f"pass --allow {module}:{name}, or in Python Sessions(..., allowed_types=[{name}])",
        )

    def _reviver(self, value: dict[str, Any]) -> Any:
        """Revives the JSON that LangGraph wrote until 2024, which leaves a class that is not allowed as a dict."""
        made = super()._reviver(value)
        if isinstance(made, dict) and made.get("lc") == 2 and made.get("type") == "constructor":
            *module, name = made["id"]
            raise self._not_allowed(".".join(module), name)
        return made


def reading_strictly(saver: Saver, allowed: Iterable[TypeName], *, only_allowed: bool) -> Saver:
    """The saver with a strict serializer in place of LangGraph's. A user's own serializer stays."""
    if type(saver.serde) not in (JsonPlusSerializer, StrictSerializer):
        return saver
    strict = copy.copy(saver)
    strict.serde = _SourceSerializer(allowed, only_allowed=only_allowed)
    return strict


# Opening


@contextmanager
def open_source(where: str) -> Iterator[Saver]:
    """Open LangGraph's saver on a database path or a postgresql:// URL, for reading one snapshot.

    Nothing is written: the tables are not set up, and no file is created beside an SQLite file, unless another
    program has it open.

    Raises:
        StorageError: the database is missing, is not LangGraph's, or its saver's package is not installed.
    """
    with _open_postgres(where) if is_postgres(where) else _open_sqlite(where) as saver:
        yield saver


@contextmanager
def _open_sqlite(path: str) -> Iterator[Saver]:
    module = _import("langgraph.checkpoint.sqlite", path, "langgraph-checkpoint-sqlite")
    if not Path(path).exists():
        raise StorageError(path, "there is no such file", advice="name the file of a SqliteSaver")
    check_path(path)
    # `immutable` creates no -wal and -shm files, but is correct only while no other program has the file open.
    in_use = version_of(path)[-1] or any(Path(beside(path, end)).exists() for end in ("-shm", "-journal"))
    try:
        with closing(connect(path, "mode=ro" if in_use else "immutable=1")) as connection:
            connection.execute("BEGIN")
            columns = {
                table: {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
                for table in ("checkpoints", "writes")
            }
            _check_columns(path, columns["checkpoints"])
            saver = module.SqliteSaver(connection, serde=StrictSerializer())
            saver.is_setup = True  # setting up would write to the file
            saver._has_task_path = "task_path" in columns["writes"]  # determined by setting up
            yield saver
    except sqlite3.Error as error:
        advice = "name the file of a SqliteSaver, and stop the program that writes to it"
        raise StorageError(path, f"it cannot be read ({error})", advice=advice) from error


@contextmanager
def _open_postgres(url: str) -> Iterator[Saver]:
    where = without_secrets(url)
    module = _import("langgraph.checkpoint.postgres", where, "'langgraph-checkpoint-postgres' 'psycopg[binary]'")
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
        advice = "check the URL and the role's right to read"
        raise StorageError(where, f"it cannot be read ({text})", advice=advice) from error


def _import(module: str, where: str, packages: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        problem = f"{module} is needed to read it ({error})"
        raise StorageError(where, problem, advice=f"install it with pip install {packages}") from error


def _check_columns(where: str, columns: set[str]) -> None:
    if "session_id" in columns:
        raise StorageError(where, "it is session-middleware's own", advice="use it directly, without an import")
    if not columns >= {"thread_id", "checkpoint_ns", "checkpoint_id", "parent_checkpoint_id", "checkpoint", "metadata"}:
        problem = "it holds no checkpoints of LangGraph's"
        raise StorageError(where, problem, advice="name the database of a SqliteSaver or PostgresSaver")
