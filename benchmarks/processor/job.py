"""What a measured process is told. The standard library alone: one of them runs in an environment of its own."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass


@dataclass(frozen=True, kw_only=True)
class Job:
    """One process of an arm. Its topics exist; `name` is the group's, and begins the name of what it makes itself."""

    kafka: str
    name: str
    input: str
    output: str
    folder: str
    """Its own, for stores and status; exists."""
    changelog: str = ""
    dead_letters: str = ""
    partitions: int = 4
    instance: str = "0"
    cache_mb: int = 8
    remembered: int = 8

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def told() -> Job:
    """The job in this process' argument."""
    return Job(**json.loads(sys.argv[1]))
