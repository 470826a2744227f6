"""User ids as callers send them. Every API accepts the same ids, so whoever can be recorded can also be erased."""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, Field

MAX_USER_ID: Final = 256
USER_ID_RULE: Final = f"a user id has 1 to {MAX_USER_ID} characters and no control characters"
NO_CONTROL_CHARACTERS: Final = r"^[^\x00-\x1f\x7f-\x9f]+$"
NUMBER_AS_ID: Final = (
    'a user id is a string: send "17" instead of 17, because numbers lose digits or gain .0 on their way'
)
_VALID = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]+")


def check_user_id(user_id: str) -> str:
    """Return the user id. Raise `ValueError` if it breaks `USER_ID_RULE`.

    A lone surrogate breaks it too: UTF-8 has no bytes for it, so no request could send it.
    """
    if len(user_id) > MAX_USER_ID or not _VALID.fullmatch(user_id):
        raise ValueError(USER_ID_RULE)
    return user_id


def normalize_user_id(user_id: str) -> str:
    """Return the Unicode form (NFC) that pseudonyms are made of.

    Systems write one and the same id in different forms: macOS sends "é" as two code points, a browser as one.
    """
    return unicodedata.normalize("NFC", user_id)


def _no_number(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError(NUMBER_AS_ID)  # noqa: TRY004 - pydantic collects ValueErrors
    return value


def _none_if_empty(value: Any) -> Any:
    return None if value == "" else value


UserId = Annotated[
    str,
    BeforeValidator(_no_number),
    AfterValidator(check_user_id),
    Field(json_schema_extra={"minLength": 1, "maxLength": MAX_USER_ID, "pattern": NO_CONTROL_CHARACTERS}),
]
"""The id that an app uses for one of its users. Only a pseudonym of it is stored (`shared/pseudonym.py`)."""
OptionalUserId = Annotated[UserId | None, BeforeValidator(_none_if_empty)]
"""Clients and spreadsheets send an empty text instead of no user."""
