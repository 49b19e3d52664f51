"""Clients that pass the whole conversation each time, and never quite the same: each message is recorded once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from session_middleware import Session, Sessions
from tests.support import agents
from tests.support.pairwise import ENGINES, pairwise

pytestmark = pytest.mark.usefixtures("each_engine", "consistent")

Talk = list[dict[str, Any]]
Client: TypeAlias = Callable[[Talk, int], Talk]
TURNS = 12


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def with_clock(talk: Talk, turn: int) -> Talk:
    return [system(f"Be helpful. It is 10:{turn:02}."), *talk]


def with_clock_behind(talk: Talk, turn: int) -> Talk:
    return [*talk, system(f"Reminder: it is 10:{turn:02}.")]


def with_several_prompts(talk: Talk, turn: int) -> Talk:
    return [system("Be helpful."), system(f"It is 10:{turn:02}."), system(f"Known facts: {turn}"), *talk]


def with_documents(talk: Talk, turn: int) -> Talk:
    """In the latest question only."""
    place = max(number for number, message in enumerate(talk) if message["role"] == "user")
    question = talk[place]["content"]
    return [*talk[:place], user(f"Documents: report {turn}, page {turn}.\n\nQuestion: {question}"), *talk[place + 1 :]]


def with_clock_and_documents(talk: Talk, turn: int) -> Talk:
    return with_clock(with_documents(talk, turn), turn)


def masked(talk: Talk, turn: int) -> Talk:
    old = [{**message, "content": message["content"].replace("555", "***")} for message in talk[:-2]]
    return [*old, *talk[-2:]]


def masked_but_for_the_last(text: str, *roles: str) -> Client:
    """All messages of these roles have one text, or none."""

    def client(talk: Talk, turn: int) -> Talk:
        return [*(m | {"content": text} if m["role"] in roles else m for m in talk[:-1]), talk[-1]]

    return client


def cut_short(mark: str) -> Client:
    return lambda talk, turn: [*(m | {"content": m["content"][:3] + mark} for m in talk[:-1]), talk[-1]]


def latest(size: int) -> Client:
    return lambda talk, turn: talk[-size:]


def windowed(talk: Talk, turn: int) -> Talk:
    return [system("Be helpful."), *talk[-5:]]


def windowed_with_clock(talk: Talk, turn: int) -> Talk:
    return with_clock(talk[-5:], turn)


def windowed_with_clock_and_documents(talk: Talk, turn: int) -> Talk:
    return with_clock(with_documents(talk[-5:], turn), turn)


def summarised(talk: Talk, turn: int) -> Talk:
    return talk if len(talk) <= 6 else [system(f"Summary of the first {turn} turns: pleasant."), *talk[-4:]]


def summarised_by_a_user(talk: Talk, turn: int) -> Talk:
    front = [] if len(talk) <= 6 else [user(f"Summary of the first {turn} turns: pleasant.")]
    return with_clock([*front, *talk[-4:]], turn)


CLIENTS = [
    *(with_clock, with_clock_behind, with_several_prompts, with_documents, with_clock_and_documents, masked),
    *(windowed, windowed_with_clock, windowed_with_clock_and_documents, summarised, summarised_by_a_user),
    *(masked_but_for_the_last(text, "user", "assistant") for text in ("[masked]", "...", "REDACTED", "")),
    *(masked_but_for_the_last("[masked]", role) for role in ("user", "assistant")),
    *map(cut_short, ("", "…", " [truncated]")),
    *map(latest, (1, 2, 3, 4)),
]


def converse(session: Session, client: Client, *, question: str) -> Talk:
    talk: Talk = []
    for turn in range(TURNS):
        talk.append(user(question.format(turn)))
        session.add_history(client(talk, turn))
        talk.append(answer(f"555 answers question {turn}"))
        session.add_history(client(talk, turn))
    return talk


@pairwise(client=CLIENTS, question=["what is the price of article 555-{}?", "next"], each_engine=ENGINES)
def test_twelve_turns_are_as_many_messages_as_were_said(sessions: Sessions, client: Client, question: str) -> None:
    session = sessions.open("t")
    talk = converse(session, client, question=question)
    assert session.branches() == []
    recorded = [message for message in session.messages() if "Summary" not in message.text]
    assert [message.role for message in recorded if message.role != "system"] == [m["role"] for m in talk]
    first = [message for message in session.messages(all_versions=True) if message.version == 1]
    assert [m.text for m in first if m.role == "assistant"] == [m["content"] for m in talk[1::2]]
    assert sessions.get("t").message_count == len(session.messages(branch="all")) <= 2 * TURNS + 3


@pairwise(
    client=[with_documents, masked_but_for_the_last("[masked]", "user", "assistant"), latest(2)],
    question=["question {}", "go on"],
    each_engine=ENGINES,
)
async def test_what_is_recorded_is_the_same_under_asyncio_and_once_a_turn(
    sessions: Sessions, client: Client, question: str
) -> None:
    session = await sessions.aopen("t")
    talk: Talk = []
    for turn in range(TURNS):
        talk += [user(question.format(turn)), answer(f"answer {turn}")]
        await session.aadd_history(client(talk, turn))
    assert len(await session.amessages()) == 2 * TURNS
    assert await session.abranches() == []


def test_tools_that_a_client_leaves_out_or_clears_later_stay_in_the_record(sessions: Sessions) -> None:
    asked = {"id": "c", "function": {"name": "look", "arguments": "{}"}}
    turn = [user("look"), answer("") | {"tool_calls": [asked]}, {"role": "tool", "content": "r", "tool_call_id": "c"}]
    session = sessions.open("t")
    session.add_history([*turn, answer("seen")])
    session.add_history([turn[0], answer("seen"), user("more"), answer("seen again")])
    session.add_history([*turn[:2], turn[2] | {"content": "[cleared]"}, answer("seen"), user("more")])
    assert agents.said(session) == [
        *(("user", "look"), ("assistant", ""), ("tool", "[cleared]"), ("assistant", "seen")),
        *(("user", "more"), ("assistant", "seen again")),
    ]
    assert session.branches() == []


def without_arguments(message: dict[str, Any]) -> dict[str, Any]:
    calls = [call | {"function": {"name": "look", "arguments": "{}"}} for call in message.get("tool_calls", ())]
    return message | {"tool_calls": calls} if calls else message


@pairwise(
    masked=[("tool",), ("assistant",), ("user", "assistant", "tool")],
    id_of_call=["call-{}", "call"],
    is_each_step=[True, False],
    each_engine=ENGINES,
)
def test_tool_calls_and_results_that_are_masked_later_are_recorded_once(
    sessions: Sessions, masked: tuple[str, ...], id_of_call: str, is_each_step: bool
) -> None:
    session, client, talk = sessions.open("t"), masked_but_for_the_last("[masked]", *masked), list[dict[str, Any]]()
    for turn in range(TURNS):
        asked = {"id": id_of_call.format(turn), "function": {"name": "look", "arguments": f'{{"n": {turn}}}'}}
        found = {"role": "tool", "content": f"result {turn}", "tool_call_id": asked["id"]}
        for message in (user("next"), answer("") | {"tool_calls": [asked]}, found, answer(f"answer {turn}")):
            talk.append(message)
            if is_each_step or message["content"].startswith("answer"):
                session.add_history([*map(without_arguments, client(talk, turn)[:-4]), *client(talk, turn)[-4:]])
    assert [message.role for message in session.messages()] == [message["role"] for message in talk]
    assert session.branches() == []


def test_another_way_under_another_prompt_is_a_branch_and_the_way_back_is_found(sessions: Sessions) -> None:
    session = sessions.open("t")
    first, second = [user("a"), answer("b"), user("c"), answer("d")], [user("a"), answer("b"), user("x"), answer("y")]
    for turn, talk in enumerate([first, second, [*first, user("e")], [*second, user("z")]]):
        session.add_history(with_clock(talk, turn))
    assert [text for role, text in agents.said(session) if role != "system"] == ["a", "b", "x", "y", "z"]
    assert [text for role, text in agents.said(session, branch="main")][1:] == ["a", "b", "c", "d", "e"]
    assert len(session.branches()) == 1


def test_a_conversation_that_begins_anew_shares_nothing_with_the_one_before(sessions: Sessions) -> None:
    session = sessions.open("t")
    session.add_history([user("book a flight"), answer("ok"), user("to Rome"), answer("booked")])
    session.add_history([user("tell me a joke"), answer("ok"), user("a long one")])
    assert [text for _, text in agents.said(session)] == ["tell me a joke", "ok", "a long one"]
    assert len(agents.said(session, branch="main")) == 4
    assert {message.version for message in session.messages(branch="all")} == {1}


def test_a_model_alone_that_is_told_the_time_records_each_message_once(sessions: Sessions) -> None:
    model, said = agents.Scripted(has_tools=False), []
    config: Any = sessions.config("t") | {"callbacks": [sessions.recorder]}
    for turn in range(TURNS):
        said.append(HumanMessage(f"question {turn}"))
        said.append(AIMessage(model.invoke([SystemMessage(f"Be nice. It is 10:{turn:02}."), *said], config).text))
    recorded = sessions.get("t").messages()
    assert [message.text for message in recorded if message.role != "system"] == [message.text for message in said]
    assert len(recorded) == 2 * TURNS + 1
