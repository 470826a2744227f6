"""Langfuse's SDK against feedback: `langfuse_scores.py URL`. Exits with 0 if every call does what it should."""

from __future__ import annotations

import json
import sys
import urllib.request
from typing import Any

from langfuse import Langfuse

url = sys.argv[1]
client = Langfuse(public_key="pk-any", secret_key="lw_any", base_url=url, sample_rate=1.0)


def events() -> list[tuple[str, Any]]:
    with urllib.request.urlopen(f"{url}/events") as answer:
        return [(event["kind"], event["value"]) for event in json.load(answer)]


trace = Langfuse.create_trace_id(seed="message-1")
score: dict[str, Any] = {"name": "user-feedback", "trace_id": trace, "score_id": "s1"}
client.create_score(**score, value=1)
client.flush()
assert events() == [("thumbs", "up")], events()
print("ok create_score")

client.create_score(**score, value=0, data_type="BOOLEAN", comment="Too long.")
client.create_score(name="output", trace_id=trace, value="Be brief.", data_type="CORRECTION")
client.create_score(name="user-rating", trace_id=trace, value=2, data_type="NUMERIC")
client.flush()
assert events()[1:] == [
    ("thumbs", "down"),
    ("comment", "Too long."),
    ("correction", "Be brief."),
    ("rating", 2),
], events()
print("ok edit and other types")

client.create_score(name="accuracy", trace_id=trace, value=0.3)
client.flush()
assert len(events()) == 5, events()
print("ok measurement of a program is refused")

client.api.scores.delete("s1")
assert [kind for kind, _ in events()[5:]] == ["retract", "retract"], events()
print("ok delete")
