"""Values of request bodies as JavaScript, pandas and spreadsheets send them. Every HTTP API accepts the same.

`docs/decisions/ids-and-values.md` has the contract. The rule: a value whose meaning is clear is accepted, anything else
is refused with a reason that says what to send instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final

from pydantic import AwareDatetime, BeforeValidator, Field, TypeAdapter, ValidationError

from shared.errors import Malformed

NOT_JSON_NUMBERS: Final = (
    "the body contains NaN or Infinity, which are not JSON: send null, or leave the field out"
)
NOT_A_TIME: Final = "expected a time with its zone in RFC 3339, for example 2026-03-04T05:06:07Z"
_NOT_A_NUMBER = re.compile(rb"NaN|Infinity")
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_DIGITS_ONLY = re.compile(r"[-+]?[0-9.]+")
_TIME: TypeAdapter[datetime] = TypeAdapter(AwareDatetime)


def _whole_number(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _parse_time(value: Any) -> Any:
    """Parse a time. Numbers are refused, as text too: nothing says whether they are seconds or milliseconds."""
    if not isinstance(value, str):
        if isinstance(value, datetime):
            return value
        raise ValueError(NOT_A_TIME)
    if _DIGITS_ONLY.fullmatch(value.strip()):
        raise ValueError(NOT_A_TIME)
    try:
        return _TIME.validate_python(value)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]["msg"]
        raise ValueError(f"{fault[0].lower()}{fault[1:]}: {NOT_A_TIME}") from None


WHOLE_NUMBER: Final = BeforeValidator(_whole_number)
"""Makes an `int` field accept 5.0 as 5: pandas, and some clients, write every number with a fraction."""
Time = Annotated[
    AwareDatetime,
    BeforeValidator(_parse_time),
    Field(json_schema_extra={"examples": ["2026-03-04T05:06:07Z"]}),
]
"""RFC 3339 with a time zone. A space or `t` for `T`, `z` for `Z`, `+0000`, a comma before the fraction and more than
six digits of it are accepted, and seconds may be left out."""


def readable_fault(fault: Mapping[str, Any]) -> str:
    """Return what one of pydantic's error details says, and what to do. The input is left out."""
    match fault["type"]:
        case "json_invalid":
            return f"{fault['msg']}: send one JSON object in UTF-8"
        case "extra_forbidden":
            return "unknown field: check its spelling, or leave it out"
        case "missing":
            return "this field is required"
        case "value_error":  # one of our own checks, which says what to do
            return str(fault["msg"]).removeprefix("Value error, ")
    return f"{fault['msg']} (/openapi.json describes what to send)"


def check_json_numbers(raw: bytes) -> None:
    """Raise `Malformed` if a body contains NaN or Infinity outside its texts.

    Python's `json` module and pandas write them; the parser would accept them too.
    """
    if _NOT_A_NUMBER.search(raw) and _NOT_A_NUMBER.search(_STRING.sub(b"", raw)):
        raise Malformed(NOT_JSON_NUMBERS)
