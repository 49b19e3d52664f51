"""What the record keeps of what it is told, and what it takes out."""

from __future__ import annotations

from typing import Any

import pytest

from session_middleware.recording.redaction import RedactionPolicy
from session_middleware.settings import load_settings
from session_middleware.storage.record_entries import Entry, MessageEntry, ModelCallEntry, ToolEnd, ToolStart


def keeping(**settings: Any) -> RedactionPolicy:
    loaded = load_settings(**settings)
    return RedactionPolicy(loaded.redact, loaded.record)


def only(keep: RedactionPolicy, entry: Entry) -> Any:
    (kept,) = keep.entries([entry])
    return kept


@pytest.mark.parametrize(
    ("detector", "text", "redacted"),
    [
        ("emails", "write to bob.smith+x@mail.example.co.uk, please", "write to [redacted email], please"),
        ("emails", "a @ b is no address, nor is @handle", "a @ b is no address, nor is @handle"),
        ("keys", "key sk-proj-abcdEFGH1234567890ijkl!", "key [redacted key]!"),
        ("keys", "AKIAIOSFODNN7EXAMPLE and ghp_0123456789abcdefghij", "[redacted key] and [redacted key]"),
        ("keys", "Authorization: Bearer abcdefghijklmnop.qrs", "Authorization: Bearer [redacted key]"),
        ("keys", "task-list and risk-averse are words", "task-list and risk-averse are words"),
        ("card_numbers", "pay with 4111 1111 1111 1111 now", "pay with [redacted card number] now"),
        ("card_numbers", "order 4111111111111112", "order 4111111111111112"),
    ],
)
def test_a_detector_takes_out_what_it_is_for(detector: str, text: str, redacted: str) -> None:
    kept = only(keeping(redact=[detector]), MessageEntry("1", "user", text))
    assert kept.text == redacted
    assert kept.flags == ((f"redacted:{detector}",) if redacted != text else ())


def test_content_arguments_results_and_errors_are_redacted_as_well() -> None:
    keep = keeping(redact="emails")
    call = {"name": "send", "args": {"to": ["a@b.com"]}, "id": "c"}
    message = only(keep, MessageEntry("1", "assistant", "", content=[{"text": "a@b.com"}], tool_calls=[call]))
    assert message.content == [{"text": "[redacted email]"}]
    assert message.tool_calls[0]["args"] == {"to": ["[redacted email]"]}
    start = only(keep, ToolStart("x", "c", "send", {"to": "a@b.com"}))
    assert (start.arguments, start.flags) == ({"to": "[redacted email]"}, ("redacted:emails",))
    end = only(keep, ToolEnd("x", "error", {"from": "c@d.com"}, "no such address: a@b.com"))
    assert (end.result, end.error) == ({"from": "[redacted email]"}, "no such address: [redacted email]")


def test_names_and_the_keys_of_arguments_results_and_content_are_redacted_as_well() -> None:
    keep = keeping(redact="emails")
    message = only(keep, MessageEntry("1", "user", "hi", name="a@b.com", content=[{"type": "text", "a@b.com": 1}]))
    assert (message.name, message.content) == ("[redacted email]", [{"type": "text", "[redacted email]": 1}])
    assert message.flags == ("redacted:emails",)
    end = only(keep, ToolEnd("x", "ok", {"a@b.com": 1, "c@d.com": 2, "n": 3, "e@f.com": 4}))
    assert end.result == {"[redacted email]": 1, "[redacted email] 2": 2, "n": 3, "[redacted email] 3": 4}


def test_the_error_of_a_call_that_could_not_be_parsed_quotes_its_arguments_and_is_kept_as_they_are() -> None:
    call = {"name": "send", "args": "{a@b.com", "id": "c", "type": "invalid_tool_call", "error": "no JSON: {a@b.com"}
    (kept,) = only(keeping(redact="emails"), MessageEntry("1", "assistant", "", tool_calls=[call])).tool_calls
    assert (kept["args"], kept["error"]) == ("{[redacted email]", "no JSON: {[redacted email]")
    (kept,) = only(keeping(record=["messages"]), MessageEntry("1", "assistant", "", tool_calls=[call])).tool_calls
    assert (kept["args"], kept["error"]) == (None, None)


def test_a_function_of_ones_own_redacts_and_one_that_fails_keeps_nothing() -> None:
    kept = only(keeping(redact=lambda text: text.replace("secret", "…")), MessageEntry("1", "user", "my secret"))
    assert (kept.text, kept.flags) == ("my …", ("redacted",))
    told: list[Exception] = []
    keep = RedactionPolicy(lambda text: str(1 / 0), on_error=told.append)
    assert "secret" not in only(keep, MessageEntry("1", "user", "my secret")).text
    assert isinstance(told[0], ZeroDivisionError)


def test_what_is_not_chosen_is_not_kept() -> None:
    keep = keeping(record=["tool_arguments"])
    assert keep.entries([MessageEntry("1", "user", "hi")]) == []
    assert only(keep, ToolStart("x", "c", "add", {"a": 1})).arguments == {"a": 1}
    end = only(keep, ToolEnd("x", "error", 3, "ValueError: 3 is secret", artifact=4))
    assert (end.result, end.artifact, end.error, end.flags) == (None, None, "ValueError", ("withheld:result",))


def test_a_tool_may_be_kept_otherwise_than_the_others_wherever_it_shows() -> None:
    keep = keeping(record={"pay": ["messages"]})
    asked = [{"name": name, "args": {"n": 1}, "id": name} for name in ("pay", "add")]
    message = only(keep, MessageEntry("1", "assistant", "", tool_calls=asked))
    assert [call["args"] for call in message.tool_calls] == [{}, {"n": 1}]
    assert only(keep, ToolStart("x", "pay", "pay", {"n": 1})).arguments is None
    assert only(keep, ToolStart("x", "add", "add", {"n": 1})).arguments == {"n": 1}
    assert only(keep, MessageEntry("2", "tool", "paid", name="pay", tool_call_id="pay")).text == ""
    assert only(keep, MessageEntry("2", "tool", "2", name="add", tool_call_id="add")).text == "2"
    assert only(keep, MessageEntry("2", "tool", "paid?", tool_call_id="x")).text == ""  # of which tool, nobody knows


_WORD = "QWxhZGRpbjpvcGVuIHNlc2FtZSBhbmQgc28gb24"
RUNS = {
    **{f"of {sign!r}": sign for sign in ["a", "1", "@", ".", "-", "_", "+", "=", " ", "\n", "é"]},
    "base64": _WORD,
    "paths": f"/{_WORD}",
    "digits apart": "1 ",
    "digits and dashes": "1-",
    "amounts": "1.5,",
    "no domain": "a@",
    "dots": "a.",
    "half addresses": "@a.",
    "short ends": "a@b.c1.",
    "many ends": "a@b.co-",
    "addresses": "a@b.co ",
    "begun keys": "sk-",
    "parts of keys": "sk-a-",
    "short keys": "sk-aaaaaaaaaaaaaaa ",
    "begun tokens": "-eyJaaaaaaaa",
    "half tokens": "-eyJaaaaaaaa.",
    "short tokens": "eyJaaaaaaaa.a.",
    "tokens that go on": "-eyJaaaaaaaa.aaaaaaaa-",
    "bearers": "Bearer ",
    "AWS": "AKIA",
    "long AWS": "AKIA" + "A" * 17,
    "begun blocks": "-----BEGIN ",
    "ended blocks": "-----END A ",
    "blocks": "-----BEGIN A PRIVATE KEY-----",
}


@pytest.mark.timeout(60)  # a detector that goes back over a run for each of its characters takes hours for one of these
@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_redaction_takes_time_in_proportion_to_the_text(run: str) -> None:
    text = run * (300_000 // len(run))
    keep = keeping(redact=["emails", "keys", "card_numbers"])
    kept = only(keep, MessageEntry("1", "user", text))
    assert len(kept.text) <= max(len(text), 20 * text.count("@") + 20)
    assert keep.partial_text(text, cut_off=True) is not None


@pytest.mark.timeout(60)  # as above
def test_redaction_takes_time_in_proportion_to_the_number_of_keys() -> None:
    end = only(keeping(redact=["emails"]), ToolEnd("x", "ok", {f"a{n}@b.com": n for n in range(50_000)}))
    assert list(end.result.values()) == list(range(50_000))
    assert list(end.result)[:3] == ["[redacted email]", "[redacted email] 2", "[redacted email] 3"]


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("a@b.com_x@c.org", "[redacted email][redacted email]"),
        ("a@b@c.org", "a@[redacted email]"),
        ("<a.b@c.d.example>", "<[redacted email]>"),
        ("eyJhbGciOiJIUzI1.eyJzdWIiOiIx.c2ln", "[redacted key]"),
        ("id-eyJhbGciOiJIUzI1.eyJzdWIiOiIx.c2ln", "id-[redacted key]"),
        ("eyJhbGciOiJI.x.eyJhbGciOiJI.eyJzdWIiOiIx.c2ln", "eyJhbGciOiJI.x.[redacted key]"),
        ("eyJhbGciOiJI-sk-abcdefghijklmnop", "eyJhbGciOiJI-[redacted key]"),
        ("-----BEGIN EC PRIVATE KEY-----\nx\n-----END EC PRIVATE KEY----- and on", "[redacted key] and on"),
    ],
)
def test_secrets_that_stand_close_together_are_all_taken_out(text: str, redacted: str) -> None:
    assert only(keeping(redact=["emails", "keys"]), MessageEntry("1", "user", text)).text == redacted


def test_a_message_tells_of_its_model_call_only_where_these_are_kept() -> None:
    message = MessageEntry("1", "assistant", "hi", call=ModelCallEntry("1", input_tokens=3))
    assert only(keeping(), message).call == message.call
    assert only(keeping(record=["messages", "model_calls"]), message).call == message.call
    assert only(keeping(record=["messages"]), message).call is None
