"""Text of an answer: whole characters only, nothing of a stop string, the same as decoding all at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.core.detokenizer import IncrementalDetokenizer


def by_bytes(tokens: list[int]) -> str:
    """The hardest tokenizer there is: a token is a byte."""
    return bytes(tokens).decode("utf-8", "replace")


def pieces(text: str, *stops: str) -> list[str]:
    stream = IncrementalDetokenizer(by_bytes, stops)
    return [*(stream.push(byte) for byte in text.encode()), stream.flush()]


def test_a_character_of_four_bytes_comes_whole_with_its_last() -> None:
    assert pieces("a😀b") == ["a", "", "", "", "😀", "b", ""]


@given(st.text(max_size=60))
def test_the_pieces_are_the_text(text: str) -> None:
    assert "".join(pieces(text)) == text


def test_bytes_that_never_become_a_character_come_at_the_end() -> None:
    stream = IncrementalDetokenizer(by_bytes)
    assert [stream.push(byte) for byte in b"ok\xf0\x9f"] == ["o", "k", "", ""]
    assert stream.flush() == "\ufffd"
    assert stream.text == "ok\ufffd"


def test_a_stop_string_over_several_tokens_is_never_shown() -> None:
    stream = IncrementalDetokenizer(by_bytes, ("END",))
    assert [stream.push(byte) for byte in b"to ENEND more"][:8] == ["t", "o", " ", "", "", "EN", "", ""]
    assert stream.stopped
    assert stream.text == "to EN"
    assert stream.flush() == ""


def test_what_only_began_like_a_stop_string_comes_when_it_is_settled() -> None:
    assert pieces("ENvy EN", "END") == ["", "", "ENv", "y", " ", "", "", "EN"]


@given(
    st.text(alphabet="abé", max_size=40),
    st.lists(st.text(alphabet="abé", min_size=1, max_size=4), max_size=3),
)
def test_the_answer_ends_at_the_first_stop_string(text: str, stops: list[str]) -> None:
    stream = IncrementalDetokenizer(by_bytes, stops)
    for byte in text.encode():
        stream.push(byte)
    stream.flush()
    assert not any(stop in stream.text for stop in stops)
    assert text.startswith(stream.text)
    assert stream.stopped == any(stop in text for stop in stops)


@pytest.mark.parametrize("stops", [(), ("",)])
def test_no_stop_string_stops_nothing(stops: tuple[str, ...]) -> None:
    assert "".join(pieces("abc", *stops)) == "abc"
