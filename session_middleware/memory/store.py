"""`SessionStore`: the storage's memories as LangGraph's `BaseStore`.

Inside a running graph it is a guarded door: namespaces that begin with ``session``, ``user`` or
``group`` are open to the run whose config carries that id, and to no other. The ids come from the
runtime config, never from the arguments of a call, which a model may have written. Outside a graph
it is an operator's door and opens everything.
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

from session_middleware.lifecycle import check_access as check_session_access
from session_middleware.memory.indexer import MemoryIndexer
from session_middleware.memory.ops import check_access, check_ops, check_root, puts_of, select_namespaces, visible
from session_middleware.memory.scopes import Namespace, Owners
from session_middleware.runtime.run_context import identity_of
from session_middleware.storage.memory_types import MemoryQuery, StoredMemory
from session_middleware.storage.run import RunContext

Gotten: TypeAlias = dict[tuple[Namespace, str], StoredMemory | None]


def running_owners() -> Owners | None:
    """Whose memories the running graph may use, by its config: if that names nobody, nobody's. ``None``: none runs."""
    try:
        configurable = get_config().get("configurable") or {}
    except RuntimeError:  # LangGraph's way to say that nothing runs here
        return None
    identity, thread_id = identity_of(configurable), configurable.get("thread_id")
    session = None if thread_id is None else str(thread_id)
    return Owners(session, identity.user_id, identity.group_id, identity.groups)


class SessionStore(BaseStore):
    """A store of JSON values by namespace and key, with filters, vectors and word search.

    With an embedding model a search with a query ranks as LangGraph's own stores do: all items by the cosine
    of the query and the nearest of their vectors, which is their score, then those that have none. Without one it
    finds the items that hold any word of the query, best first. `put` with ``index=False`` keeps an item out of
    this; with paths, only these are searched. Items put again keep their `created_at`. An item whose
    time to live is over is not there, whether or not it was swept.

    Raises, from every method:
        MemoryAccessDenied: inside a graph, a namespace owned by another session, user or group.
        InvalidNamespaceError: LangGraph's; periods are allowed in the id of an owned namespace.
        UnserializableValue: a value that JSON cannot keep; nothing of its batch is stored.
        ValueError: a filter with an unknown operator; a time to live that is none.
    """

    supports_ttl = True

    def __init__(self, parts: MemoryIndexer, *, ttl: TTLConfig | None = None) -> None:
        self._parts = parts
        self._storage = parts.storage
        self.ttl_config = ttl

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Carry out all or none: reads see what was there before the puts, which go in together."""
        ops = list(ops)
        owners = running_owners()
        if owners is not None and owners.session is not None:
            self._check_session(owners.session, changes=any(isinstance(op, PutOp) for op in ops))
        check_ops(ops)
        if owners is not None:
            for op in ops:
                check_access(op, owners)
        puts = puts_of(ops, owners, embed=self._parts.embeds)
        gotten = self._get([op for op in ops if isinstance(op, GetOp)])
        results = [None if isinstance(op, PutOp) else self._answer(op, owners, gotten) for op in ops]
        if puts:
            self._storage.put_memories(puts, context=self._visit(owners))
            self._parts.embed_items()
        return results

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        return await self._parts.offload.run(self.batch, list(ops))

    def sweep_ttl(self) -> int:
        """Delete the items whose time to live is over; how many. `Sessions.sweep` does it too."""
        return self._storage.delete_expired_memories()

    def _check_session(self, session_id: str, *, changes: bool) -> None:
        """The running graph may have no checkpointer, so that nobody has asked yet whose session this is."""
        identity = identity_of(get_config().get("configurable") or {})
        session = self._storage.authorize(RunContext(session_id, identity, reading=True))
        if session is not None and changes:
            check_session_access(session, identity, self._parts.access)

    def _visit(self, owners: Owners | None) -> RunContext | None:
        """Who puts something: the running graph's visit of its session."""
        if owners is None or owners.session is None:
            return None
        configurable = get_config().get("configurable") or {}
        return self._parts.inside(configurable) or RunContext(owners.session, identity_of(configurable))

    def _get(self, ops: Sequence[GetOp]) -> Gotten:
        keys = [(tuple(op.namespace), op.key) for op in ops]
        refresh = [place for place, op in enumerate(ops) if op.refresh_ttl]
        found = self._storage.get_memories(keys, refresh=refresh) if keys else []
        return dict(zip(keys, found, strict=True))

    def _answer(self, op: Op, owners: Owners | None, gotten: Gotten) -> Result:
        if isinstance(op, GetOp):
            return _item(gotten[tuple(op.namespace), op.key])
        if isinstance(op, SearchOp):
            return [_search_item(stored) for stored in self._search(op, owners)]
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
        return self._parts.embedder.query(query) if self._parts.embedder is not None and query else None

    # The methods of the base class check labels before they call `batch`, and refuse the periods of
    # an owner's e-mail address. So they are here again: `batch` does all the checking there is.

    def get(self, namespace: Namespace, key: str, *, refresh_ttl: bool | None = None) -> Item | None:
        return self.batch([self._get_op(namespace, key, refresh_ttl)])[0]  # type: ignore[return-value]

    async def aget(self, namespace: Namespace, key: str, *, refresh_ttl: bool | None = None) -> Item | None:
        return (await self.abatch([self._get_op(namespace, key, refresh_ttl)]))[0]  # type: ignore[return-value]

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
        return self.batch([op])[0]  # type: ignore[return-value]

    async def asearch(
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
        return (  # type: ignore[return-value]
            await self.abatch([SearchOp(namespace_prefix, filter, limit, offset, query, self._refreshes(refresh_ttl))])
        )[0]

    def put(
        self,
        namespace: Namespace,
        key: str,
        value: Mapping[str, Any],
        index: Literal[False] | list[str] | None = None,
        *,
        ttl: float | NotProvided | None = NOT_PROVIDED,
    ) -> None:
        self.batch([self._put_op(namespace, key, value, index, ttl)])

    async def aput(
        self,
        namespace: Namespace,
        key: str,
        value: Mapping[str, Any],
        index: Literal[False] | list[str] | None = None,
        *,
        ttl: float | NotProvided | None = NOT_PROVIDED,
    ) -> None:
        await self.abatch([self._put_op(namespace, key, value, index, ttl)])

    def delete(self, namespace: Namespace, key: str) -> None:
        self.batch([PutOp(namespace, _key(key), None)])

    async def adelete(self, namespace: Namespace, key: str) -> None:
        await self.abatch([PutOp(namespace, _key(key), None)])

    def list_namespaces(
        self,
        *,
        prefix: NamespacePath | None = None,
        suffix: NamespacePath | None = None,
        max_depth: int | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> list[Namespace]:
        op = ListNamespacesOp(_conditions(prefix, suffix), max_depth, limit, offset)
        return self.batch([op])[0]  # type: ignore[return-value]

    async def alist_namespaces(
        self,
        *,
        prefix: NamespacePath | None = None,
        suffix: NamespacePath | None = None,
        max_depth: int | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> list[Namespace]:
        op = ListNamespacesOp(_conditions(prefix, suffix), max_depth, limit, offset)
        return (await self.abatch([op]))[0]  # type: ignore[return-value]

    def _get_op(self, namespace: Namespace, key: str, refresh_ttl: bool | None) -> GetOp:
        return GetOp(namespace, _key(key), self._refreshes(refresh_ttl))

    def _refreshes(self, refresh_ttl: bool | None) -> bool:
        if refresh_ttl is not None:
            return refresh_ttl
        return self.ttl_config is None or self.ttl_config.get("refresh_on_read", True)

    def _put_op(
        self,
        namespace: Namespace,
        key: str,
        value: Mapping[str, Any],
        index: Literal[False] | list[str] | None,
        ttl: float | NotProvided | None,
    ) -> PutOp:
        check_root(namespace)
        if isinstance(ttl, NotProvided):
            ttl = (self.ttl_config or {}).get("default_ttl")
        return PutOp(namespace, _key(key), value, index, ttl)


def _key(key: Any) -> Any:
    """As text, which LangGraph makes of numbers too; nothing is not made "None"."""
    return key if key is None else str(key)


def _conditions(prefix: NamespacePath | None, suffix: NamespacePath | None) -> tuple[MatchCondition, ...]:
    starts = (MatchCondition("prefix", prefix),) if prefix else ()
    ends = (MatchCondition("suffix", suffix),) if suffix else ()
    return starts + ends


def _item(stored: StoredMemory | None) -> Item | None:
    if stored is None:
        return None
    return Item(
        value=stored.value,
        key=stored.key,
        namespace=stored.namespace,
        created_at=stored.created_at,
        updated_at=stored.updated_at,
    )


def _search_item(stored: StoredMemory) -> SearchItem:
    return SearchItem(
        namespace=stored.namespace,
        key=stored.key,
        value=stored.value,
        created_at=stored.created_at,
        updated_at=stored.updated_at,
        score=stored.score,
    )
