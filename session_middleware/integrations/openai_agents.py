"""OpenAI's Agents SDK: a `Session` of its protocol that is one of ours.

``await Runner.run(agent, "hi", session=OpenAIAgentsSession(sessions, "thread-42", user_id="alice"))``

Items are kept as they were given and come back so; beside them each is a message of the record.
What the SDK removes is gone for the SDK, and stays in the record with the mark ``removed``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
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

_NOT_APPROVED = "Tool execution was not approved."  # the SDK's words, where its user gives no others
_LOOKED_BACK = 200  # items among which a call is looked for whose answer is added later
_TEXTS = ("text", "refusal", "transcript")  # the fields of a content's parts that hold text
_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}


class OpenAIAgentsSession:
    """One conversation for `Runner`; any number of runs may use it, at once and one after the other.

    Every method raises `SessionAccessDenied` when the session is another user's, and `SessionExpired`
    when it has expired and ``on_resume`` is ``"reject"``.

    Args:
        sessions: where to keep it.
        session_id: an id of yours; a new one is made if none is given.
        session_settings: the SDK's, such as how many items a run begins with; or a dict of them.
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
        self._settings = given if isinstance(given, SessionSettings) else _settings_of({} if given is None else given)

    async def get_items(
        self, limit: int | None = None, *, wrapper: RunContextWrapper[Any] | None = None
    ) -> list[TResponseInputItem]:
        """The items in order; the last `limit` of them. A run begins with this.

        The SDK passes each method the `wrapper` of its run's context, which knows what was approved.
        """
        wanted = limit if limit is not None else self._settings.limit
        return await self._sessions._offload.run(self._get, wanted)

    def _get(self, limit: int | None) -> list[TResponseInputItem]:
        context, storage = self._new_context(), self._sessions._storage
        if storage.authorize(context) is None:
            return []
        return list(map(_whole, storage.list_items(self.session_id, limit=limit)))

    async def add_items(
        self, items: list[TResponseInputItem], *, wrapper: RunContextWrapper[Any] | None = None
    ) -> None:
        """Add items, all or none; when this returns they are safe from a crash.

        Raises:
            UnserializableValue: one of them is not JSON.
        """
        if items:
            puts = list(self._puts(items, await self._find_refused(items, wrapper)))
            await self._write(partial(self._sessions._storage.append_items, self._current_context(), puts))

    async def pop_item(self, *, wrapper: RunContextWrapper[Any] | None = None) -> TResponseInputItem | None:
        """Remove the last item and return it; ``None`` when there is none."""
        removed = await self._write(partial(self._sessions._storage.remove_items, self._current_context(), limit=1))
        return _whole(removed[0]) if removed else None

    async def clear_session(self, *, wrapper: RunContextWrapper[Any] | None = None) -> None:
        """Remove all items. The record stays; `Sessions.delete` deletes it."""
        await self._write(partial(self._sessions._storage.remove_items, self._current_context()))

    async def _write(self, call: Any) -> Any:
        """Carry out a call, also where who waits for it is cancelled: the SDK goes on from what it has changed."""
        writing = asyncio.ensure_future(self._sessions._offload.write(call))
        cancelled: asyncio.CancelledError | None = None
        while not writing.done():
            try:
                await asyncio.wait({writing})
            except asyncio.CancelledError as error:
                cancelled = cancelled or error
        if cancelled is not None:
            writing.exception()
            raise cancelled
        return writing.result()

    def _new_context(self) -> RunContext:
        self._context = RunContext(self.session_id, self._identity)
        return self._context

    def _current_context(self) -> RunContext:
        return self._context or self._new_context()

    async def _find_refused(self, items: Sequence[Any], wrapper: RunContextWrapper[Any] | None) -> frozenset[str]:
        """The ids of the calls that were not approved, of those that are answered here."""
        answers = [item for item in items if isinstance(item, Mapping) and _is_answer(item)]
        refused = {str(item["call_id"]) for item in answers if item.get("output") == _NOT_APPROVED}
        if wrapper is not None and answers:
            names = _names_of_calls(items)
            if any(str(item["call_id"]) not in names for item in answers):
                earlier = await self._sessions._offload.run(partial(self._get_stored, _LOOKED_BACK))
                names = _names_of_calls(earlier) | names
            asked = {call_id: names[call_id] for item in answers if (call_id := str(item["call_id"])) in names}
            refused |= {call_id for call_id, name in asked.items() if wrapper.is_tool_approved(name, call_id) is False}
        return frozenset(refused)

    def _get_stored(self, limit: int) -> list[Any]:
        return [stored.item for stored in self._sessions._storage.list_items(self.session_id, limit=limit)]

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
            recorded = redaction.messages([message]) if settings.tracking else ()
            rest, files = _without_files(item)
            yield ConversationItemPut(rest, message.message_id, recorded, files)


def _settings_of(given: Mapping[str, Any]) -> SessionSettings:
    known = [field.name for field in fields(SessionSettings)]
    if unknown := [name for name in dict(given) if name not in known]:
        raise TypeError(f"there are no session settings {', '.join(map(repr, unknown))}; there are: {', '.join(known)}")
    return SessionSettings(**given)


def _is_answer(item: Mapping[str, Any]) -> bool:
    return str(item.get("type")).endswith("_output") and "call_id" in item


def _names_of_calls(items: Sequence[Any]) -> dict[str, str]:
    calls = [item for item in items if isinstance(item, Mapping) and "call_id" in item]
    return {str(item["call_id"]): name for item in calls if isinstance(name := item.get("name"), str)}


def _without_files(item: Any) -> tuple[Any, Sequence[Attachment]]:
    """An item with hashes in the places of its files; as it is, where it would not come back exactly from that."""
    (rest,), files = extract_files([item])
    held = {file.hash: file.data for file in files}
    return (rest, files) if restore_files(rest, held.get) == item else (item, ())


def _whole(stored: StoredItem) -> Any:
    return restore_files(stored.item, stored.files.get) if stored.files else stored.item


def describe_item(item: Any, message_id: str) -> MessageEntry:
    """An item of the Responses API as a message of the record."""
    described = _described(item, message_id)
    (content,), files = extract_files([described.content])
    return described._replace(content=content, files=files)


def _described(item: Any, message_id: str) -> MessageEntry:
    if not isinstance(item, Mapping):
        return MessageEntry(message_id, "assistant", "", content=item, marks=("item",))
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
    return MessageEntry(message_id, "assistant", _text(item.get("summary")), content=item, marks=(f"item:{kind}",))


def _text(parts: Any) -> str:
    """What a content, or a summary, says in words."""
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
