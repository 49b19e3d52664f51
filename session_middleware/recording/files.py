"""Images and files in a message's content, extracted and replaced by a hash of their bytes.

So a file is stored once, however many messages contain it. Only base64 data is extracted: ``data:`` URLs, and
the data of LangChain's, OpenAI's and Anthropic's content blocks. Pure functions.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable
from typing import Any

from session_middleware.storage.jsonable import is_a
from session_middleware.storage.record_entries import Attachment

_DATA_URL = re.compile(r"data:([^;,]*)(?:;[^;,]*)*?;base64,")
_REFERENCE = re.compile(r"(?:data:([^;,]*);)?(sha256:[0-9a-f]{64})")
_DATA_KEYS = frozenset({"base64", "data", "file_data", "bytes"})  # keys of a content block that may hold its bytes
_MIN_LENGTH = 128  # shorter data is not extracted


def extract_files(content: Any) -> tuple[Any, list[Attachment]]:
    """Return the content with a hash in place of each file, and the files."""
    files: list[Attachment] = []
    if is_a(content, list):
        content = [_extract(block, "", None, files) for block in content]
    return content, files


def restore_files(content: Any, read: Callable[[str], bytes | None]) -> Any:
    """Return the original content; `read` returns the bytes for a hash."""
    if isinstance(content, dict):
        return {key: restore_files(part, read) for key, part in content.items()}
    if isinstance(content, list):
        return [restore_files(part, read) for part in content]
    found = _REFERENCE.fullmatch(content) if isinstance(content, str) else None
    data = read(found[2]) if found else None
    if found is None or data is None:
        return content
    text = base64.b64encode(data).decode()
    return text if found[1] is None else f"data:{found[1]};base64,{text}"


def _extract(value: Any, key: str, media_type: str | None, files: list[Attachment]) -> Any:
    if is_a(value, dict):
        kinds = (value.get(name) for name in ("mime_type", "media_type"))
        kind = next((kind for kind in kinds if type(kind) is str and kind), None)
        is_generated = type(value.get("type")) is str and value["type"] == "image_generation_call"
        own = "result" if is_generated else None  # OpenAI's key for the image
        return {name: _extract(part, "data" if name == own else name, kind, files) for name, part in value.items()}
    if is_a(value, list):
        return [_extract(part, key, media_type, files) for part in value]
    if is_a(value, (bytes, bytearray)):
        return _add(bytes(value), media_type, files)
    if not is_a(value, str) or len(value) < _MIN_LENGTH:
        return value
    url = _DATA_URL.match(value)
    if url is not None:
        data = _decode(value[url.end() :])
        return value if data is None else f"data:{url[1]};{_add(data, url[1], files)}"
    data = _decode(value) if key in _DATA_KEYS else None
    return value if data is None else _add(data, media_type, files)


def _decode(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def _add(data: bytes, media_type: str | None, files: list[Attachment]) -> str:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    files.append(Attachment(digest, media_type or None, data))
    return digest
