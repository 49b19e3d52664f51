"""What a word is, in many scripts; dates however they are written; what a destructive query holds."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_middleware.storage.search.tokenizer import (
    contains_all,
    query_words,
    snippet,
    terms_of,
    unfinished_word,
    version,
    words_in,
)
from tests.support import processes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("मुझे दूध पसंद है", ["मुझे", "दूध", "पसंद", "है"]),
        ("আমি ভাত খাই", ["আমি", "ভাত", "খাই"]),
        ("பால் வேண்டும்", ["பால்", "வேண்டும்"]),
        ("ಹಾಲು మరియు പാൽ", ["ಹಾಲು", "మరియు", "പാൽ"]),
        ("Łódź, Đà Nẵng, Straße", ["lodz", "da", "nang", "strasse"]),
        ("Smørrebrød œuvre æble ısı İzmir", ["smorrebrod", "oeuvre", "aeble", "isi", "izmir"]),
        ("Þór ŋ ħ ŧ ɗ ə", ["thor", "n", "h", "t", "d", "e"]),
        ("ёлка край", ["елка", "край"]),
        ("ΟΔΟΣ οδός", ["οδοσ", "οδοσ"]),
        ("שָׁלוֹם كِتَاب كتـــاب", ["שלום", "كتاب", "كتاب"]),
        ("می\u200cخواهم", ["میخواهم"]),
        ("soft\u00adhyphen \u200fabc\u200f", ["softhyphen", "abc"]),
        ("Ｆｕｌｌ ﬁn ２０２６ ٣", ["full", "fin", "2026", "3"]),
        ("won’t", ["will", "not"]),
    ],
)
def test_a_word_is_whole_in_its_script(text: str, words: list[str]) -> None:
    assert words_in(text) == words
    assert words_in(unicodedata.normalize("NFD", text)) == words


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("고양이", "고양이를 키운다"),
        ("고양이를", "고양이가 좋아"),
        ("집", "집에 간다"),
        ("猫", "我家养了一只猫"),
        ("猫はどこ", "猫が庭にいる"),
        ("京都", "昨日は京都の寺を訪れました"),
        ("コーヒー", "ｺｰﾋｰを飲む"),
        ("ปลา", "แมวกินปลา"),
        ("งู", "ฉันเห็นงู"),
        ("รถ", "ขับรถ"),
        ("ឆ្មា", "ខ្ញុំស្រឡាញ់ឆ្មា"),
        ("ງູ", "ເຫັນງູ"),
        ("ရေ", "သူရေသောက်"),
        ("lodz", "Łódź"),
        ("दूध", "दूध, चाय"),
    ],
)
def test_a_query_has_a_term_of_the_text(query: str, text: str) -> None:
    assert {word.term for word in query_words(query)} & set(terms_of(text))


@pytest.mark.parametrize(
    ("query", "text"), [("दूध", "दादा का धोबी रवि है"), ("பால்", "பாலம்"), ("かき", "かぎ"), ("край", "краи")]
)
def test_a_query_has_no_term_of_another_word(query: str, text: str) -> None:
    assert not {word.term for word in query_words(query)} & set(terms_of(text))


@pytest.mark.parametrize(
    "written",
    [
        *("March 15, 2026", "15 March 2026", "March 15th, 2026", "15th of March 2026", "Mar 15 2026", "15 Mar. 2026"),
        *("the 15th of Mar, 2026", "2026-03-15", "2026-3-15", "2026/03/15", "2026-03-15T10:30:00Z", "15.03.2026"),
        *("3/15/2026", "15/3/2026", "15-03-2026", "2026年3月15日", "2026년 3월 15일"),
    ],
)
def test_a_date_is_the_same_however_it_is_written(written: str) -> None:
    assert {"march", "15", "2026"} <= set(words_in(written))
    assert {"@march", "@15", "@2026"} <= {word.date for word in query_words(written)}


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("Dec 24th", ["december", "24"]),
        ("since Sept", ["since", "september"]),
        ("2026-03", ["march", "2026"]),
        ("03/03/2026", ["march", "3", "2026"]),
        ("3/5/2026", ["3", "5", "2026"]),  # which of two days it is, nobody knows
        ("31/31/2026", ["31", "31", "2026"]),
        ("Jan said so", ["jan", "said", "so"]),
        ("192.168.1.1 v1.2.3", ["192", "168", "1", "1", "v1", "2", "3"]),
        ("a decimal", ["a", "decimal"]),
    ],
)
def test_only_what_is_surely_a_date_is_read_as_one(written: str, words: list[str]) -> None:
    assert words_in(written) == words


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("दूध", "मुझे दूध पसंद है"),
        ("猫", "我家养了一只猫"),
        ("고양이", "고양이를 키운다"),
        ("แมวกินปลา", "แมวกินปลา ทุกวัน"),
        ("ยา", "แพ้ ยา (aspirin)"),
        ("ຢາ", "ແພ້ ຢາ"),
        ("iphone15", "iPhone15を買った"),
        ("CAFÉ", "the cafe\u0301"),
        ("strasse", "Straße 5"),
        ("apple red", "a red apple"),
        ("peanuts", "Alice's peanuts"),
        ("university", "The University"),
        ("c++", "he writes C++, not C#"),
        ("apples", "pears++apples"),
    ],
)
def test_a_text_holds_what_it_has_as_it_is_written(query: str, text: str) -> None:
    assert contains_all(text, query)


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("दूध", "दादा का धोबी रवि है"),
        ("दू", "दूध"),
        ("고양이", "길고양이"),
        ("고양", "고양이를 키운다"),
        ("나", "나이"),
        ("食べる", "食卓で比べる"),
        ("ปล", "แมวกินปลา"),
        ("ปลา", "แมวกินปลา"),  # whether this is a word of its own, only a dictionary knows
        ("ยา", "ผมยาว"),
        ("ลา", "ปลา"),
        ("ຢາ", "ຢາວ"),
        ("ទឹក", "ទឹកដោះគោ"),
        ("apple", "apples"),
        ("cafe", "café"),
        ("not allergic", "Alice is allergic"),
        ("cat", "concatenate"),
        ("c++", "he writes C, not C#"),
        ("C", "he writes C++ and C#"),
        ("the of", "the king of the hill"),
        ("", "anything"),
        ("\U0001f600", "\U0001f600"),
    ],
)
def test_a_text_does_not_hold_what_is_only_like_it(query: str, text: str) -> None:
    assert not contains_all(text, query)


@pytest.mark.parametrize(
    ("text", "query", "marked"),
    [
        ("hello世界へ iPhone15を買った", "hello iphone15", "[hello]世界へ [iPhone15]を買った"),
        ("मुझे दूध पसंद है", "दूध", "मुझे [दूध] पसंद है"),
        ("我家养了一只猫", "猫", "我家养了一只[猫]"),
        ("고양이를 키운다", "고양이", "[고양이]를 키운다"),
        ("昨日は京都の寺を訪れました", "京都の寺", "昨日は[京都]の[寺]を訪れました"),
        ("in Łódź", "lodz", "in [Łódź]"),
        ("No peanuts, please", "pean", "No [peanuts], please"),
        ("due 2026-03-05, ok", "5 March 2026", "due [2026-03-05], ok"),
        ("We met on Dec 24th", "December 24", "We met on [Dec] [24th]"),
    ],
)
def test_a_snippet_marks_the_same_words(text: str, query: str, marked: str) -> None:
    assert snippet(text, query, marks=("[", "]")) == marked


def test_a_word_that_ends_in_a_vowel_sign_is_one_that_is_still_typed() -> None:
    assert unfinished_word("नमस्ते") == "नमस्ते"


@given(st.text())
def test_any_text_has_words(text: str) -> None:
    words = words_in(text)
    assert all(words)
    assert snippet(text, text) or not text
    terms_of(text), contains_all(text, text), query_words(text), unfinished_word(text + "x")


def test_words_that_are_the_same_have_the_same_version() -> None:
    code = "from session_middleware.storage.search.tokenizer import version; print(version())"
    assert processes.run("-c", code, check=True).stdout.strip() == version()


def test_neither_library_is_loaded_before_a_word_is_looked_for() -> None:
    code = (
        "import sys; from session_middleware import Sessions; s = Sessions(':memory:')\n"
        "s.open('t').memory.remember('an apple')\n"
        "print({'regex', 'snowballstemmer'} & set(sys.modules))"
    )
    assert processes.run("-c", code, check=True).stdout.strip() == "set()"
