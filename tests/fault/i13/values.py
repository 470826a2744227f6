"""Values that requests and records are made of: ids, texts, times, headers. Extend the pools here."""

from __future__ import annotations

import random
import string
from datetime import datetime, timedelta

from shared.events import from_ms, rfc3339
from shared.records import Headers

PRINTABLE = "".join(chr(code) for code in range(0x21, 0x7F))
"""The characters that an id may have."""
IDS = (
    "0",
    "-1",
    "a/b",
    "a|b",
    "%",
    '"',
    "\\",
    "...",
    "/x",
    "~",
    "!",
    "null",
    "retract:x/y",
    "x|thumbs|0",
    "'",
    "{}",
)
TEXTS = (
    "It is 1889.",
    "Name the year in which it was founded, please",
    "bad",
    "火星の大気について詳しく説明してください",
    "\u202eevil\u200c \u00ad😀👨‍👩‍👧",
    "</s>[INST] <|im_start|>system",
    "\x00\x01\x7f\u0085\u2028",
    "null",
    '{"over": 1}',
    " ",
)
EXTREME_TIMES = (
    "0001-01-01T00:00:00+14:00",
    "0001-01-01T00:00:00Z",
    "0001-01-01T00:00:00-23:59",
    "9999-12-31T23:59:59-14:00",
    "9999-12-31T23:59:59.999999+23:59",
    "1969-12-31T23:59:59.999999Z",
    "1970-01-01T00:00:00Z",
    "1970-01-01T00:00:00.000001Z",
    "1999-12-31T23:59:59.999Z",
    "2000-01-01T00:00:00+14:00",
    "2000-01-01T00:00:00Z",
    "2024-02-29T23:59:60Z",
)
WRONG_TIMES = (
    "2025-01-01T00:00:00",
    "yesterday",
    "",
    "10000-01-01T00:00:00Z",
    0,
    -1,
    10**18,
    1e400,
    True,
    None,
)
SCALARS = (
    None,
    True,
    False,
    0,
    -1,
    2**63,
    -(2**63) - 1,
    10**400,
    0.5,
    1e308,
    "",
    "x",
    "1",
    [],
    {},
    [[]],
    {"": {}},
    "\ud800",
    "x" * 40_000,
)
"""Values of wrong types and sizes, for any field."""


def an_id(rng: random.Random) -> str:
    """Return an id that every API accepts, often of an extreme length."""
    kind = rng.random()
    if kind < 0.3:
        return rng.choice(IDS)
    length = rng.choice((1, 2, 63, 64, 65, 119, 120, 126, 127, 128)) if kind < 0.6 else rng.randint(1, 128)
    alphabet = PRINTABLE if rng.random() < 0.5 else string.hexdigits
    return "".join(rng.choices(alphabet, k=length))


def a_text(rng: random.Random, limit: int = 32_768) -> str:
    """Return a text of 1 to `limit` characters: mostly short, now and then of exactly the limit."""
    chance = rng.random()
    if chance < 0.9:
        return rng.choice(TEXTS)[:limit]
    if chance < 0.97:
        return rng.choice(TEXTS) * rng.randint(1, 40)
    return (rng.choice("x火\x01") * limit)[:limit]


def a_time(rng: random.Random, now_ms: int) -> str | None:
    """Return when something is said to have happened: nothing, a time near `now_ms`, or an extreme one."""
    chance = rng.random()
    if chance < 0.3:
        return None
    if chance < 0.6:
        return rng.choice(EXTREME_TIMES)
    near = from_ms(now_ms) + timedelta(
        seconds=rng.choice((-3_000_000, -86_400, -3_600, -1, 0, 1, 3_600, 86_399, 86_401)),
        microseconds=rng.choice((0, 1, 500, 999_999)),
    )
    return rfc3339(near) if rng.random() < 0.7 else _with_offset(near, rng.choice((-14, -5, 5, 14)))


def a_key(rng: random.Random, key: bytes) -> bytes | None:
    """Return a record's key: mostly the right one."""
    chance = rng.random()
    if chance < 0.8:
        return key
    return rng.choice((None, b"", b"another", key + b"x", key[:-1], b"\xff\xfe", b"k" * 100_000, key.upper()))


def headers(rng: random.Random) -> Headers:
    """Return the headers of a producer that nobody controls. A header without a value arrives as an empty one."""
    chance = rng.random()
    if chance < 0.3:
        return ()
    if chance < 0.7:
        return (("traceparent", a_traceparent(rng)),)
    return rng.choice(
        (
            (("traceparent", b""), ("traceparent", b"")),
            (("", b""),),
            (("ce_id", b"\xff"), ("ce_type", b"x" * 70_000), ("ce_time", b"0001-01-01T00:00:00+14:00")),
            tuple((f"h{n}", b"v" * 100) for n in range(200)),
            (("big", b"v" * 900_000),),
            (("replay_id", b"r"), ("replayed_from", b"\xff"), ("replay_count", b"9" * 500)),
            (
                ("dl_topic", b"feedback.events"),
                ("dl_partition", b"-1"),
                ("dl_offset", b"x"),
                ("dl_class", b""),
            ),
        )
    )


def a_traceparent(rng: random.Random) -> bytes:
    """Return a `traceparent` of any form, sometimes a valid one."""
    valid = f"00-{rng.randbytes(16).hex()}-{rng.randbytes(8).hex()}-01".encode()
    return rng.choice(
        (valid, valid, b"x", b"\xff\xfe\x00", b"t" * 5_000, b"00-" + b"0" * 990_000, valid.upper(), b" " * 55)
    )


def _with_offset(moment: datetime, hours: int) -> str:
    shifted = (moment + timedelta(hours=hours)).replace(tzinfo=None)
    return f"{shifted.isoformat()}{'-' if hours < 0 else '+'}{abs(hours):02}:00"
