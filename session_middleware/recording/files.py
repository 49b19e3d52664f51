"""Images and files in a message's content: taken out, and named there by a hash of their bytes.

So the same picture is stored once however often a message with it is seen. Only what stands as
base64 is taken: ``data:`` URLs, and the data of LangChain's, OpenAI's and Anthropic's content blocks.
Pure functions.
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
_NAMED = re.compile(r"(?:data:([^;,]*);)?(sha256:[0-9a-f]{64})")
_KEYS = frozenset({"base64", "data", "file_data", "bytes"})  # of a content block, where its bytes may be
_SHORT = 128  # characters that may as well stay where they are


def take_out(content: Any) -> tuple[Any, list[Attachment]]:
    """The content with each file's hash in its place, and the files."""
    files: list[Attachment] = []
    if is_a(content, list):
        content = [_without(block, "", None, files) for block in content]
    return content, files


def put_back(content: Any, read: Callable[[str], bytes | None]) -> Any:
    """The content as it was; `read` gives a file by its hash."""
    if isinstance(content, dict):
        return {key: put_back(part, read) for key, part in content.items()}
    if isinstance(content, list):
        return [put_back(part, read) for part in content]
    named = _NAMED.fullmatch(content) if isinstance(content, str) else None
    data = read(named[2]) if named else None
    if named is None or data is None:
        return content
    text = base64.b64encode(data).decode()
    return text if named[1] is None else f"data:{named[1]};base64,{text}"


def _without(value: Any, key: str, media_type: str | None, files: list[Attachment]) -> Any:
    if is_a(value, dict):
        kinds = (value.get(name) for name in ("mime_type", "media_type"))
        kind = next((kind for kind in kinds if type(kind) is str and kind), None)
        is_generated = type(value.get("type")) is str and value["type"] == "image_generation_call"
        own = "result" if is_generated else None  # where OpenAI puts the image
        return {name: _without(part, "data" if name == own else name, kind, files) for name, part in value.items()}
    if is_a(value, list):
        return [_without(part, key, media_type, files) for part in value]
    if is_a(value, (bytes, bytearray)):
        return _name(bytes(value), media_type, files)
    if not is_a(value, str) or len(value) < _SHORT:
        return value
    url = _DATA_URL.match(value)
    if url is not None:
        data = _decode(value[url.end() :])
        return value if data is None else f"data:{url[1]};{_name(data, url[1], files)}"
    data = _decode(value) if key in _KEYS else None
    return value if data is None else _name(data, media_type, files)


def _decode(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def _name(data: bytes, media_type: str | None, files: list[Attachment]) -> str:
    name = f"sha256:{hashlib.sha256(data).hexdigest()}"
    files.append(Attachment(name, media_type or None, data))
    return name
