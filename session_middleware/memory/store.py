"""`SessionStore`: memories as LangGraph's `BaseStore`.

Inside a running graph access is restricted: only a run whose config has the id may use a namespace that begins with
``session``, ``user`` or ``group`` and that id. The ids come from the run's config, never from the arguments of a
call, which a model may have written. Outside a graph the caller is an operator and may use all namespaces. The store
of one user, `UserSessions.store`, has only the namespaces of the user and of the user's groups, wherever it is called.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from langgraph.config import get_config
from langgraph.store.base import (
    NOT_PROVIDED,
    BaseStore,
    GetOp,
    Item,
    ListNamespacesOp,
    MatchCondition,
    NamespacePath,
    NotProvided,
    Op,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
    TTLConfig,
)

from session_middleware.errors import UserRevoked
from session_middleware.lifecycle import check_access as check_session_access
from session_middleware.lifecycle import session_id_of
from session_middleware.memory.indexer import MemoryIndexer
from session_middleware.memory.ops import check_access, check_ops, check_root, puts_of, select_namespaces, visible
from session_middleware.memory.scopes import Namespace, Owners
from session_middleware.models import Identity
from session_middleware.runtime.run_context import identity_of
from session_middleware.storage.executor import async_twin
from session_middleware.storage.memory_types import MemoryQuery, StoredMemory
from session_middleware.storage.run import RunContext

StoredByKey: TypeAlias = dict[tuple[Namespace, str], StoredMemory | None]


def _running_configurable() -> Mapping[str, Any] | None:
    """The running graph's ``configurable``; ``None`` outside a graph."""
    try:
        return get_config().get("configurable") or {}
    except RuntimeError:  # raised by LangGraph outside a graph
        return None


class SessionStore(BaseStore):
    """A store of JSON values by namespace and key, with filters, vectors and word search.

    With an embedding model a search with a query ranks as LangGraph's own stores do: all items by the cosine of
    the query and the nearest of their vectors, which is the score, then the items without a vector. Without a model
    it finds the items that contain any word of the query, the best first. `put` with ``index=False`` excludes an
    item from this; with paths, only the values at these paths are searched. An item put again keeps its
    `created_at`. An expired item is not found, whether or not it was swept.

    Raises:
        MemoryAccessDenied: inside a graph, for a namespace that another session, user or group owns.
        InvalidNamespaceError: LangGraph's; periods are allowed in the id of an owned namespace.
        UnserializableValue: for a value that is not JSON; nothing of its batch is stored.
        ValueError: for a filter with an unknown operator, and an invalid time to live.
    """

    supports_ttl = True

    def __init__(
        self, indexer: MemoryIndexer, *, ttl: TTLConfig | None = None, identity: Identity | None = None
    ) -> None:
        self._indexer, self._identity = indexer, identity
        self._storage, self._offload = indexer.storage, indexer.offload
        self.ttl_config = ttl

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Execute all operations or none. Reads see the state before the puts, which are one transaction."""
        ops = list(ops)
        owners, context = self._caller(changes=any(isinstance(op, PutOp) for op in ops))
        check_ops(ops)
        if owners is not None:
            for op in ops:
                check_access(op, owners)
        puts = puts_of(ops, owners, embed=self._indexer.embeds)
        stored = self._get([op for op in ops if isinstance(op, GetOp)])
        results = [None if isinstance(op, PutOp) else self._answer(op, owners, stored) for op in ops]
        if puts:
            self._storage.put_memories(puts, context=context)
            self._indexer.embed_items()
        return results

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        return await self._offload.run(self.batch, list(ops))

    def sweep_ttl(self) -> int:
        """Delete the expired items; returns how many. `Sessions.sweep` does it too."""
        return self._storage.collect_garbage()

    def _caller(self, *, changes: bool) -> tuple[Owners | None, RunContext | None]:
        """The owners that the running graph's config names, and its run. No checkpointer may have checked them."""
        if (user := self._identity) is not None:
            if self._storage.list_revoked([user.user_id]):
                raise UserRevoked("", user_id=user.user_id)
            return Owners(None, user.user_id, user.group_id, user.groups, may_use_others=False), None
        configurable = _running_configurable()
        if configurable is None:
            return None, None
        identity, thread_id = identity_of(configurable), configurable.get("thread_id")
        session_id = None if thread_id is None else session_id_of(thread_id)
        owners = Owners(session_id, identity.user_id, identity.group_id, identity.groups)
        if session_id is None:
            return owners, None
        session = self._storage.authorize(RunContext(session_id, identity, reading=True))
        if session is not None and changes:
            check_session_access(session, identity, self._indexer.access)
        context = self._indexer.active_context(configurable) or RunContext(session_id, identity)
        return owners, context

    def _get(self, ops: Sequence[GetOp]) -> StoredByKey:
        keys = [(tuple(op.namespace), op.key) for op in ops]
        refresh = [place for place, op in enumerate(ops) if op.refresh_ttl]
        found = self._storage.get_memories(keys, refresh=refresh) if keys else []
        return dict(zip(keys, found, strict=True))

    def _answer(self, op: Op, owners: Owners | None, stored: StoredByKey) -> Result:
        if isinstance(op, GetOp):
            found = stored[tuple(op.namespace), op.key]
            return None if found is None else Item(**_fields(found))
        if isinstance(op, SearchOp):
            return [SearchItem(**_fields(found), score=found.score) for found in self._search(op, owners)]
        if isinstance(op, ListNamespacesOp):
            return select_namespaces(self._storage.list_namespaces(), op, owners)
        return None

    def _search(self, op: SearchOp, owners: Owners | None) -> list[StoredMemory]:
        prefix = tuple(op.namespace_prefix)
        below_everything = owners is not None and not prefix
        namespaces = visible(self._storage.list_namespaces(), owners) if below_everything else [prefix]
        return self._storage.search_memories(
            MemoryQuery(
                namespaces,
                prefix=not below_everything,
                query=op.query or None,
                filter=op.filter,
                limit=op.limit,
                offset=op.offset,
                vector=self._vector(op.query),
                only_vector=True,
                refresh=op.refresh_ttl,
            )
        )

    def _vector(self, query: str | None) -> list[float] | None:
        return self._indexer.embedder.query(query) if self._indexer.embedder is not None and query else None

    # The methods of the base class validate labels before they call `batch`, and reject the periods of an e-mail
    # address that owns a namespace. Here `batch` does all validation.

    def get(self, namespace: Namespace, key: str, *, refresh_ttl: bool | None = None) -> Item | None:
        found: Item | None = self._one(GetOp(namespace, _key(key), self._refreshes(refresh_ttl)))
        return found

    def search(
        self,
        namespace_prefix: Namespace,
        /,
        *,
        query: str | None = None,
        filter: dict[str, Any] | None = None,
        limit: int = 10,
        offset: int = 0,
        refresh_ttl: bool | None = None,
    ) -> list[SearchItem]:
        op = SearchOp(namespace_prefix, filter, limit, offset, query, self._refreshes(refresh_ttl))
        found: list[SearchItem] = self._one(op)
        return found

    def put(
        self,
        namespace: Namespace,
        key: str,
        value: Mapping[str, Any],
        index: Literal[False] | list[str] | None = None,
        *,
        ttl: float | NotProvided | None = NOT_PROVIDED,
    ) -> None:
        check_root(namespace)
        if isinstance(ttl, NotProvided):
            ttl = (self.ttl_config or {}).get("default_ttl")
        self._one(PutOp(namespace, _key(key), value, index, ttl))

    def delete(self, namespace: Namespace, key: str) -> None:
        self._one(PutOp(namespace, _key(key), None))

    def list_namespaces(
        self,
        *,
        prefix: NamespacePath | None = None,
        suffix: NamespacePath | None = None,
        max_depth: int | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> list[Namespace]:
        paths: list[tuple[Any, NamespacePath | None]] = [("prefix", prefix), ("suffix", suffix)]
        conditions = tuple(MatchCondition(kind, path) for kind, path in paths if path)
        found: list[Namespace] = self._one(ListNamespacesOp(conditions, max_depth, limit, offset))
        return found

    aget = async_twin(get)
    asearch = async_twin(search)
    aput = async_twin(put)
    adelete = async_twin(delete)
    alist_namespaces = async_twin(list_namespaces)

    def _one(self, op: Op) -> Any:
        return self.batch([op])[0]

    def _refreshes(self, refresh_ttl: bool | None) -> bool:
        if refresh_ttl is not None:
            return refresh_ttl
        return self.ttl_config is None or self.ttl_config.get("refresh_on_read", True)


def _key(key: Any) -> Any:
    """The key as text, as LangGraph converts it; ``None`` stays ``None`` and is rejected."""
    return key if key is None else str(key)


def _fields(stored: StoredMemory) -> dict[str, Any]:
    """The fields of an `Item`."""
    return {name: getattr(stored, name) for name in ("namespace", "key", "value", "created_at", "updated_at")}
