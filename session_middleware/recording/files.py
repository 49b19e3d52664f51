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

from session_middleware.storage.record_entries import Attachment

_DATA_URL = re.compile(r"data:([^;,]*)(?:;[^;,]*)*?;base64,")
_REFERENCE = re.compile(r"(?:data:([^;,]*);)?(sha256:[0-9a-f]{64})")
_DATA_KEYS = frozenset({"base64", "data", "file_data", "bytes"})  # keys of a content block that may hold its bytes
_MIN_LENGTH = 128  # shorter data is not extracted


def extract_files(content: Any) -> tuple[Any, list[Attachment]]:
    """Return the content with a hash in place of each file, and the files."""
    files: list[Attachment] = []
    return _extract(content, "", None, files) if issubclass(type(content), list) else content, files


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
    kind = type(value)
    if issubclass(kind, str):
        if len(value) < _MIN_LENGTH:
            return value
        url = _DATA_URL.match(value)
        data = _decode(value[url.end() :]) if url else _decode(value) if key in _DATA_KEYS else None
        if data is None:
            return value
        return f"data:{url[1]};{_add(data, url[1], files)}" if url else _add(data, media_type, files)
    if issubclass(kind, dict):
        mime, media, own = value.get("mime_type"), value.get("media_type"), value.get("type")
        own_type = mime if type(mime) is str and mime else media if type(media) is str else None
        own_key = "result" if type(own) is str and own == "image_generation_call" else None  # OpenAI's key of the image
        return {
            name: _extract(part, "data" if name == own_key else name, own_type, files) for name, part in value.items()
        }
    if issubclass(kind, list):
        return [_extract(part, key, media_type, files) for part in value]
    return _add(bytes(value), media_type, files) if issubclass(kind, (bytes, bytearray)) else value


def _decode(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def _add(data: bytes, media_type: str | None, files: list[Attachment]) -> str:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    files.append(Attachment(digest, media_type or None, data))
    return digest
