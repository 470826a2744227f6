"""Incremental detokenization: complete characters, no stop strings, the same text as decoding all tokens at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.core.detokenizer import IncrementalDetokenizer


def decode_bytes(tokens: list[int]) -> str:
    """Decode with the hardest tokenizer there is: each token is a byte."""
    return bytes(tokens).decode("utf-8", "replace")


def pieces(text: str, *stop_strings: str) -> list[str]:
    detokenizer = IncrementalDetokenizer(decode_bytes, stop_strings)
    return [*(detokenizer.push(byte) for byte in text.encode()), detokenizer.flush()]


def test_four_byte_character_is_released_with_its_last_byte() -> None:
    assert pieces("a😀b") == ["a", "", "", "", "😀", "b", ""]


@given(st.text(max_size=60))
def test_pieces_join_to_the_text(text: str) -> None:
    assert "".join(pieces(text)) == text


def test_incomplete_character_is_released_by_flush() -> None:
    detokenizer = IncrementalDetokenizer(decode_bytes)
    assert [detokenizer.push(byte) for byte in b"ok\xf0\x9f"] == ["o", "k", "", ""]
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.text == "ok\ufffd"


def test_stop_string_over_several_tokens_is_never_released() -> None:
    detokenizer = IncrementalDetokenizer(decode_bytes, ("END",))
    released = [detokenizer.push(byte) for byte in b"to ENEND more"]
    assert released[:8] == ["t", "o", " ", "", "", "EN", "", ""]
    assert detokenizer.stopped
    assert detokenizer.text == "to EN"
    assert detokenizer.flush() == ""


def test_prefix_of_a_stop_string_is_released_once_it_is_ruled_out() -> None:
    assert pieces("ENvy EN", "END") == ["", "", "ENv", "y", " ", "", "", "EN"]


@given(
    st.text(alphabet="abé", max_size=40),
    st.lists(st.text(alphabet="abé", min_size=1, max_size=4), max_size=3),
)
def test_text_ends_at_the_first_stop_string(text: str, stop_strings: list[str]) -> None:
    detokenizer = IncrementalDetokenizer(decode_bytes, stop_strings)
    for byte in text.encode():
        detokenizer.push(byte)
    detokenizer.flush()
    assert not any(stop in detokenizer.text for stop in stop_strings)
    assert text.startswith(detokenizer.text)
    assert detokenizer.stopped == any(stop in text for stop in stop_strings)


@pytest.mark.parametrize("stop_strings", [(), ("",)])
def test_empty_stop_string_stops_nothing(stop_strings: tuple[str, ...]) -> None:
    assert "".join(pieces("abc", *stop_strings)) == "abc"
