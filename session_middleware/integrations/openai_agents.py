"""A session for OpenAI's Agents SDK.

``await Runner.run(agent, "hi", session=OpenAIAgentsSession(sessions, "thread-42", user_id="alice"))``

Items are stored and returned unchanged, and each is also a message of the record. An item that the SDK removes
stays in the record, with the flag ``removed``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from functools import partial
from typing import Any

from agents import RunContextWrapper
from agents.items import TResponseInputItem
from agents.memory import SessionSettings

from session_middleware import Sessions, UnserializableValue, lifecycle
from session_middleware.recording.files import extract_files, restore_files
from session_middleware.runtime.run_context import named_identity
from session_middleware.storage.record_entries import Attachment, MessageEntry
from session_middleware.storage.run import RunContext
from session_middleware.storage.types import ConversationItemPut, StoredItem

_NOT_APPROVED = "Tool execution was not approved."  # the SDK's default text
_SEARCHED_ITEMS = 200  # among which the call of an answer is searched
_TEXTS = ("text", "refusal", "transcript")  # the fields of content parts that hold text
_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}


class OpenAIAgentsSession:
    """One conversation for `Runner`; any number of runs may use it, also at the same time.

    Every method raises `SessionAccessDenied` if the session has another owner, and `SessionExpired`
    if it has expired and ``on_resume`` is ``"reject"``.

    Args:
        sessions: The storage.
        session_id: The id of a new or existing session. By default a new id.
        session_settings: The SDK's settings, such as the number of items that a run starts with, or a dict of them.
    """

    def __init__(
        self,
        sessions: Sessions,
        session_id: object = None,
        *,
        user_id: str | None = None,
        group_id: str | None = None,
        session_settings: SessionSettings | Mapping[str, Any] | None = None,
    ) -> None:
        self.session_id = sessions.new_id() if session_id is None else lifecycle.session_id_of(session_id)
        self.session_settings = session_settings
        self._sessions = sessions
        self._identity = named_identity(user_id, group_id)
        self._context: RunContext | None = None

    @property
    def session_settings(self) -> SessionSettings:
        return self._settings

    @session_settings.setter
    def session_settings(self, given: SessionSettings | Mapping[str, Any] | None) -> None:
        if given is not None and not isinstance(given, (SessionSettings, Mapping)):
            raise TypeError(f"session_settings cannot be {given!r}; give the SDK's SessionSettings, or a dict of them")
        if not isinstance(given, SessionSettings):
            if unknown := (given or {}).keys() - {field.name for field in fields(SessionSettings)}:
                raise TypeError(f"unknown session settings: {', '.join(sorted(unknown))}")
            given = SessionSettings(**(given or {}))
        self._settings = given

    async def get_items(
        self, limit: int | None = None, *, wrapper: RunContextWrapper[Any] | None = None
    ) -> list[TResponseInputItem]:
        """Return the last `limit` items in order, by default as many as the settings say. A run starts with this.

        The SDK passes the context of its run to each method as `wrapper`.
        """
        return await self._sessions._offload.run(self._get, limit if limit is not None else self._settings.limit)

    def _get(self, limit: int | None) -> list[TResponseInputItem]:
        self._context = RunContext(self.session_id, self._identity)
        if self._sessions._storage.authorize(self._context) is None:
            return []
        return list(map(_whole, self._stored(limit)))

    def _stored(self, limit: int | None) -> list[StoredItem]:
        return self._sessions._storage.list_items(self.session_id, limit=limit)

    async def add_items(
        self, items: list[TResponseInputItem], *, wrapper: RunContextWrapper[Any] | None = None
    ) -> None:
        """Append all items or none of them. They are committed when this returns.

        Raises:
            UnserializableValue: one of them is not JSON.
        """
        if items:
            puts = list(self._puts(items, await self._find_refused(items, wrapper)))
            await self._write(self._sessions._storage.append_items, puts)

    async def pop_item(self, *, wrapper: RunContextWrapper[Any] | None = None) -> TResponseInputItem | None:
        """Remove the last item and return it; ``None`` if there is none."""
        removed = await self._write(self._sessions._storage.remove_items, limit=1)
        return _whole(removed[0]) if removed else None

    async def clear_session(self, *, wrapper: RunContextWrapper[Any] | None = None) -> None:
        """Remove all items. The record stays; `Sessions.delete` deletes it."""
        await self._write(self._sessions._storage.remove_items)

    async def _write(self, operation: Any, *args: Any, **options: Any) -> Any:
        """Write in the current run. A write that is cancelled is finished first: the SDK relies on its effect."""
        if self._context is None:
            self._context = RunContext(self.session_id, self._identity)
        call = partial(operation, self._context, *args, **options)
        writing = asyncio.ensure_future(self._sessions._offload.write(call))
        try:
            return await asyncio.shield(writing)
        except asyncio.CancelledError:
            with suppress(Exception):
                await writing
            raise

    async def _find_refused(self, items: Sequence[Any], wrapper: RunContextWrapper[Any] | None) -> frozenset[str]:
        """The ids of the answered calls that were not approved."""
        answers = {str(item["call_id"]): item for item in items if isinstance(item, Mapping) and _is_answer(item)}
        refused = {call_id for call_id, item in answers.items() if item.get("output") == _NOT_APPROVED}
        if wrapper is not None and answers:
            names = _names_of_calls(items)
            if not answers.keys() <= names.keys():
                earlier = await self._sessions._offload.run(self._stored, _SEARCHED_ITEMS)
                names = _names_of_calls([stored.item for stored in earlier]) | names
            called = answers.keys() & names.keys()
            refused |= {call_id for call_id in called if wrapper.is_tool_approved(names[call_id], call_id) is False}
        return frozenset(refused)

    def _puts(self, items: Sequence[TResponseInputItem], refused: frozenset[str]) -> Iterator[ConversationItemPut]:
        redaction, settings = self._sessions.recorder.buffer.redaction, self._sessions.settings
        for number, item in enumerate(items):
            try:
                json.dumps(item)
            except (TypeError, ValueError, RecursionError) as error:
                problem = f"item {number} of a conversation is not JSON ({error})"
                raise UnserializableValue(problem, advice="give the SDK's own items, or plain dicts") from error
            message = describe_item(item, self._sessions.new_id())
            message = message._replace(refused=message.tool_call_id in refused)
            recorded = redaction.entries([message]) if settings.tracking else ()
            rest, files = _without_files(item)
            yield ConversationItemPut(rest, message.message_id, recorded, files)


def _is_answer(item: Mapping[str, Any]) -> bool:
    return str(item.get("type")).endswith("_output") and "call_id" in item


def _names_of_calls(items: Sequence[Any]) -> dict[str, str]:
    calls = [item for item in items if isinstance(item, Mapping) and "call_id" in item]
    return {str(item["call_id"]): name for item in calls if isinstance(name := item.get("name"), str)}


def _without_files(item: Any) -> tuple[Any, Sequence[Attachment]]:
    """The item with its files replaced by hashes, and the files; unchanged if that could not be undone exactly."""
    (rest,), files = extract_files([item])
    held = {file.hash: file.data for file in files}
    return (rest, files) if restore_files(rest, held.get) == item else (item, ())


def _whole(stored: StoredItem) -> Any:
    return restore_files(stored.item, stored.files.get) if stored.files else stored.item


def describe_item(item: Any, message_id: str) -> MessageEntry:
    """An item of the Responses API as a message of the record."""
    entry = _entry_of(item, message_id)
    (content,), files = extract_files([entry.content])
    return entry._replace(content=content, files=files)


def _entry_of(item: Any, message_id: str) -> MessageEntry:
    if not isinstance(item, Mapping):
        return MessageEntry(message_id, "assistant", "", content=item, flags=("item",))
    kind = str(item.get("type") or "message")
    if kind == "function_call":
        call = {"id": item.get("call_id"), "name": item.get("name"), "args": _arguments(item.get("arguments"))}
        return MessageEntry(message_id, "assistant", "", tool_calls=[call])
    if _is_answer(item):
        output = item.get("output")
        content = None if isinstance(output, str) else output
        return MessageEntry(message_id, "tool", _text(output), content=content, tool_call_id=str(item["call_id"]))
    if kind == "message" and item.get("role") in _ROLES:
        content = item.get("content")
        parts = None if isinstance(content, str) else content
        return MessageEntry(message_id, _ROLES[item["role"]], _text(content), content=parts)
    return MessageEntry(message_id, "assistant", _text(item.get("summary")), content=item, flags=(f"item:{kind}",))


def _text(parts: Any) -> str:
    """The text of a content or a summary."""
    if isinstance(parts, str):
        return parts
    if not isinstance(parts, (list, tuple)):
        return ""
    texts = [part.get(name) for part in parts if isinstance(part, Mapping) for name in _TEXTS]
    return "\n".join(text for text in texts if isinstance(text, str))


def _arguments(text: Any) -> Any:
    try:
        return json.loads(text) if isinstance(text, str) else text
    except ValueError:
        return {"arguments": text}
