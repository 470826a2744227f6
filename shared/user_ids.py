"""User ids as callers send them. Every API accepts the same ids, so whoever can be recorded can also be erased."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import AfterValidator, Field

MAX_USER_ID: Final = 256
USER_ID_RULE: Final = f"a user id has 1 to {MAX_USER_ID} characters and no control characters"
NO_CONTROL_CHARACTERS: Final = r"^[^\x00-\x1f\x7f-\x9f]+$"
_VALID = re.compile(r"[^\x00-\x1f\x7f-\x9f]+")


def check_user_id(user_id: str) -> str:
    """Return the user id. Raise `ValueError` if it breaks `USER_ID_RULE`."""
    if len(user_id) > MAX_USER_ID or not _VALID.fullmatch(user_id):
        raise ValueError(USER_ID_RULE)
    return user_id


UserId = Annotated[
    str,
    AfterValidator(check_user_id),
    Field(json_schema_extra={"minLength": 1, "maxLength": MAX_USER_ID, "pattern": NO_CONTROL_CHARACTERS}),
]
"""The id that an app uses for one of its users. Only a pseudonym of it is stored (`shared/pseudonym.py`)."""
