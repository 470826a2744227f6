"""Readers of imports: what each format becomes, and that anything at all gives one result per row."""

from __future__ import annotations

import io
import json
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwright.imports import json_buffer, json_values
from loopwright.imports.csv_table import Columns, read_csv
from loopwright.imports.fine_tuning import read_fine_tuning
from loopwright.imports.langfuse import open_trace_users, read_scores, read_traces
from loopwright.imports.preferences import read_preferences
from loopwright.imports.rows import MAX_ROW_BYTES, Defaults, ParsedRow, Row, RowError
from loopwright.imports.text_lines import read_lines

Json = dict[str, Any]
Reader = Callable[[BinaryIO], Iterator[ParsedRow]]
QUESTION = {"role": "user", "content": "Capital of New Zealand?"}
ANSWER = {"role": "assistant", "content": "Wellington."}
TUNING = {"messages": [QUESTION, ANSWER]}
PAIR = {
    "input": {"messages": [QUESTION]},
    "preferred_output": [ANSWER],
    "non_preferred_output": [{**ANSWER, "content": "Auckland."}],
}
SCORE = {
    "id": "s1",
    "traceId": "t1",
    "name": "user-feedback",
    "value": 1,
    "dataType": "BOOLEAN",
    "timestamp": "2026-03-01T12:00:00.000Z",
}
TRACE = {
    "id": "t1",
    "timestamp": "2026-03-01T11:00:00.000Z",
    "userId": "ann",
    "input": [QUESTION],
    "output": ANSWER,
}
TABLE = "input,response,thumbs\nCapital?,Wellington.,up\n"


def scores(stream: BinaryIO) -> Iterator[ParsedRow]:
    with open_trace_users() as users:
        yield from read_scores(stream, Defaults(), users, {"quality": "rating"})


def traces(stream: BinaryIO) -> Iterator[ParsedRow]:
    with open_trace_users() as users:
        yield from read_traces(stream, Defaults(), users)


READERS: dict[str, Reader] = {
    "openai": lambda stream: read_fine_tuning(stream, Defaults()),
    "preferences": lambda stream: read_preferences(stream, Defaults()),
    "csv": lambda stream: read_csv(stream, Defaults(), Columns()),
    "scores": scores,
    "traces": traces,
}
GOOD: dict[str, Any] = {"openai": TUNING, "preferences": PAIR, "scores": SCORE, "traces": TRACE}


def read(name: str, content: bytes | str) -> list[ParsedRow]:
    raw = content if isinstance(content, bytes) else content.encode()
    return list(READERS[name](io.BytesIO(raw)))


def read_one(name: str, row: Any) -> ParsedRow:
    [found] = read(name, json.dumps(row))
    return found


def good(name: str, row: Any) -> Row:
    found = read_one(name, row)
    assert isinstance(found, Row), found
    return found


def reason(name: str, row: Any) -> str:
    found = read_one(name, row)
    assert isinstance(found, RowError)
    return found.reason


# --- fine-tuning ----------------------------------------------------------------------------------------------------


def test_fine_tuning_answers_become_liked_responses() -> None:
    system = {"role": "system", "content": "Be brief."}
    first = {"role": "assistant", "content": [{"type": "text", "text": "Hi."}]}
    skipped = {"role": "assistant", "content": "Bad.", "weight": 0}
    row = good("openai", {"messages": [system, first, QUESTION, skipped, QUESTION, ANSWER]})
    assert [(len(each["messages"]), each["choices"]) for each in row.responses] == [
        (1, [{"index": 0, "text": "Hi."}]),
        (5, [{"index": 0, "text": "Wellington."}]),
    ]
    assert [(event["kind"], event["value"], event["tags"]) for event in row.events] == [
        ("thumbs", "up", ["imported"])
    ] * 2
    assert [event["response_id"] for event in row.events] == [each["response_id"] for each in row.responses]


def test_fine_tuning_row_with_a_models_answer_becomes_a_correction() -> None:
    row = good("openai", {**TUNING, "original": "Auckland."})
    assert row.responses[0]["choices"] == [{"index": 0, "text": "Auckland."}]
    assert row.responses[0]["messages"] == [QUESTION]
    assert [(event["kind"], event["value"]) for event in row.events] == [("correction", "Wellington.")]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({}, "messages is not a list"),
        ({"messages": [ANSWER]}, "no text of role assistant"),
        ({"messages": [QUESTION]}, "no text of role assistant"),
        (
            {"messages": [QUESTION, {"role": "assistant", "content": None, "tool_calls": []}]},
            "no text of role assistant",
        ),
        ({"messages": [QUESTION, {"role": "assistant", "content": " "}]}, "is empty"),
        ({"messages": [QUESTION, {"role": "assistant", "content": 5}]}, "is not a text"),
        ({**TUNING, "original": 5}, "original is not a text"),
        ([TUNING, 3], "not a JSON object"),
    ],
)
def test_fine_tuning_row_without_a_text_to_learn_is_refused(row: Any, fault: str) -> None:
    found = read("openai", json.dumps(row))[-1]
    assert isinstance(found, RowError) and fault in found.reason


# --- preferences ----------------------------------------------------------------------------------------------------


def test_preferred_output_is_preferred_over_the_other_one() -> None:
    row = good("preferences", PAIR)
    assert row.responses[0]["choices"] == [{"index": 0, "text": "Wellington."}]
    assert [(event["kind"], event["value"]) for event in row.events] == [
        ("preference", {"over": "Auckland."})
    ]


@pytest.mark.parametrize("missing", ["input", "preferred_output", "non_preferred_output"])
def test_preference_without_a_part_names_it(missing: str) -> None:
    assert missing in reason("preferences", {name: part for name, part in PAIR.items() if name != missing})


# --- CSV --------------------------------------------------------------------------------------------------------------


def csv_rows(text: str, **names: str) -> list[ParsedRow]:
    return list(read_csv(io.BytesIO(text.encode()), Defaults(), Columns(names)))


def test_csv_columns_become_signals() -> None:
    header = "prompt;answer;user_id;thumbs;stars;correction;feedback;worse;model;timestamp"
    cells = 'Capital?;"Wel;lington\nis it.";ann;👍;4.0;Wellington.;Too long.;Auckland.;m1;2026-03-01 12:00:00'
    [row] = csv_rows(f"{header}\n{cells}\n")
    assert isinstance(row, Row) and row.number == 2
    assert row.responses[0] == {
        "response_id": row.events[0]["response_id"],
        "version": "m1",
        "messages": [{"role": "user", "content": "Capital?"}],
        "choices": [{"index": 0, "text": "Wel;lington\nis it."}],
        "user_id": "ann",
        "created_at": "2026-03-01T12:00:00+00:00",
    }
    assert [(event["kind"], event["value"]) for event in row.events] == [
        ("thumbs", "up"),
        ("rating", 4),
        ("preference", {"over": "Auckland."}),
        ("correction", "Wellington."),
        ("comment", "Too long."),
    ]
    assert all(event["user_id"] == "ann" and "tags" not in event for event in row.events)


def test_csv_of_recorded_responses_has_only_events() -> None:
    [row] = csv_rows("response_id,rating\nchatcmpl-7,5\n")
    assert isinstance(row, Row) and not row.responses
    assert (row.events[0]["response_id"], row.events[0]["value"]) == ("chatcmpl-7", 5)


def test_csv_options_name_columns() -> None:
    [row] = csv_rows("q,a,ok\nx,y,no\n", input="Q", response="a", thumbs="ok")
    assert isinstance(row, Row) and row.events[0]["value"] == "down"


@pytest.mark.parametrize(
    ("text", "number", "fault"),
    [
        ("a,b\n1,2\n", 1, "must name the columns"),
        ("input,response\nx\n", 2, "input or response is empty"),
        ("input,response\n\nx,y,z\n", 3, "3 cells"),
        ("input,response,rating\nx,y,6\n", 2, "rating"),
        ("input,response,thumbs\nx,y,maybe\n", 2, "thumbs"),
        ("input,response,created_at\nx,y,yesterday\n", 2, "created_at"),
        ("input,response\n,\n", 2, "all cells are empty"),
        ('input,response\nx,"y\n', 2, "not CSV"),
        ("response_id,rating\nr1,\n", 2, "neither"),
    ],
)
def test_wrong_csv_row_is_named(text: str, number: int, fault: str) -> None:
    [found] = csv_rows(text)
    assert isinstance(found, RowError) and found.number == number and fault in found.reason, found


def test_csv_line_that_is_not_text_stops_no_other() -> None:
    raw = b"input,response\na,b\n\xff\xfe,c\nd,e\n" + b"x" * (MAX_ROW_BYTES + 5) + b"\nf,g\n"
    found = list(read_csv(io.BytesIO(raw), Defaults(), Columns()))
    assert [isinstance(row, Row) for row in found] == [True, False, True, False, True]
    assert [row.number for row in found] == [2, 3, 4, 5, 6]


# --- forms of JSON files --------------------------------------------------------------------------------------------

ROWS = [{"n": number, "text": "é\u2028" + "x" * (number * 40_000)} for number in range(5)]
PAGES = (
    json.dumps({"data": ROWS[:2], "meta": {"page": 1}})
    + "\n"
    + json.dumps({"data": ROWS[2:], "meta": {"page": 2}})
)
FORMS = {
    "lines": "\n".join(map(json.dumps, ROWS)),
    "lines with CRLF and blank ones": "\r\n\r\n".join(map(json.dumps, ROWS)) + "\r\n",
    "array": json.dumps(ROWS),
    "array with spaces": "\n [" + " ,\n ".join(map(json.dumps, ROWS)) + "\n]\n",
    "indented array": json.dumps(ROWS, indent=2),
    "not ASCII": json.dumps(ROWS, ensure_ascii=False),
    "pages": PAGES,
    "indented pages": json.dumps({"data": ROWS, "meta": {}}, indent=2),
    "page with its numbers first": json.dumps({"meta": {}, "data": ROWS}),
    "indented page with its numbers first": json.dumps({"meta": {}, "data": ROWS}, indent=2),
    "indented objects": "\n".join(json.dumps(row, indent=1) for row in ROWS),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_and_encoding_gives_the_same_rows(form: str, encoding: str) -> None:
    found = list(json_values.read_values(io.BytesIO(FORMS[form].encode(encoding))))
    assert [value.content for value in found] == ROWS


@pytest.mark.parametrize(
    "content", [b"", b"\n\n \r\n", b"\xef\xbb\xbf", "".encode("utf-16"), b"[]", b'{"data": []}']
)
@pytest.mark.parametrize("name", GOOD)
def test_empty_file_has_no_rows(name: str, content: bytes) -> None:
    assert read(name, content) == []


def test_broken_line_stops_no_other_and_broken_array_the_rest() -> None:
    lines = '{"a": 1}\n{broken\n{"a": NaN}\n{"a": ' + "[" * 100_000 + "\n" + '{"a": 2}'
    assert [(v.number, v.fault) for v in json_values.read_values(io.BytesIO(lines.encode()))] == [
        (1, None),
        (2, "not JSON (expecting property name enclosed in double quotes)"),
        (3, "not JSON (NaN is not a number in JSON)"),
        (4, "nested too deeply"),
        (5, None),
    ]
    faults = [value.fault for value in json_values.read_values(io.BytesIO(b'[{"a": 1}, {broken, {"a": 2}]'))]
    assert (
        faults[0] is None
        and str(faults[1]).endswith("the rest of the array was not read")
        and len(faults) == 2
    )


def test_reading_takes_no_more_memory_for_a_longer_file() -> None:
    row = json.dumps({**TUNING, "padding": "x" * 2_000}) + "\n"

    class Long(io.RawIOBase):
        left = 4_000

        def read(self, size: int = -1) -> bytes:
            self.left -= 1
            return row.encode() if self.left >= 0 else b""

    tracemalloc.start()
    try:
        rows = read_fine_tuning(cast("BinaryIO", Long()), Defaults())
        assert sum(isinstance(each, Row) for each in rows) == 4_000
        assert tracemalloc.get_traced_memory()[1] < 3_000_000, "the file has 8 MB"
    finally:
        tracemalloc.stop()


# --- anything ---------------------------------------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters(), max_size=8)
ANY_JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"]


@st.composite
def mutated(draw: st.DrawFn, name: str) -> str:
    """A row of the format in which one value was replaced by anything."""
    row = json.loads(json.dumps(GOOD[name]))
    places: list[tuple[Any, Any]] = []

    def collect(node: Any) -> None:
        children = (
            node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        )
        for key, child in list(children):
            places.append((node, key))
            collect(child)

    collect(row)
    container, key = draw(st.sampled_from(places))
    container[key] = draw(ANY_JSON)
    return json.dumps(row)  # NaN, and lone surrogates as escapes, as Python writes them


def lines_of(name: str) -> st.SearchStrategy[str]:
    garbage = st.text(st.characters(exclude_characters="\n\ufeff"), min_size=1, max_size=20)
    broken = st.sampled_from(
        ["{", '{"a"', "[1", '"\\ud800"', "1" * 5_000, "[" * 3_000, "NaN", "\x00", "x" * (MAX_ROW_BYTES + 9)]
    )
    if name == "csv":
        cells = st.lists(garbage, min_size=1, max_size=4).map(",".join)
        return garbage | broken | cells | st.just("Capital?,Wellington.,up")
    return garbage | broken | mutated(name) | ANY_JSON.map(json.dumps) | st.just(json.dumps(GOOD[name]))


@pytest.mark.parametrize("name", READERS)
@given(data=st.data())
@settings(max_examples=120, deadline=None)
def test_anything_gives_one_result_per_row(name: str, data: st.DataObject) -> None:
    lines = data.draw(st.lists(lines_of(name), max_size=6))
    first = "input,response,thumbs" if name == "csv" else json.dumps(GOOD[name])
    text = data.draw(st.sampled_from(["\n", "\r\n"])).join([first, *lines])
    raw = text.encode(data.draw(st.sampled_from(ENCODINGS)), "replace")
    found = read(name, raw)
    for row in found:
        assert isinstance(row, Row | RowError)
        json.dumps([row.source], allow_nan=True)
        if isinstance(row, Row):
            json.dumps([*row.responses, *row.events], allow_nan=False)
    numbers = [row.number for row in found]
    if name == "csv":
        # A quoted cell may take the lines after it, and blank lines are no rows.
        assert numbers == sorted(set(numbers))
    else:
        expected = [at for at, line in enumerate([first, *lines], 1) if line.strip(json_values.JSON_SPACE)]
        assert sorted(set(numbers)) == expected


@pytest.mark.parametrize("name", READERS)
@given(raw=st.binary(max_size=200) | st.text(max_size=80).map(lambda text: text.encode("utf-16", "replace")))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_read_to_their_end(name: str, raw: bytes) -> None:
    for row in read(name, raw):
        assert row.number >= 1


@given(st.lists(st.binary(max_size=12).filter(lambda line: b"\n" not in line), max_size=8), st.integers(1, 5))
@settings(max_examples=150, deadline=None)
def test_lines_do_not_depend_on_how_the_file_is_read(lines: list[bytes], size: int) -> None:
    raw = b"{}\n" + b"\n".join(lines)

    class Slow(io.BytesIO):
        def read(self, _: int | None = -1) -> bytes:
            return super().read(size)

    assert list(read_lines(Slow(raw))) == list(read_lines(io.BytesIO(raw)))


@given(
    st.lists(
        ANY_JSON.filter(lambda value: "NaN" not in json.dumps(value) and "Infinity" not in json.dumps(value))
    ),
    st.integers(1, 4),
)
@settings(max_examples=100, deadline=None)
def test_array_does_not_depend_on_how_the_file_is_read(values: list[Any], size: int) -> None:
    raw = json.dumps(values).encode()
    chunks = iter([raw[at : at + size] for at in range(0, len(raw), size)])
    buffer = json_buffer.JsonBuffer(chunks)
    assert [value.content for value in json_values.array_values(buffer)] == values
