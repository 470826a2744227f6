"""Records that a producer outside of Loopwright may write: our records with anything wrong in them, and any bytes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from shared.records import Output
from tests.fault.i13 import values

GARBAGE: tuple[bytes | None, ...] = (
    None,
    b"",
    b" ",
    b"{",
    b"{}",
    b"[]",
    b"null",
    b"0",
    b'"x"',
    b"\xff\xfe\x00",
    b"\xef\xbb\xbf{}",
    b"[" * 50_000,
    b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
    b'{"line": NaN}',
    b'{"kind": "thumbs"}',
    b'{"kind": "applause", "line": "assistant"}',
    b'{"kind": ["thumbs"]}',
    b"x" * 1_000_000,
    b'{"line": "' + b"x" * 1_000_100 + b'"}',
    b"\x00" * 10,
    b'{"line":"assistant","line":"other"}',
)
"""Values that are no record at all."""

Damage = Callable[[random.Random, dict[str, Any]], None]


def _drop(rng: random.Random, record: dict[str, Any]) -> None:
    del record[rng.choice(list(record))]


def _retype(rng: random.Random, record: dict[str, Any]) -> None:
    record[rng.choice(list(record))] = rng.choice(values.SCALARS)


def _extend(rng: random.Random, record: dict[str, Any]) -> None:
    record[rng.choice(("unknown", "", "__class__", "kind ", "schema", "at_ms"))] = rng.choice(values.SCALARS)


def _change_time(rng: random.Random, record: dict[str, Any]) -> None:
    names = [name for name in record if name.endswith("_at") or name == "deadline"]
    times = values.EXTREME_TIMES if rng.random() < 0.8 else values.WRONG_TIMES
    record[rng.choice([*names, "occurred_at"])] = rng.choice(times)


def _change_version(rng: random.Random, record: dict[str, Any]) -> None:
    record["schema_version"] = rng.choice((0, 2, 10**9, 10**30, "1", 1.5, -1))


def _change_line(rng: random.Random, record: dict[str, Any]) -> None:
    record["line"] = rng.choice(("coder", "z" * 63, "z" * 64, "", "A", "0", "a/b", "a\n"))


def _change_kind(rng: random.Random, record: dict[str, Any]) -> None:
    record["kind"] = rng.choice(
        ("thumbs", "rating", "correction", "comment", "preference", "retract", "x", None)
    )


def _nest(rng: random.Random, record: dict[str, Any]) -> None:
    nested: Any = "x"
    for _ in range(rng.choice((10, 150, 400))):
        nested = {"over": nested} if rng.random() < 0.5 else [nested]
    record[rng.choice(("value", "tags", "metadata", "unknown"))] = nested


def _lengthen_id(rng: random.Random, record: dict[str, Any]) -> None:
    name = rng.choice([name for name in record if name.endswith("_id")] or ["event_id"])
    record[name] = "i" * rng.choice((128, 129, 300, 70_000))


def _foreign_numbers(rng: random.Random, record: dict[str, Any]) -> None:
    record[rng.choice(("choice", "latency_ms", "value", "schema_version"))] = rng.choice(
        (float("nan"), float("inf"), -float("inf"), 10**40, -1, 7, 8, 1.0, 0)
    )


DAMAGES: tuple[Damage, ...] = (
    _drop, _retype, _extend, _change_time, _change_time, _change_version, _change_line, _change_kind, _nest,
    _lengthen_id, _foreign_numbers,
)  # fmt: skip
"""Ways to change a record. Add new ones here."""

Encoding = Callable[[dict[str, Any]], bytes]
ENCODINGS: tuple[Encoding, ...] = (
    lambda record: json.dumps(record, indent=3).encode(),
    lambda record: json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass"),
    lambda record: json.dumps(record).encode("utf-16"),
    lambda record: b"\xef\xbb\xbf" + json.dumps(record).encode(),
    lambda record: json.dumps(record).encode()[:-2],
    lambda record: json.dumps(record).encode() + b" {}",
    lambda record: b"\x00\x00\x00\x00\x07" + json.dumps(record).encode(),  # as a schema registry frames it
)
"""Ways to write JSON, besides the usual one."""


def altered(rng: random.Random, record: Output) -> Output:
    """Return a record with zero to three things wrong in its value, and any key and headers."""
    value = json.loads(record.value or b"{}")
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        if value:
            rng.choice(DAMAGES)(rng, value)
    encode = rng.choice(ENCODINGS) if rng.random() < 0.15 else _usual
    key = value.get("subject" if "subject" in value else "response_id")
    right_key = key.encode("utf-8", "replace") if isinstance(key, str) else record.key or b""
    return Output(record.topic, values.a_key(rng, right_key), encode(value), values.headers(rng))


def garbage(rng: random.Random, topic: str, key: bytes) -> Output:
    """Return a record whose value is no record at all."""
    value = rng.choice(GARBAGE) if rng.random() < 0.8 else rng.randbytes(rng.randint(1, 60))
    return Output(topic, values.a_key(rng, key), value, values.headers(rng))


def _usual(record: dict[str, Any]) -> bytes:
    return json.dumps(record).encode()
