"""The widget's script as the feedback service serves it."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.testclient import TestClient

from services.feedback.api.routes import add_widget_route


def test_widget_is_cached_until_it_changes() -> None:
    app = FastAPI()
    add_widget_route(app)
    with TestClient(app) as http:
        script = http.get("/v1/widget.js")
        assert script.status_code == 200
        assert script.headers["content-type"].startswith("text/javascript")
        assert "loopwright-feedback" in script.text
        assert "max-age" in script.headers["cache-control"]
        unchanged = http.get("/v1/widget.js", headers={"If-None-Match": script.headers["etag"]})
        assert (unchanged.status_code, unchanged.content) == (304, b"")
        assert http.get("/v1/widget.js", headers={"If-None-Match": '"old"'}).status_code == 200
