"""A put of one item, as most tests need it."""

from __future__ import annotations

import json
from typing import Any

from session_middleware.storage.memory_types import MemoryItemPut, MemoryPut


def put_of(
    namespace: tuple[str, ...], key: str, value: dict[str, Any] | None, text: str | None, *rest: Any, **options: Any
) -> MemoryPut:
    item = MemoryItemPut(key, None if value is None else json.dumps(value), text)
    return MemoryPut(namespace, [item], *rest, **options)
