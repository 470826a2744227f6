"""The same job in Faust, as its documentation suggests: an agent, a Table, and a send."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterable
from typing import Any

import faust

from benchmarks.processor.job import Job, read_job
from benchmarks.processor.votes import vote


def build(job: Job) -> faust.App:
    """Return the Faust application. Its Table is in memory with a changelog, the faster of Faust's stores here."""
    app = faust.App(
        job.name,
        broker=f"kafka://{job.kafka}",
        store="memory://",
        datadir=f"{job.folder}/faust",
        topic_partitions=job.partitions,
        topic_disable_leader=True,
        web_enabled=False,
        worker_redirect_stdouts=False,
    )
    events = app.topic(job.input, key_serializer="raw", value_serializer="json")
    counts = app.topic(job.output, key_serializer="raw", value_serializer="json")
    votes = app.Table("votes", partitions=job.partitions, key_type=bytes)

    @app.agent(events)
    async def count(stream: Any) -> None:
        items: AsyncIterable[tuple[bytes, dict[str, Any]]] = stream.items()
        async for key, event in items:
            state, output = vote(votes.get(key), event, job.remembered_events)
            votes[key] = state
            await counts.send(key=key, value=output)

    return app


def main() -> None:
    """Run a Faust worker until SIGTERM."""
    worker = faust.Worker(build(read_job()), loglevel=logging.WARNING, quiet=True)
    worker.execute_from_commandline()


if __name__ == "__main__":
    main()
