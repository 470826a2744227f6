"""The script of the feedback widget, which the API serves: a page needs one `<script>` and no build.

`widget.min.js` is built from `sdk-js/src/widget` by `npm run widget`; a test compares both.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from fastapi import Response

MAX_AGE_S: Final = 3600


class WidgetScript:
    """The script and its headers."""

    def __init__(self) -> None:
        self._script = Path(__file__).with_name("widget.min.js").read_bytes()
        self._headers = {
            "ETag": f'"{hashlib.sha256(self._script).hexdigest()[:32]}"',
            "Cache-Control": f"public, max-age={MAX_AGE_S}",
            # Pages of other sites load it.
            "Cross-Origin-Resource-Policy": "cross-origin",
            "X-Content-Type-Options": "nosniff",
        }

    def response(self, if_none_match: str | None) -> Response:
        """Return the script, or 304 if the browser has it already."""
        if if_none_match == self._headers["ETag"]:
            return Response(status_code=304, headers=self._headers)
        return Response(self._script, media_type="text/javascript", headers=self._headers)
