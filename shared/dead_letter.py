"""What the headers of a dead letter say: where it came from, and why it could not be read."""

from __future__ import annotations

from dataclasses import dataclass

from shared.stream.step import Record


@dataclass(frozen=True, slots=True)
class Origin:
    """`topic` is the one that the record came from; `code` and `message` are of the error, `service` met it."""

    topic: str
    code: str
    message: str
    service: str = ""


def origin_of(record: Record) -> Origin:
    """Empty words where a header is missing: a dead letter is counted whatever it says."""
    said = {name.removeprefix("dl_"): value.decode("utf-8", "replace") for name, value in record.headers}
    code = said.get("error") or said.get("class", "")
    return Origin(said.get("topic", ""), code, said.get("message", ""), said.get("service", ""))
