"""A session as a folder of plain files, for scripts and for people with an editor."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic_core import to_jsonable_python

from session_middleware.models import Record
from session_middleware.storage.atomic_files import created, file_name, new_folder

if TYPE_CHECKING:
    from session_middleware.session import Session

R = TypeVar("R", bound=Record)

_PAGE = 500  # records in memory


def write_folder(session: Session, path: Path) -> None:
    """Write ``metadata.json``, ``conversation.jsonl``, ``tool_calls.jsonl``, and ``tool_calls/<seq>-<name>.json``."""
    with new_folder(path) as folder:
        about = {"session": to_jsonable_python(dict(session)), "stats": session.stats().model_dump(mode="json")}
        _write(folder / "metadata.json", [json.dumps(about, indent=2, ensure_ascii=False)])
        _write(folder / "conversation.jsonl", map(_line, pages(session.messages)))
        calls = folder / "tool_calls"
        calls.mkdir(mode=0o700)
        with created(folder / "tool_calls.jsonl") as listing:
            for call in pages(session.tool_calls):
                listing.write(_line(call).encode() + b"\n")
                name = f"{call.seq:06}-{file_name(call.name)}.json"
                _write(calls / name, [json.dumps(call.model_dump(mode="json"), indent=2, ensure_ascii=False)])


def pages(read: Callable[..., Sequence[R]]) -> Iterator[R]:
    """All records that a method of a session returns, read a page at a time."""
    after = 0
    while page := read(after=after, limit=_PAGE):
        yield from page
        after = page[-1].seq


def _line(record: Any) -> str:
    return json.dumps(record.model_dump(mode="json"), ensure_ascii=False)


def _write(path: Path, lines: Iterable[str]) -> None:
    with created(path) as file:
        for line in lines:
            file.write(line.encode() + b"\n")
