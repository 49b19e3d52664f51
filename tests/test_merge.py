"""Two sessions become one: records by time, memory, details, and the ids of both lead to it."""

from __future__ import annotations

import asyncio
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langgraph.types import Command

from session_middleware import (
    InvalidArgument,
    SessionAccessDenied,
    SessionBusy,
    SessionExists,
    SessionNotFound,
    Sessions,
)
from session_middleware.models import Event
from tests.conftest import Clock
from tests.support.agents import approval, chat, tool_graph
from tests.support.pairwise import engines_in_turns
from tests.support.processes import run


def texts(sessions: Sessions, session_id: str, **options: Any) -> list[str]:
    return [message.text for message in sessions.get(session_id).messages(**options)]


def say(sessions: Sessions, clock: Clock, *turns: tuple[str, str], graph: Any = None, **identity: str) -> None:
    """Run turns, a minute after another."""
    attached = sessions.attach(graph or tool_graph())
    for session_id, text in turns:
        attached.invoke({"messages": text}, sessions.config(session_id, **identity))
        clock.advance(minutes=1)


@engines_in_turns(is_async=[False, True])
def test_records_are_interleaved_by_time_and_counted_once(sessions: Sessions, clock: Clock, *, is_async: bool) -> None:
    say(sessions, clock, ("a", "look up tea"), ("b", "look up milk"), ("a", "one"), ("b", "fail it"), user_id="ann")
    before = [sessions.get(each).stats() for each in "ab"]
    primary = sessions.for_user("ann").get("a")
    merged = asyncio.run(primary.amerge("b")) if is_async else primary.merge(sessions.get("b"))
    asked = [message.text for message in merged.messages() if message.role == "user"]
    assert asked == ["look up tea", "look up milk", "one", "fail it"]
    assert [call.arguments["thing"] for call in merged.tool_calls()] == ["tea", "milk", "it"]
    seqs = [record.seq for record in merged.timeline()]
    assert seqs == sorted(set(seqs))
    times = [record.created_at for record in merged.messages()]
    assert times == sorted(times)
    after = merged.stats()
    for name in ("run_count", "message_count", "tool_call_count", "model_call_count", "error_count", "input_tokens"):
        assert getattr(after, name) == sum(getattr(each, name) for each in before)
    (event,) = [event for event in merged.events() if event.kind == "merged"]
    assert event.detail == {"from": "b"}
    assert sessions.check(deep=True) == []


def test_the_old_id_finds_and_runs_the_primary(sessions: Sessions, clock: Clock) -> None:
    seen: list[Event] = []
    sessions.on_closed(seen.append)
    say(sessions, clock, ("a", "one"), ("b", "two"), ("c", "three"), graph=chat(), user_id="ann")
    sessions.get("b").merge("c")
    sessions.get("a").merge("b")
    for old in ("b", "c"):
        assert (
            sessions.get(old).id == sessions.for_user("ann").get(old).id == sessions.open(old, user_id="ann").id == "a"
        )
    assert sessions.for_user("eve").find("b") is None
    assert sessions.explain("c").status == "merged"
    assert "it was merged into session 'b'" in str(sessions.explain("c"))
    graph = sessions.attach(chat())
    state = graph.invoke({"messages": "four"}, sessions.config("c", user_id="ann"))
    assert [message.text for message in state["messages"]] == ["one", "you said one", "four", "you said four"]
    assert graph.get_state(sessions.config("b", user_id="ann")).values == state
    with pytest.raises(SessionAccessDenied, match="session 'b' is owned by another user"):
        graph.invoke({"messages": "mine?"}, sessions.config("b", user_id="eve"))
    asyncio.run(graph.ainvoke({"messages": "five"}, sessions.config("b", user_id="ann")))
    assert texts(sessions, "a")[-4:] == ["four", "you said four", "five", "you said five"]
    for taken in ("b", "c"):
        with pytest.raises(SessionExists, match=f"'{taken}' exists already; resume it"):
            sessions.get("a").fork(id=taken)
    sessions.memory(sessions.config("c", user_id="ann")).remember("a fact")
    assert [memory.text for memory in sessions.get("a").memory.list()] == ["a fact"]
    assert sessions.count() == 1
    sessions.settle()
    assert [(event.session_id, event.kind, event.detail["into"]) for event in seen] == [
        ("c", "merged", "b"),
        ("b", "merged", "a"),
    ]


@pytest.mark.parametrize("on_busy", ["wait", "reject"])
def test_a_run_with_the_old_id_is_one_run_of_the_primary(open_sessions: Any, on_busy: str) -> None:
    sessions = open_sessions(on_busy=on_busy)
    graph = sessions.attach(tool_graph())
    for session_id in "ab":
        graph.invoke({"messages": "hi"}, sessions.config(session_id))
    sessions.get("a").merge("b")
    graph.invoke({"messages": "both tea"}, sessions.config("b"))
    list(graph.stream({"messages": "both tea"}, sessions.config("b")))
    assert [run.outcome for run in sessions.get("a").runs()] == ["ok"] * 4
    recorded_only = tool_graph()
    recorded_only.invoke({"messages": "look up jam"}, sessions.config("b") | {"callbacks": [sessions.recorder]})
    assert texts(sessions, "a")[-1] == "it said jam is nice"
    with sessions.open("b") as session:
        session.add(HumanMessage("by hand"))
    assert texts(sessions, "a")[-1] == "by hand"
    assert sessions.count() == 1


@pytest.mark.parametrize("on_busy", ["wait", "reject"])
def test_a_heartbeat_takes_no_lease_for_the_old_id(open_sessions: Any, on_busy: str) -> None:
    sessions = open_sessions(on_busy=on_busy)
    graph = sessions.attach(chat())
    for session_id in "ab":
        sessions.open(session_id).add(HumanMessage("hi"))
    sessions.get("a").merge("b")
    queue, beaten = sessions._run_queue, []
    flush = queue._flush

    def beat_before(session_id: str) -> None:
        sessions._background.renew_leases()
        beaten.append(session_id)
        flush(session_id)

    queue._flush = beat_before
    graph.invoke({"messages": "by the old id"}, sessions.config("b"))
    assert beaten[0] == "b"
    assert texts(sessions, "a")[-2:] == ["by the old id", "you said by the old id"]
    assert sessions.check(deep=True) == []


def test_messages_are_appended_to_the_state_on_request(sessions: Sessions, clock: Clock) -> None:
    say(sessions, clock, ("a", "one"), ("b", "look up milk"), ("c", "three"))
    graph = sessions.attach(tool_graph())
    before = graph.get_state(sessions.config("a")).values["messages"]
    sessions.get("a").merge("c")
    assert graph.get_state(sessions.config("a")).values["messages"] == before
    merged = sessions.get("a").merge("b", state="append_messages")
    snapshot = graph.get_state(merged.config())
    assert snapshot.metadata["source"] == "update"
    said = [message.text for message in snapshot.values["messages"]]
    assert said == ["one", "you said one", "look up milk", "", "milk is nice", "it said milk is nice"]
    count = merged.message_count
    state = graph.invoke({"messages": "more"}, merged.config())
    assert [message.text for message in state["messages"]] == [*said, "more", "you said more"]
    assert sessions.get("a").message_count == count + 2
    fresh = sessions.open("fresh").merge("a", state="append_messages")
    appended = [message.text for message in graph.get_state(fresh.config()).values["messages"]]
    assert appended == [*said, "three", "you said three", "more", "you said more"]
    assert graph.invoke({"messages": "go on"}, fresh.config())["messages"][-1].text == "you said go on"


def test_messages_are_not_appended_to_a_state_that_waits(sessions: Sessions) -> None:
    graph = sessions.attach(approval())
    graph.invoke({"messages": "hi"}, sessions.config("a"))
    sessions.open("b").add(HumanMessage("hello"))
    with pytest.raises(InvalidArgument, match="'keep_primary', because the primary waits for the answer"):
        sessions.get("a").merge("b", state="append_messages")
    assert texts(sessions, "b") == ["hello"]
    assert sessions.get("a").merge("b").message_count == 2


def test_a_fork_is_merged_back_and_other_forks_stay_whole(sessions: Sessions, clock: Clock) -> None:
    say(sessions, clock, ("a", "look up tea"))
    fork = sessions.get("a").fork(id="fork")
    sessions.get("a").fork(id="other")
    say(sessions, clock, ("fork", "look up milk"), ("a", "one"), ("other", "two"))
    fork.fork(id="second")
    merged = sessions.get("a").merge("fork")
    asked = [message.text for message in merged.messages() if message.role == "user"]
    assert asked == ["look up tea", "look up milk", "one"]
    graph = sessions.attach(tool_graph())
    for name, last in {"second": "it said milk is nice", "other": "you said two", "a": "you said one"}.items():
        state = graph.get_state(sessions.config(name)).values["messages"]
        assert state[-1].text == last
        assert name == "a" or texts(sessions, name) == [message.text for message in state]
    parent = sessions.get("other").merge("a")
    assert parent.parent_id is None
    assert [message.text for message in parent.messages() if message.role == "user"] == [*asked, "two"]
    assert sessions.check(deep=True) == []


def test_what_both_have_executed_and_answered_by_themselves_is_kept(
    each_engine: str, sessions: Sessions, clock: Clock
) -> None:
    graph = sessions.attach(tool_graph())
    graph.invoke({"messages": "ask for tea"}, sessions.config("a"))
    sessions.get("a").fork(id="fork")
    for session_id, answer in (("fork", "no"), ("a", "yes")):
        graph.invoke(Command(resume=answer), sessions.config(session_id))
    waiting = sessions.get("a").fork(at=sessions.get("a").runs()[-1], id="waiting")
    waiting.fork(id="never answered")
    history = graph.get_state(sessions.config("a")).values["messages"]
    graph.invoke({"messages": [*history, HumanMessage("thanks")]}, sessions.config("told"))
    for other in ("fork", "told", "never answered"):
        merged = sessions.get("a").merge(other)
    executed = {call.result: call.attempt for call in merged.tool_calls() if call.status == "ok"}
    assert executed == {"tea: no": 3, "tea: yes": 2}  # the first attempt asked
    assert merged.tool_call_count == 3
    questions = sorted((one.answer, one.status) for one in merged.questions())
    assert questions == [("no", "answered"), ("yes", "answered")]  # also if the clock has not moved

    merged = waiting.merge("a")
    assert sorted(one.status for one in merged.questions()) == ["answered", "answered", "open"]
    graph.invoke(Command(resume="later"), merged.config())
    assert sessions.get("waiting").waiting_count == 0
    calls = sessions.get("waiting").tool_calls()
    assert len({call.attempt for call in calls}) == len(calls)
    assert calls[-1].result == "tea: later"
    assert sessions.check(deep=True) == []


def test_a_message_that_was_edited_in_the_fork_is_kept_beside_the_original(sessions: Sessions, clock: Clock) -> None:
    graph = sessions.attach(tool_graph())
    graph.invoke({"messages": [HumanMessage("tea", id="q")]}, sessions.config("a"))
    sessions.get("a").fork(id="fork")
    clock.advance(minutes=1)
    graph.invoke({"messages": [HumanMessage("look up milk", id="q")]}, sessions.config("fork"))
    merged = sessions.get("a").merge("fork")
    kept = {message.message_id: message.text for message in merged.messages(branch="all") if message.role == "user"}
    assert kept == {"q": "tea", "q~fork": "look up milk"}
    assert len(texts(sessions, "a")) == 4
    assert sessions.check(deep=True) == []


def test_a_message_that_fork_edit_has_edited_is_counted(sessions: Sessions, clock: Clock) -> None:
    say(sessions, clock, ("a", "one"), graph=chat())
    fork = sessions.get("a").fork()
    sessions.attach(chat()).invoke(None, fork.edit(fork.messages()[0].message_id, "two"))
    assert sessions.get("a").merge(fork).message_count == len(texts(sessions, "a")) == 4


def test_an_edited_message_is_appended_to_the_state_once(sessions: Sessions, clock: Clock) -> None:
    graph = sessions.attach(chat())
    for session_id in ("a", "b"):
        graph.invoke({"messages": [HumanMessage(f"{session_id} says", id="q")]}, sessions.config(session_id))
        clock.advance(minutes=1)
    merged = sessions.get("a").merge("b", state="append_messages")
    said = ["a says", "you said a says", "b says", "you said b says"]
    assert texts(sessions, "a") == said
    state = graph.invoke({"messages": "more"}, merged.config())["messages"]
    assert [message.text for message in state] == texts(sessions, "a") == [*said, "more", "you said more"]
    assert [message.id for message in state] == [message.message_id for message in sessions.get("a").messages()]


def test_edits_that_a_fork_does_not_have_remain_when_the_original_is_merged_into_it(sessions: Sessions) -> None:
    graph = sessions.attach(chat())
    original = sessions.open("a")
    graph.invoke({"messages": [HumanMessage("one", id="q")]}, original.config())
    for text in ("two", "three"):
        graph.invoke(None, original.edit("q", text))
    graph.invoke({"messages": "last"}, original.config())
    fork = original.fork({each.text: each for each in original.messages()}["last"], id="fork")
    assert texts(sessions, "fork") == ["three", "you said three"]
    merged = fork.merge(original, state="append_messages")
    state = graph.get_state(merged.config()).values["messages"]
    assert [message.id for message in state] == [message.message_id for message in merged.messages()]
    assert texts(sessions, "fork") == ["three", "you said three", "last", "you said last"]
    versions = [message.text for message in merged.messages(branch="all", all_versions=True)]
    assert sorted(versions) == sorted(
        each for text in ("one", "two", "three", "last") for each in (text, f"you said {text}")
    )
    for text in ("one", "two"):
        assert any(
            [text, f"you said {text}"] == texts(sessions, "fork", branch=branch.id)[-2:] for branch in merged.branches()
        )
    assert sessions.check(deep=True) == []


def test_branches_of_both_stay_readable(each_engine: str, sessions: Sessions, clock: Clock) -> None:
    graph = sessions.attach(chat())
    for name in ("a", "b"):
        for text in ("one", "two"):
            graph.invoke({"messages": f"{name} {text}"}, sessions.config(name))
            clock.advance(minutes=1)
        states = [state for state in graph.get_state_history(sessions.config(name)) if state.next == ("__start__",)]
        graph.invoke({"messages": f"{name} other"}, states[0].config)
        clock.advance(minutes=1)
    line = {name: texts(sessions, name) for name in "ab"}
    left = {name: texts(sessions, name, branch="main") for name in "ab"}
    merged = sessions.get("a").merge("b")
    assert texts(sessions, "a") == [*line["a"], *line["b"]]
    branches = {branch.id: texts(sessions, "a", branch=branch.id) for branch in merged.branches()}
    (new,) = set(branches) - {merged.branch}
    assert branches[new][-2:] == left["b"][-2:]
    assert texts(sessions, "a", branch="main")[: len(left["a"])] == left["a"]
    assert len(merged.messages(branch="all")) == len({*line["a"], *left["a"], *line["b"], *left["b"]})


def test_merged_messages_remain_when_a_later_message_is_edited_or_answered_again(
    sessions: Sessions, clock: Clock
) -> None:
    graph = sessions.attach(chat())
    say(sessions, clock, ("b", "one"), ("a", "two"), ("b", "three"), ("a", "four"), ("b", "five"), graph=chat())
    merged = sessions.get("a").merge("b")
    fork = merged.fork()
    clock.advance(minutes=1)
    before = ["one", "you said one"]
    for session in (merged, fork):
        graph.invoke({"messages": "six"}, session.config())
        asked = {message.text: message.message_id for message in session.messages()}
        session.edit(asked["six"], "seven")
        assert texts(sessions, session.id)[-3:] == ["five", "you said five", "seven"]
        forked = session.fork(asked["four"])
        assert texts(sessions, forked.id) == [*before, "two", "you said two", "three", "you said three"]
        graph.invoke(None, session.edit(asked["two"], "eight"))
        assert texts(sessions, session.id) == [*before, "eight", "you said eight"]
        graph.invoke(None, session.switch("main").regenerate(asked["four"]))
        assert texts(sessions, session.id)[:4] == [*before, "two", "you said two"]
    assert sessions.check(deep=True) == []


def test_messages_before_an_edited_one_are_on_the_branch_that_it_began_on(sessions: Sessions, clock: Clock) -> None:
    graph = sessions.attach(chat())
    say(sessions, clock, ("b", "one"), ("a", "two"), ("b", "three"), graph=chat())
    session = sessions.get("a")
    first = session.messages()[0].message_id
    graph.invoke(None, session.regenerate())
    session.merge("b")
    assert texts(sessions, "a") == ["one", "you said one", "two", "three", "you said three", "you said two"]
    assert texts(sessions, "a", branch="main") == ["one", "you said one", "two", "you said two"]
    session.edit(first, "four")
    assert texts(sessions, "a") == ["one", "you said one", "four"]


def test_messages_before_the_first_one_remain_when_that_is_edited_twice(sessions: Sessions, clock: Clock) -> None:
    graph, session = sessions.attach(chat()), sessions.open("a")
    say(sessions, clock, ("b", "one"), ("a", "two"), graph=chat())
    first = session.messages()[0].message_id
    graph.invoke(None, session.edit(first, "three"))
    session.merge("b")
    for text in ("three", "four"):
        assert texts(sessions, "a") == ["one", "you said one", text, f"you said {text}"]
        graph.invoke(None, session.edit(first, "four"))


def test_branches_of_a_fork_and_of_its_source_have_different_names(sessions: Sessions, clock: Clock) -> None:
    graph = sessions.attach(chat())
    say(sessions, clock, ("a", "one"), ("a", "two"), graph=chat())
    source = sessions.get("a")
    for _ in range(3):
        graph.invoke(None, source.regenerate())
    fork = source.fork(source.messages()[-1].message_id)
    say(sessions, clock, (fork.id, "three"), graph=chat())
    graph.invoke(None, fork.edit(fork.messages()[-2].message_id, "four"))
    lines = [texts(sessions, "a", branch=branch.id) for branch in sessions.get("a").branches()]
    fork.merge("a")
    read = [texts(sessions, fork.id, branch=branch.id) for branch in sessions.get(fork.id).branches()]
    assert all(any(line[-1] == other[-1] for other in read) for line in lines)
    assert sessions.check(deep=True) == []


def test_edited_moved_and_deleted_messages_keep_their_places(
    each_engine: str, sessions: Sessions, clock: Clock
) -> None:
    say(sessions, clock, ("b", "zero"))
    for name in ("a", "b"):
        with sessions.open(name) as session:
            for n in range(4):
                session.add(HumanMessage(f"{name}{n}", id=f"{name}{n}"))
                clock.advance(minutes=1)
            session.add(HumanMessage(f"{name}1 edited", id=f"{name}1"))
            session.delete_message(f"{name}2")
    merged = sessions.get("b").merge("a")
    assert texts(sessions, "b")[2:] == ["a0", "a1 edited", "a3", "b0", "b1 edited", "b3"]
    versions = [m for m in merged.messages(all_versions=True) if m.message_id == "a1"]
    assert [(m.text, m.replaced_by) for m in versions] == [("a1", versions[1].seq), ("a1 edited", None)]
    assert versions[0].position == versions[1].position == versions[0].seq
    merged.add(HumanMessage("a2", id="a2"))
    assert "a2" not in texts(sessions, "b")
    assert sessions.check(deep=True) == []


def test_memory_files_and_details_are_united_and_the_primary_wins(each_engine: str, sessions: Sessions) -> None:
    a = sessions.open("a", title="mine", tags=["x", "y"], metadata={"k": 1, "deep": {"p": 1}}, context={"tone": "dry"})
    b = sessions.open("b", purpose="why", tags=["y", "z"], metadata={"k": 2, "deep": {"q": 2}}, context={"name": "Bo"})
    b.pin("legal hold", by="eve")
    for session, fact in ((a, "likes tea"), (b, "likes milk")):
        session.memory.remember(fact, key="drink")
        session.memory.remember(f"{fact} at noon")
    image = "data:image/png;base64," + "iVBORw0KGgo" * 20 + "AAAA"
    b.add({"role": "user", "content": [{"type": "image_url", "image_url": {"url": image}}]})
    b.add(HumanMessage("the wombat sleeps"))
    merged = a.merge(b)
    assert (merged.title, merged.purpose, merged.tags) == ("mine", "why", ("x", "y", "z"))
    assert merged.metadata == {"k": 1, "deep": {"p": 1, "q": 2}}
    assert merged.context == {"tone": "dry", "name": "Bo"}
    assert merged.pinned is not None
    facts = sorted(memory.text for memory in merged.memory.list())
    assert facts == ["likes milk at noon", "likes tea", "likes tea at noon"]
    (hit,) = sessions.search("wombat", session_id="a")
    assert hit.session_id == "a"
    assert merged.history().messages[0].content[0]["image_url"]["url"] == image
    assert sessions.check(deep=True) == []


def test_what_cannot_be_merged_is_left_as_it_is(sessions: Sessions, open_sessions: Any) -> None:
    mine, theirs = sessions.open("mine", user_id="ann"), sessions.open("theirs", user_id="bob")
    nobodys = sessions.open("nobodys")
    shared = sessions.open("shared", user_id="bob", group_id="g", visibility="group")
    own = sessions.for_user("ann", ["g"]).get("mine")
    for other in ("theirs", theirs, "absent", nobodys):
        with pytest.raises(SessionNotFound):
            own.merge(other)
    with pytest.raises(SessionAccessDenied):
        own.merge(shared)
    with pytest.raises(SessionAccessDenied):
        sessions.for_user("ann", ["g"]).get("shared").merge("mine")
    for other, problem in ((mine, "another session"), (theirs, "the same owner"), (nobodys, "the same owner")):
        with pytest.raises(InvalidArgument, match=problem):
            mine.merge(other)
    with pytest.raises(InvalidArgument, match="the same Sessions"):
        mine.merge(open_sessions(":memory:").open("mine", user_id="ann"))
    with pytest.raises(InvalidArgument, match="state"):
        mine.merge("theirs", state="both")  # type: ignore[arg-type]
    second = sessions.open("second", user_id="ann")
    for busy in (mine, second):
        with busy, pytest.raises(SessionBusy):
            mine.merge(second)
    assert sessions.count() == 5
    assert [event.kind for event in mine.events()].count("merged") == 0


def test_imported_messages_are_interleaved_by_their_own_times(sessions: Sessions, clock: Clock) -> None:
    for minutes, name in enumerate("ab"):
        with sessions.open(name) as session:
            for n in range(3):
                at = clock() - timedelta(days=1, minutes=-2 * n - minutes)
                session.add(HumanMessage(f"{name}{n}"), at=at)
    sessions.get("a").merge("b")
    assert texts(sessions, "a") == ["a0", "b0", "a1", "b1", "a2", "b2"]


KILLED_IN_A_MERGE = """
import os, signal, sys
from session_middleware import Sessions
from session_middleware.storage.sql.sessions import merging

recount = merging.checks.recount
merging.checks.recount = lambda *given: (recount(*given), os.kill(os.getpid(), signal.SIGKILL))
Sessions(sys.argv[1]).get("a").merge("b", state="append_messages")
"""


def test_a_process_that_is_killed_in_a_merge_has_merged_nothing(open_sessions: Any, path: Path, clock: Clock) -> None:
    first = open_sessions()
    say(first, clock, ("a", "look up tea"), ("b", "look up milk"), ("a", "one"))
    before = {name: [record.model_dump() for record in first.get(name).timeline()] for name in "ab"}
    first.close()
    assert run("-c", KILLED_IN_A_MERGE, path).returncode == -signal.SIGKILL
    sessions = open_sessions()
    assert {name: [record.model_dump() for record in sessions.get(name).timeline()] for name in "ab"} == before
    assert sessions.check(deep=True) == []
    assert sessions.get("a").merge("b", state="append_messages").message_count == 10


def test_another_process_follows_the_old_id_at_once(open_sessions: Any, clock: Clock) -> None:
    one, other = open_sessions(), open_sessions()
    say(one, clock, ("a", "one"), ("b", "two"), graph=chat())
    graph = other.attach(chat())
    for session_id, text in (("b", "three"), ("a", "four")):
        graph.invoke({"messages": text}, other.config(session_id))
        clock.advance(minutes=1)
    one.get("a").merge("b")
    graph.invoke({"messages": "five"}, other.config("b"))
    graph.invoke({"messages": "six"}, other.config("a"))
    asked = [message.text for message in one.get("b").messages() if message.role == "user"]
    assert asked == ["one", "two", "three", "four", "five", "six"]
    assert one.check(deep=True) == other.check(deep=True) == []
