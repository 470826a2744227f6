"""Parameters of a measured process.

Standard library only, because one of the processes runs in a separate environment.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass


@dataclass(frozen=True, kw_only=True)
class Job:
    """One process of an arm. Its topics exist already."""

    kafka: str
    name: str
    """Consumer group, and prefix of everything that the process creates."""
    input: str
    output: str
    folder: str
    """Existing folder for its stores and its status file."""
    changelog: str = ""
    dead_letters: str = ""
    partitions: int = 4
    instance: str = "0"
    cache_mb: int = 8
    remembered_events: int = 8
    """Event ids kept per key to detect repetitions."""

    def to_json(self) -> str:
        """Return the command-line argument of the process."""
        return json.dumps(asdict(self))


def read_job() -> Job:
    """Parse the job in this process's argument."""
    return Job(**json.loads(sys.argv[1]))
